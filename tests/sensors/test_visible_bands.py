"""Which bands are red, green and blue, for the depth encoder, the distortion of colours and pictures; and
what `spectralmoe data` says of values that do not fit the sensor."""

import dataclasses
from itertools import permutations

import numpy as np
import pytest

from data_pipelines.inspect import Inspection, remarks
from data_pipelines.sheet import display_bands
from data_pipelines.transforms import visible_bands
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.build import segmenter_config
from spectralmoe_jax.sensors import SENSORS, visible


@pytest.mark.parametrize("names", [("red", "green", "blue"), ("B04", "B03", "B02"), ("b4", "GREEN", "B2")])
def test_any_name_on_the_sensor_in_any_order(names):
    for order in permutations((*names, "nir")):
        expected = tuple(order.index(name) for name in names)
        assert visible(order, "sentinel2") == visible_bands(order, "sentinel2") == expected
        assert display_bands(order, "sentinel2") == expected


@pytest.mark.parametrize("sensor", SENSORS)
def test_every_sensor_has_three(sensor):
    bands = [band.name for band in SENSORS[sensor].bands]
    places = visible(bands, sensor)
    named = [name for name in ("red", "green", "blue") if name in bands or sensor == "sentinel2"]
    assert [bands[place] for place in places] == (
        list(SENSORS[sensor].rgb) if len(named) < 3 or sensor == "sentinel2" else named
    )


def test_missing_visible_bands():
    assert visible(("B04", "B03", "B02")) is None
    assert visible(("red", "green", "nir"), "aerial_rgbn") is None
    with pytest.raises(UserError, match=r"red, green, blue not among B04, B03, B02: .* config\.sensor"):
        visible_bands(("B04", "B03", "B02"))


def configured(bands, sensor, depth_bands):
    count = len(bands)
    return load_config("configs/loveda.py").replaced({
        "bands": bands, "sensor": sensor, "model.depth.bands": depth_bands,
        "model.pixel_mean": (0.0,) * count, "model.pixel_std": (1.0,) * count,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("bands", "sensor", "depth_bands", "places"),
    [
        (("B02", "B03", "B04", "B08"), "sentinel2", None, (2, 1, 0)),
        (("B02", "B03", "B04", "B08"), "sentinel2", ("red", "green", "blue"), (2, 1, 0)),
        (("blue", "green", "red"), "sentinel2", ("B04", "B03", "blue"), (2, 1, 0)),
        (("nir", "red", "green", "blue"), None, None, (1, 2, 3)),
        (tuple(f"band {n}" for n in range(1, 33)), "orbita_ohs", None, (13, 6, 1)),
        (tuple(f"band {n}" for n in range(1, 33)), "orbita_ohs", ("B2", "band 7", "B15"), (1, 6, 14)),
    ],
)
def test_the_depth_encoder_sees_them(bands, sensor, depth_bands, places):
    assert segmenter_config(configured(bands, sensor, depth_bands)).depth_bands == places


@pytest.mark.parametrize(
    ("bands", "depth_bands", "message"),
    [
        (("B04", "B03", "B02"), None, r"depth\.bands: which of B04, B03, B02 are red, green and blue is not"),
        (("red", "green", "nir"), ("red", "green", "blue"), r"depth\.bands names 'blue'"),
    ],
)
def test_missing_depth_bands(bands, depth_bands, message):
    with pytest.raises(UserError, match=message):
        segmenter_config(configured(bands, None, depth_bands))


def surveyed(sensor, dtype, means):
    bands = ("blue", "green", "red", "nir")[: len(means)]
    config = configured(bands, sensor, None).replaced({"classes": {"names": ("a",)}})
    image = np.zeros((1, 2, 2, len(means)), dtype)
    found = Inspection(
        batches=[{"image": image}], contents={}, shares=np.ones(1), labelled=1.0,
        raw=np.array([(mean, 1.0) for mean in means]), normalised=np.array([(0.0, 1.0)] * len(means)),
        stages={}, opening=0.0, first=0.0, rate=0.0,
    )  # fmt: skip
    return config, found


@pytest.mark.parametrize(
    ("sensor", "dtype", "means", "parts"),
    [
        ("sentinel2", np.uint16, (1000, 900, 800), None),
        ("sentinel2", np.uint16, (100, 20000, 30000), ["2 bands", "green 2, red 3", "sentinel2"]),
        ("landsat8", np.uint16, (9000, 9500, 10000), None),  # 0.05 to 0.075
        ("landsat8", np.uint16, (900, 950, 10000), ["2 bands", "blue -0.175"]),
        ("landsat5", np.float32, (0.1, 0.1, 0.1), ["pixels are float32", "landsat5 commonly uint16"]),
        ("aerial_rgb", np.uint8, (100, 90, 80), None),
        ("generic", np.float32, (1e9, 1, 1), None),
        (None, np.float32, (1e9, 1, 1), None),
    ],
)
def test_values_outside_the_range_of_the_sensor_are_reported(sensor, dtype, means, parts):
    told = remarks(*surveyed(sensor, dtype, means))
    assert len(told) == (0 if parts is None else 1)
    assert all(part in told[0] for part in parts or ())


def test_thermal_bands_are_not_reflectance():
    config, found = surveyed("landsat5", np.uint16, (45000,))
    assert remarks(config.replaced({"bands": ("thermal",)}), dataclasses.replace(found)) == []
