"""The page of a predicted scene: what it embeds, and what a click in a browser tells, against the map."""

import base64
import json
import re

import cv2
import numpy as np
import pytest
import rasterio

import spectralmoe_jax
from spectralmoe_jax.cli.main import main
from tests.inference.test_geotiff import write_scene
from tests.inference.test_model import folder  # noqa: F401 (a fixture)
from tests.reporting.browser import Page
from tests.reporting.test_report import Outline, needs_chromium


@pytest.fixture(scope="module")
def viewed(folder, tmp_path_factory):  # noqa: F811
    """A scene with a part without data, its page, and its map."""
    root = tmp_path_factory.mktemp("viewed")
    run = folder / "runs" / "quickstart"
    pixels = np.random.default_rng(0).integers(1, 3000, (60, 90, 4), dtype=np.uint16)
    pixels[:20, :30] = 0
    scene = write_scene(root / "scene.tif", pixels, nodata=0)
    with rasterio.open(scene, "r+") as dataset:
        dataset.descriptions = ("blue", "green", "red", "nir")
    page = root / "view.html"
    command = ["view", "--checkpoint", str(run), "--input", str(scene), "--output", str(page)]
    assert main(command) == 0
    spectralmoe_jax.load(run).map(scene, root / "map.tif", confidence=True)
    return page, root / "map.tif", spectralmoe_jax.load(run)


def about(page):
    (text,) = re.findall(r'<script type="application/json" id="about">(.*?)</script>', page.read_text(), re.S)
    return json.loads(text)


def decoded(address):
    data = np.frombuffer(base64.b64decode(address.partition(",")[2]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]


def test_the_page_holds_the_map(viewed):
    page, map_path, model = viewed
    known = about(page)
    with rasterio.open(map_path) as dataset:
        classes = dataset.read(1)
    with rasterio.open(map_path.with_name("map_confidence.tif")) as dataset:
        confidence = dataset.read(1)
    values = decoded(known["values"])
    np.testing.assert_array_equal(values[..., 0], classes)
    inside = classes != 255
    np.testing.assert_allclose(values[..., 1][inside] / 254, confidence[inside], atol=0.5 / 254 + 1e-6)
    assert (values[..., 1][~inside] == 255).all()
    assert decoded(known["image"]).shape == (60, 90, 3)
    config = model.segmenter.config
    assert len(known["layers"]) == config.visual.layers
    experts = decoded(known["layers"][0]["picture"])
    assert experts.shape[:2] == (15, 23)
    assert experts.max() < config.adapter.num_experts


def test_it_is_whole_and_closed(viewed):
    text = viewed[0].read_text()
    outline = Outline(re.sub(r"<script.*?</script>", "", text, flags=re.S))
    assert outline.loaded == []
    assert set(outline.links) <= set(outline.ids)
    assert "default-src 'none'" in text
    assert "://" not in re.sub(r"data:image/\w+;base64,[\w+/=]+", "", text)


@needs_chromium
def test_clicks_tell_what_the_map_says(viewed, tmp_path):
    page_path, map_path, model = viewed
    with rasterio.open(map_path) as dataset:
        classes, transform = dataset.read(1), dataset.transform
    with rasterio.open(map_path.with_name("map_confidence.tif")) as dataset:
        confidence = dataset.read(1)
    experts = decoded(about(page_path)["layers"][-1]["picture"])[..., 0]
    with Page(page_path, 900) as page:
        page.evaluate("new Promise(done => { const wait = () => document.body.dataset.ready ? done() : "
                      "setTimeout(wait, 20); wait(); })")  # fmt: skip
        box = (
            "(({left, top, width, height}) => [left, top, width, height])"
            "(document.getElementById('view').getBoundingClientRect())"
        )
        left, top, width, height = page.evaluate(box)

        def click(x, y):
            for kind in ("mousePressed", "mouseReleased"):
                at = {"x": left + x * width, "y": top + y * height, "button": "left", "clickCount": 1}
                page.call("Input.dispatchMouseEvent", type=kind, **at)
            return page.evaluate("document.getElementById('answer').textContent")

        seen = set()
        for x, y in np.random.default_rng(1).uniform(0.15, 0.85, (25, 2)):
            said = click(x, y)
            found = re.match(r"row (\d+), column (\d+) \(([\d.]+), ([\d.]+) EPSG:32633\); (.*)", said)
            if not found:  # beside the scene
                continue
            row, column = int(found[1]), int(found[2])
            seen.add((row, column))
            point = rasterio.transform.xy(transform, row, column)
            assert (float(found[3]), float(found[4])) == pytest.approx(point, abs=0.1)
            if classes[row, column] == 255:
                assert found[5] == "no data"
                continue
            told = re.match(r"class: (.+); probability: (\d+) %; expert: (\d+) \(layer", found[5])
            assert told[1] == model.classes[classes[row, column]]
            assert abs(int(told[2]) / 100 - confidence[row, column]) < 0.008
            assert int(told[3]) == experts[row // 4, column // 4] + 1
        assert len(seen) > 10
        # an opaque map shows the colours of the classes alone, a transparent one those of the image
        for value in (100, 0):
            page.evaluate(
                f"(o => {{ o.value = {value}; o.dispatchEvent(new Event('input')); }})"
                "(document.getElementById('opacity'))"
            )
            page.screenshot(tmp_path / f"{value}.png")
        covered, bare = (cv2.imread(str(tmp_path / f"{v}.png"))[..., ::-1] for v in (100, 0))
        middle = (int(top + height / 2), int(left + width / 2))
        assert covered[middle].tolist() in [list(colour) for colour in model.palette]
        assert not np.array_equal(covered[middle], bare[middle])
        # zooming in by 1.5 three times: a third of the width holds fewer columns, 1.5 ** 3 of them
        columns = lambda: [int(re.match(r"row \d+, column (\d+)", click(x, 0.5))[1]) for x in (0.35, 0.65)]
        left_before, right_before = columns()
        for _ in range(3):
            page.evaluate("document.getElementById('closer').click()")
        left_after, right_after = columns()
        ratio = (right_before - left_before) / (right_after - left_after)
        assert ratio == pytest.approx(1.5**3, rel=0.15)
        # a page of another size keeps the middle, and the scale
        middle_before = click(0.5, 0.5)
        size = {"width": 700, "height": 900, "deviceScaleFactor": 1, "mobile": True}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
        left, top, width, height = page.evaluate(box)
        assert width < 700
        assert click(0.5, 0.5) == middle_before
        assert page.requests == [page_path.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") == 700


@pytest.mark.parametrize(
    ("scene", "output", "said"),
    [
        ("none.tif", "view.html", "none.tif"),
        ("none.tif", "view.png", "written as .html"),
        ("none.tif", "no/view.html", "does not exist"),
    ],
)
def test_bad_options_are_one_line(folder, tmp_path, monkeypatch, capsys, scene, output, said):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    run = str(folder / "runs" / "quickstart")
    assert main(["view", "--checkpoint", run, "--input", scene, "--output", output]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())
