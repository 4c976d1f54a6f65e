"""The tables of docs/architecture.md list every module of both packages, each once and in its folder."""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def listed() -> list[str]:
    """Paths of the modules in the tables; a section with several folders has each module in one of them."""
    found = []
    for section in re.split(r"^### ", (ROOT / "docs" / "architecture.md").read_text(), flags=re.MULTILINE)[
        1:
    ]:
        heading, _, body = section.partition("\n")
        folders = re.findall(r"`([\w/]+/)`", heading)
        for row in re.findall(r"^\| (`.*?) \|", body, re.MULTILINE):
            for name in re.findall(r"`(\w+\.py)`", row):
                places = [f"{folder}{name}" for folder in folders if (ROOT / folder / name).is_file()]
                found.append(places[0] if places else f"{heading}: {name}")
    return found


def test_every_module_is_listed_once():
    packages = [ROOT / "spectralmoe_jax", ROOT / "data_pipelines"]
    there = {path.relative_to(ROOT).as_posix() for package in packages for path in package.rglob("*.py")}
    modules = {path for path in there if not path.endswith("__init__.py")}
    rows = Counter(listed())
    assert set(rows) == modules
    assert max(rows.values()) == 1
