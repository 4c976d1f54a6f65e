"""The commands and the Python blocks of the documentation, as a reader would paste them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in (
        ROOT / "README.md",
        *sorted(ROOT.glob("CONTRIBUTING.md")),
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "launch" / "README.md",
    )
}

# Commands of a page other than `spectralmoe`, each with what checks it instead of running it here.
ELSEWHERE = {
    "python3 -m venv": "the environment: .ci/run makes one the same way",
    "pip install": "downloads: .ci/run installs the package and its extras",
    "pytest": "the tests themselves",
    "pre-commit install": "tests/test_project_files.py checks the hooks",
    "ruff": "a step of .ci/run",
    "mypy": "a step of .ci/run",
    "python docs/build_site.py": "a step of .ci/run",
    ".ci/run": "all checks, these included",
    "python benchmarks/": "measurements of ten minutes to hours; their options are held against their --help",
    "launch/local.sh": "tests/launch/test_local.py runs it",
    "launch/tpu_pod.sh": "needs a TPU; tests/launch/test_tpu_pod.py runs it against a fake",
    "sbatch": "needs a cluster; tests/launch/test_slurm.py runs the script against a fake",
    "kubectl": "needs a cluster; tests/launch/test_kubernetes.py checks the manifests",
    "curl": "needs a server; tests/serving/test_process.py posts to one",
    "docker": "needs a daemon and downloads; tests/launch/test_dockerfiles.py checks the files",
}
# What a sentence calls by these names; blocks use the names of files that the tests' workspace has.
PLACEHOLDERS = {"FILE": "configs/dubai.py", "NAME": "loveda"}
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:spectralmoe [a-z]+|python (?:benchmarks|docs)/\w+\.py)(?: [^`]+|))`")
_ASSIGNED = re.compile(r"(?:^|[\s;])(\w+)=|\bfor (\w+) in", re.MULTILINE)
_USED = re.compile(r"\$\{?(\w+)")
_FIELD, _RECORD = "\x1f", "\x1e"


class Block(NamedTuple):
    """A fenced block of a page: its language, its text and the line that it begins in."""

    language: str
    text: str
    line: int


class Call(NamedTuple):
    """A command that a page has its reader run: the words that the shell makes of it."""

    line: int
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.words)


def blocks(page: str, language: str) -> list[Block]:
    """The fenced blocks of a page in one language."""
    text = PAGES[page].read_text()
    found = [Block(m[1], m[2], text[: m.start()].count("\n") + 2) for m in _FENCE.finditer(text)]
    return [block for block in found if block.language == language]


def inline_commands(page: str) -> list[Block]:
    """Commands with arguments that stand in a sentence; names of commands alone are left out."""
    text = _FENCE.sub(lambda m: "\n" * m[0].count("\n"), PAGES[page].read_text())
    found = [Block("bash", " ".join(m[1].split()), text[: m.start()].count("\n") + 1)
             for m in _INLINE.finditer(text)]  # fmt: skip
    for name, value in PLACEHOLDERS.items():
        found = [block._replace(text=re.sub(rf"(?<= ){name}(?= |$)", value, block.text)) for block in found]
    return [block for block in found if not re.fullmatch(r"spectralmoe \w+", block.text)]


def scripts(page: str, once: bool = False) -> list[Block]:
    """The bash blocks of a page, complete: before one that uses variables of another block stands that block.

    Args:
      page: of `PAGES`.
      once: where several blocks assign the variables, take the first alone, and not each in turn.
    """
    found = blocks(page, "bash")
    assignments = [block for block in found if re.fullmatch(r'(\s*(\w+=("[^"]*"|\S*)|#.*))+\s*', block.text)]
    complete = []
    for block in found:
        if block in assignments:
            continue
        missing = set(_USED.findall(block.text)) - {
            name for pair in _ASSIGNED.findall(block.text) for name in pair
        }
        suppliers = [other for other in assignments if missing & set(re.findall(r"(\w+)=", other.text))]
        suppliers = suppliers[:1] if once else suppliers
        texts = [f"{other.text}\n{block.text}" for other in suppliers] or [block.text]
        complete += [block._replace(text=text) for text in texts]
    return complete


def calls(block: Block, folder: Path) -> list[Call]:
    """What a script calls, in order, each command replaced by one that notes its words.

    Args:
      block: the script.
      folder: an empty folder to run it in.

    Raises:
      AssertionError: the script calls a command that is neither `spectralmoe` nor in `ELSEWHERE`, or it is no
        valid bash.
    """
    noted, stubs = folder / "noted", folder / "stubs"
    names = {name.split()[0] for name in ("spectralmoe", "python", *ELSEWHERE)}
    for name in {*names, *(f".venv/bin/{name}" for name in names if "/" not in name)}:
        stub = folder / name if "/" in name else stubs / name
        stub.parent.mkdir(parents=True, exist_ok=True)
        words = f"'{name.removeprefix('.venv/bin/')}' \"$@\""
        stub.write_text(
            f"#!{shutil.which('bash')}\n{{ printf '%s\\x1f' {words}; printf '\\x1e'; }} >> '{noted}'\n"
        )
        stub.chmod(0o755)
    (folder / "docs").mkdir()
    (folder / ".venv/bin/activate").touch()
    (stubs / "wc").symlink_to(shutil.which("wc"))
    noted.touch()
    done = subprocess.run(
        [shutil.which("bash"), "-euo", "pipefail", "-c", block.text],
        cwd=folder, env={"PATH": str(stubs)}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"line {block.line}: {done.stderr}"
    records = noted.read_text().split(_RECORD)[:-1]
    return [Call(block.line, tuple(record.split(_FIELD)[:-1])) for record in records]


def is_listed(call: Call) -> bool:
    """Whether a call is one of those that are checked elsewhere."""
    return any(call.text.startswith(name) for name in ELSEWHERE)
