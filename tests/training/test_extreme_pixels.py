"""Pixels that make a loss infinite are named: file, band, place and window."""

import itertools
import re

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.extreme_pixels import extreme_pixels
from data_pipelines.splits import open_splits, training_batches
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.training.loop import TrainingDiverged
from spectralmoe_jax.training.train import run_experiment
from tests.rasters import PLACE, write_raster
from tests.training.fake_experiment import make_config, make_experiment

BANDS = ("red", "green", "blue")


@pytest.fixture
def config(tmp_path):
    """Four images, one of which has a value of 1e30."""
    random = np.random.default_rng(0)
    for number in range(4):
        pixels = random.normal(100, 20, (64, 64, 3)).astype(np.float32)
        if number == 2:
            pixels[37, 50, 1] = 1e30
        write_raster(tmp_path / f"a/images/{number}.tif", pixels, BANDS, **PLACE)
        write_raster(
            tmp_path / f"a/labels/{number}.tif", random.integers(0, 2, (64, 64), dtype=np.uint8), **PLACE
        )
    data = {"kind": "geotiff", "root": str(tmp_path), "image_glob": "{domain}/images/*.tif"}
    data |= {
        "mask_template": "{domain}/labels/{stem}.tif",
        "label_values": (0, 1),
        "source": ("a",),
        "target": (),
    }
    data |= {"crop": 32, "tile": None, "holdout": 0.0, "workers": 0}
    given = {
        "bands": BANDS,
        "classes.names": ("x", "y"),
        "classes.palette": ((0, 0, 0), (1, 1, 1)),
        "sensor": None,
    }
    given |= {"model.pixel_mean": (100.0,) * 3, "model.pixel_std": (20.0,) * 3, "train.batch_size": 2}
    given |= {f"data.{key}": value for key, value in data.items()}
    return load_config("quickstart").replaced(given)


def test_the_value_is_found_in_the_batch_that_has_it(config, tmp_path):
    splits = open_splits(config, only="source")
    splits = type(splits)(splits.source, splits.target, splits.source.records, ())
    batches = list(itertools.islice(training_batches(config, splits, 0), 12))
    named = [extreme_pixels(config, splits, step) for step in range(12)]
    for batch, text in zip(batches, named, strict=True):
        if np.abs(batch["image"]).max() > 1e9:
            assert text
        if text:
            assert (
                f"{tmp_path}/a/images/2.tif has 1e+30 in band green at row 37, column 50, in the window"
                in text
            )
            top, bottom, left, right = map(
                int, re.findall(r"(\d+) to (\d+)", text)[0] + re.findall(r"(\d+) to (\d+)", text)[1]
            )
            assert top <= 37 <= bottom
            assert left <= 50 <= right
    assert any(named)
    assert not all(named)


def test_the_message_of_the_loop_has_it(tmp_path):
    experiment = make_experiment()
    batches = experiment.make_batches(0)
    asked = []

    def poisoned(start):
        for step in range(start, 100):
            batch = next(batches)
            yield batch | {"x": batch["x"] * (jnp.inf if step == 3 else 1.0)}

    def name_pixels(step):
        asked.append(step)
        return "a.tif has inf"

    object.__setattr__(experiment, "make_batches", poisoned)
    object.__setattr__(experiment, "name_pixels", name_pixels)
    with pytest.raises(
        TrainingDiverged, match=r"not finite at step 4: a\.tif has inf; there is no checkpoint"
    ):
        run_experiment(experiment, make_config(steps=20, checkpoint_every=50, evaluate_every=50), tmp_path)
    assert asked == [3]
