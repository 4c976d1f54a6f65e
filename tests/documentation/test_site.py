"""Pages of the repository as pages of the documentation site."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site():
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "docs" / "build_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PLACES = {"README.md": "index.md", "docs/data.md": "data.md", "docs/tutorials/a.ipynb": "tutorials/a.md",
          "launch/README.md": "launching.md"}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "link", "wanted"),
    [
        ("README.md", "[data](docs/data.md#how-fast)", "[data](data.md#how-fast)"),
        ("README.md", "![all](docs/images/a.png)", "![all](images/a.png)"),
        ("docs/data.md", "[launching](../launch/README.md#slurm)", "[launching](launching.md#slurm)"),
        (
            "docs/data.md",
            "[start](../README.md), [a](tutorials/a.ipynb)",
            "[start](index.md), [a](tutorials/a.md)",
        ),
        ("docs/tutorials/a.ipynb", "[data](../data.md)", "[data](../data.md)"),
        ("docs/tutorials/a.ipynb", "![map](a_files/map.png)", "![map](a_files/map.png)"),
        ("launch/README.md", "[a script](local.sh) [below](#slurm)", "a script [below](#slurm)"),
        ("launch/README.md", "[it](https://example.org/x.md)", "[it](https://example.org/x.md)"),
        ("README.md", "```python\nf[0](docs/data.md)\n```", "```python\nf[0](docs/data.md)\n```"),
    ],
)
def test_links(site, source, link, wanted):
    assert site.relink(link, source, PLACES) == wanted


def _places(entry) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry if isinstance(entry, list) else entry.values()
    return [place for part in parts for place in _places(part)]


def test_every_page_is_in_the_navigation_once(site):
    text = re.sub(r"!!python/\S+", "", (ROOT / "mkdocs.yml").read_text())
    assert sorted(_places(yaml.safe_load(text)["nav"])) == sorted(site.page_places().values())
