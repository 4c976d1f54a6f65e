"""The page of a run and of a grid: its contents, its size, and its behaviour in a browser."""

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from spectralmoe_jax.cli.main import main
from spectralmoe_jax.reporting.figures import read_grid, read_run
from spectralmoe_jax.reporting.page import grid_page, report, run_page
from spectralmoe_jax.reporting.svg import Line, line_chart, ticks
from tests.reporting.browser import CHROMIUM, Page
from tests.reporting.written_runs import EXPERTS, LAYERS, MODALITIES, NASTY, write_grid_folder, write_run

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on PATH (Debian: apt-get install chromium)"
)
AXE = os.environ.get("AXE_CORE", "")
needs_axe = pytest.mark.skipif(
    not Path(AXE).is_file(), reason="AXE_CORE does not name axe.min.js (npm install axe-core)"
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A page of a run and one of a grid of 12 runs."""
    folder = tmp_path_factory.mktemp("pages")
    write_run(folder / "run")
    (folder / "run.html").write_text(run_page(read_run(folder / "run"), "runs/x"))
    write_grid_folder(folder / "grid")
    return {"run": folder / "run.html", "grid": report(folder / "grid")}


class Outline(HTMLParser):
    """Ids, links to them, pictures without words, tags left open, and what is loaded from elsewhere."""

    EMPTY = ("meta", "link", "img", "br", "path", "circle", "input")

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.wordless, self.loaded, self.open = [], [], [], [], []
        self.headings: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"][1:]] if given.get("href", "").startswith("#") else []
        if tag == "img":
            self.wordless += [] if given.get("alt") else [given]
        if tag == "svg":
            self.wordless += [] if given.get("aria-label") else [given]
        self.loaded += [v for k, v in attributes if k in ("src", "href", "srcset") and v[:5] not in ("data:",)
                        and not v.startswith("#")]  # fmt: skip
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", ["run", "grid"])
def test_structure(pages, name):
    text = pages[name].read_text()
    outline = Outline(text)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert set(outline.links) <= set(outline.ids)
    assert outline.links
    assert outline.wordless == []
    assert outline.loaded == []
    assert not re.search(r"https?://|@import|url\(", text)
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    assert max(np.diff(outline.headings)) <= 1  # no level is left out


def test_a_run_has_every_section(pages):
    text = pages["run"].read_text()
    for heading in ("Curves", "Classes on the target", "Confusion on the target", "Scenes of the target",
                    "Expert of every token", "Depth features", "Experts over training",
                    "Experts and classes", "Configuration"):  # fmt: skip
        assert heading in text, heading
    assert NASTY not in text
    assert "bare &lt;soil&gt; &amp; " in text
    assert text.count('alt="Expert of every token') == 3 * LAYERS * MODALITIES
    assert text.count("Share of tokens by expert over training") == 2 * LAYERS * MODALITIES
    assert text.count("Share of each class's tokens") == 48
    assert text.count('<tr><th scope="row"><span class="swatch e') == LAYERS * MODALITIES * EXPERTS


def test_a_grid_has_every_section(pages):
    """Of each variant a confusion matrix; experts of all layers of the reference, and of the others' last."""
    text = pages["grid"].read_text()
    assert text.count('aria-label="Confusion matrix of E = ') == 12
    shown = (LAYERS + 11) * MODALITIES
    assert text.count('alt="Expert of every token') == 3 * shown
    assert text.count("Share of tokens by expert over training") == 2 * shown
    assert text.count('aria-label="Experts and classes, E = ') == shown


def test_numbers_equal_those_of_the_run(pages):
    run = read_run(pages["run"].parent / "run")
    text = pages["run"].read_text()
    assert f"{100 * run.evaluation['miou']:.2f} %" in text
    assert "5,737,985" in text
    matrix = np.array(run.evaluation["all"]["confusion"], float)
    shown = re.search(r'id="confusion".*?</table>', text, re.DOTALL).group()
    cells = re.findall(r"<td[^>]*>([^<]+)</td>", shown)
    expected = 100 * matrix / matrix.sum(axis=1, keepdims=True).clip(1)
    assert cells == [f"{value:.1f}" if row.any() else "-" for row in expected for value in row]


def test_page_sizes(pages):
    assert pages["grid"].stat().st_size < 5e6
    assert pages["run"].stat().st_size < 5e6


def test_a_run_that_has_just_begun(tmp_path):
    """Nothing logged, nothing judged, no palette: the page says so and does not fail."""
    write_run(tmp_path)
    for name in ("metrics.jsonl", "evaluation.json", "pictures.npz"):
        (tmp_path / name).unlink()
    text = run_page(read_run(tmp_path), "x")
    assert "Nothing was logged." in text
    assert "Confusion" not in text


def test_a_grid_without_runs(tmp_path):
    write_grid_folder(tmp_path, variants=1)
    for path in tmp_path.glob("runs/*/seed0/evaluation.json"):
        path.unlink()
    assert "Number of experts" in grid_page(read_grid(tmp_path), "x")


def test_folders_that_are_not_runs(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "neither a run nor a grid" in capsys.readouterr().err
    write_run(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no checkpoint yet; train first" in capsys.readouterr().err
    write_grid_folder(tmp_path / "grid", variants=1)
    missing = tmp_path / "missing" / "x.html"
    assert main(["report", str(tmp_path / "grid"), "--output", str(missing)]) == 2
    assert "choose another --output" in capsys.readouterr().err


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.33), (-3, 12_345), (0, 1e-7), (99.5, 100.5)])
def test_axis_ticks_are_few_round_and_inside_the_range(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 9
    assert low - 1e-9 <= found[0] <= found[-1] <= high + 1e-9
    steps = np.diff(found)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    assert f"{steps[0]:.0e}"[0] in "125"


@pytest.mark.parametrize(("steps", "labels"), [([300], ["300"]), ([1, 2, 3], ["1", "2", "3"])])
def test_an_axis_of_steps_has_whole_steps(steps, labels):
    chart = line_chart([Line("mIoU", steps, [0.5] * len(steps))], "scores", "step", y_range=(0, 1))
    shown = re.findall(r'text-anchor="middle">(\d[^<]*)<', chart)
    assert shown == labels


@needs_chromium
@pytest.mark.parametrize("name", ["run", "grid"])
def test_on_a_phone(pages, name, tmp_path):
    """At 360 pixels nothing sticks out of the page, whatever is unfolded, and nothing is fetched."""
    with Page(pages[name], 360) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        boxes = page.evaluate(
            "[...document.querySelectorAll('.box')].map(box => [box.clientWidth, box.scrollWidth])"
        )
        assert max(seen for seen, _ in boxes) <= 360
        assert max(whole for _, whole in boxes) > 360  # wide tables scroll in their own box
        broken = "[...document.images].filter(one => !one.complete || !one.naturalWidth).length"
        assert page.evaluate(broken) == 0
        letters = "[...document.querySelectorAll('svg text')].map(one => one.getBoundingClientRect().height)"
        assert min(page.evaluate(letters)) >= 8
        assert page.requests == [pages[name].as_uri()]
        page.screenshot(tmp_path / "page.png")
    height, width, _ = cv2.imread(str(tmp_path / "page.png")).shape
    assert width == 360
    assert height > 2000


@needs_chromium
@needs_axe
@pytest.mark.parametrize(("name", "dark"), [("run", False), ("run", True), ("grid", False)])
def test_accessibility(pages, name, dark):
    """All rules of axe-core, contrast and alternative texts among them, in both colour schemes.

    One of each kind of thing that can be unfolded is; the others are like it.
    """
    with Page(pages[name], 1200, dark=dark) as page:
        page.evaluate("[...document.querySelectorAll('details')].at(-1).open = true")
        page.evaluate(Path(AXE).read_text())
        found = page.evaluate("axe.run()")
        assert {rule["id"] for rule in found["passes"]} >= {"color-contrast", "image-alt", "svg-img-alt"}
        problems = {rule["id"]: rule["nodes"][0]["failureSummary"] for rule in found["violations"]}
        assert problems == {}
