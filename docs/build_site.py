"""Build the documentation site: gather its pages, then run Zensical on them.

  pip install -e '.[docs]'
  python docs/build_site.py            # into site/; a warning is an error
  python docs/build_site.py --serve    # and show it, on this machine alone

The pages are those of the repository, so that each is written once: README.md is the start page, and links
between files become links between pages. A link to a file without a page, such as a configuration, becomes
its text. Notebooks are shown with the outputs they were stored with.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GATHERED = ROOT / "build" / "pages"  # `docs_dir` of mkdocs.yml
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "launch/README.md": "launching.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # of a terminal
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def main() -> int:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--serve", action="store_true", help="serve the site at http://localhost:8000")
    serve = parser.parse_args().serve
    gather()
    zensical = [sys.executable, "-m", "zensical"]
    if serve:
        return subprocess.run([*zensical, "serve"], cwd=ROOT, check=False).returncode
    command = [*zensical, "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, end="")
    # what is wrong with a docstring is told as a remark, not as a warning
    return done.returncode or int("griffe:" in done.stdout)


def gather() -> None:
    """Write every page, its images and the notebooks into `GATHERED`, anew."""
    shutil.rmtree(GATHERED, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "images", GATHERED / "images")
    shutil.copy(ROOT / "docs" / "site.css", GATHERED)
    places = page_places()
    for source, place in places.items():
        target = GATHERED / place
        target.parent.mkdir(parents=True, exist_ok=True)
        file = ROOT / source
        text = notebook_page(file, target) if file.suffix == ".ipynb" else file.read_text()
        target.write_text(relink(text, source, places))


def page_places() -> dict[str, str]:
    """The place on the site of every source of a page, both relative, with forward slashes."""
    docs = ROOT / "docs"
    places = {source: place for source, place in ELSEWHERE.items() if (ROOT / source).is_file()}
    for path in (*docs.glob("*.md"), *docs.glob("tutorials/*.ipynb")):
        places[path.relative_to(ROOT).as_posix()] = path.relative_to(docs).with_suffix(".md").as_posix()
    return places


def relink(text: str, source: str, places: dict[str, str]) -> str:
    """The text of a page with links between files turned into links between pages; code is left as it is."""
    here = posixpath.dirname(places[source]) or "."

    def moved(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        file, hash_sign, anchor = target.partition("#")
        if not file or "://" in file:
            return match[0]
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), file))
        if wanted.startswith("docs/images/"):
            place = wanted.removeprefix("docs/")
        elif wanted in places:
            place = places[wanted]
        else:  # a picture of a notebook stands beside its page; other files have none
            return match[0] if image else label
        return f"{image}[{label}]({posixpath.relpath(place, here)}{hash_sign}{anchor})"

    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(moved, part) for part in parts)


def notebook_page(notebook: Path, target: Path) -> str:
    """A notebook as Markdown, its pictures beside `target`."""
    import nbformat
    from nbconvert import MarkdownExporter

    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs = joined_texts(cell.outputs)
    folder = f"{notebook.stem}_files"
    text, resources = MarkdownExporter().from_notebook_node(
        content, resources={"output_files_dir": folder, "unique_key": notebook.stem}
    )
    for name, content in resources["outputs"].items():
        picture = target.parent / name
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(content)
    return text


def joined_texts(outputs: list[Any]) -> list[Any]:
    """The outputs of a cell, with texts that were printed one after the other as one plain text."""
    joined: list[Any] = []
    for output in outputs:
        data = output.get("data", {})
        if "image/png" not in data:
            text = output.get("text") or data.get("text/plain", "")
            output = type(output)(output_type="stream", name="stdout", text=_COLOUR.sub("", text))
            if joined and joined[-1].output_type == "stream":
                joined[-1].text += output.text
                continue
        joined.append(output)
    return joined


if __name__ == "__main__":
    sys.exit(main())
