"""The measurements on real sensors: halves of a place, resumption, and the parts that need no weights."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import rasterio

from spectralmoe_jax.errors import UserError
from tests.benchmarks.scripts import imported
from tests.rasters import PLACE, write_raster

pytest.importorskip("sklearn")
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")


@pytest.fixture(scope="module")
def script():
    with imported("real_sensors") as module:
        yield module


@pytest.fixture
def dates(tmp_path):
    """Four dates of 30 x 21 pixels whose brightness follows the class, and their labels."""
    rng, root = np.random.default_rng(0), tmp_path / "sentinel2"
    labels = rng.choice([2, 3, 4], (30, 21)).astype(np.uint8)
    write_raster(root / "landcover.tif", labels, **PLACE)
    for date in range(4):
        pixels = 500 * labels[..., None].astype(int) + rng.integers(0, 100, (30, 21, 13))
        write_raster(root / f"scene_{date}.tif", pixels.astype(np.uint16), BANDS, **PLACE)
    return root


def read(path):
    with rasterio.open(path) as image:
        return image.read(), image.descriptions, image.transform


@pytest.mark.parametrize("fold", ["west", "east"])
def test_parts_make_up_the_place(script, dates, tmp_path, fold):
    """Training, held-out and test pixels are disjoint, each where it was; a column may be left over."""
    script.date_pairs(dates, tmp_path / "halves")
    whole, names, place = read(dates / "scene_1.tif")
    covered = np.zeros(whole.shape[1:], int)
    for part in ("train", "heldout", "test"):
        pixels, own_names, own = read(tmp_path / "halves" / fold / f"scene_1_{part}.tif")
        label = read(tmp_path / "halves" / fold / f"scene_1_{part}_label.tif")[0]
        assert own_names == names
        column, row = (round(x) for x in ~place * (own.c, own.f))
        inside = np.s_[row : row + pixels.shape[1], column : column + pixels.shape[2]]
        assert np.array_equal(pixels, whole[:, *inside])
        assert np.array_equal(label[0], read(dates / "landcover.tif")[0][0][inside])
        covered[inside] += 1
        assert (column < 10) == ((fold == "west") == (part != "test"))
    assert covered.max() == 1
    assert covered.sum() == 30 * 20


def test_a_pair_has_another_date_in_another_place(script, dates, tmp_path):
    pairs = script.date_pairs(dates, tmp_path / "halves")
    given = dict(text.removeprefix("--config.").split("=", 1) for text in pairs["scene_2-east"].overrides)
    assert given["data.target"] == "scene_2_test"
    source, heldout = given["data.source"].split(","), given["data.holdout_domains"].split(",")
    assert sorted(heldout) == [f"scene_{date}_heldout" for date in (0, 1, 3)]
    assert sorted(set(source) - set(heldout)) == [f"scene_{date}_train" for date in (0, 1, 3)]


def test_classifiers_are_measured_once(script, dates, tmp_path, monkeypatch, capsys):
    folders = ["--workdir", str(tmp_path / "real"), "--sentinel2", str(dates)]
    command = ["real_sensors.py", *folders, "--parts", "trees", "--pairs", "scene_2-west"]
    monkeypatch.setattr(script, "SEEDS", 2)
    monkeypatch.setattr(sys, "argv", command)
    assert script.main() == 0
    assert "boosted trees, bands" in capsys.readouterr().out
    scores = json.loads((tmp_path / "real" / "scene_2-west" / "trees" / "scores.json").read_text())
    assert np.array(scores["logistic regression, bands"]).min() > 90  # brightness tells the class

    # again: nothing is done twice, and settings that differ are no excuse
    monkeypatch.setattr(script.pixel_baselines, "benchmark", None)
    assert script.main() == 0
    monkeypatch.setattr(sys, "argv", [*command, "--weights", "OTHER"])
    assert script.main() == 2
    assert "done.json: measured with other settings" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command[:-1], "scene_9-west"])
    assert script.main() == 2
    assert "--pairs = 'scene_9-west': must be one of scene_0-west" in capsys.readouterr().err


def test_variants_of_a_grid_that_were_not_run_have_no_scores(script, tmp_path):
    """As `spectralmoe ablate --only` leaves them."""
    runs = {"done": [{"seed": 0, "miou": 0.5, "held_out": 0.75}, {"seed": 1}], "left out": [{"seed": 0}]}
    (tmp_path / "frozen").mkdir()
    stored = {"variants": {name: {"runs": of_variant} for name, of_variant in runs.items()}}
    (tmp_path / "frozen" / "results.json").write_text(json.dumps(stored))
    assert script.scores_of("frozen", tmp_path) == {"frozen: done": (np.array([50.0]), np.array([75.0]))}


def test_a_longer_grid_adds_to_a_shorter_one(script, tmp_path, monkeypatch):
    """The runs that are there are not the ones that are asked for: `ablate` is called, which skips them."""
    commands = []
    (tmp_path / "frozen").mkdir()
    monkeypatch.setattr(script, "spectralmoe", lambda command: commands.append(command) or 0)
    pair = script.cloud_pairs(tmp_path)["landsat5-7"]
    for short, calls in ((True, 1), (True, 1), (False, 2), (False, 2)):
        script.measure("frozen", dataclasses.replace(pair, short=short), tmp_path, [], 1)
        assert len(commands) == calls
    assert commands[0].count("--only") == len(script.SHORT)
    assert "--only" not in commands[1]


def test_nothing_to_draw(script, tmp_path):
    with pytest.raises(UserError, match="no run to draw; measure --parts frozen first"):
        script.draw_routing(tmp_path / "frozen", tmp_path / "routing.png")
