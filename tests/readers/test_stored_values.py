"""Images of another type, range or scale than those of the training are refused or warned of."""

import json
import logging
import re

import numpy as np
import pytest
import rasterio

from data_pipelines.readers.image_files import GeoTiffTiles
from data_pipelines.readers.label_codes import ValueCode
from data_pipelines.readers.labels import RasterLabels
from data_pipelines.splits import absent_classes, open_splits
from data_pipelines.stored_values import check, measure
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.schema import EvaluateConfig, StatedValues
from spectralmoe_jax.config.stored import read_config, save_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.geotiff import predict_scene
from spectralmoe_jax.training.train import with_values
from tests.rasters import PLACE, write_raster

BANDS = ("red", "green", "blue")
REFLECTANCE = np.random.default_rng(0).uniform(0.03, 0.4, (64, 64, 3))
STORED = {
    "8 bits": (REFLECTANCE / 0.4 * 250).astype(np.uint8),
    "8 bits in 16": (REFLECTANCE / 0.4 * 250).astype(np.uint16),
    "reflectance": REFLECTANCE.astype(np.float32),
    "times 10,000, unsigned": (REFLECTANCE * 1e4).astype(np.uint16),
    "times 10,000, signed": (REFLECTANCE * 1e4).astype(np.int16),
    "times 10,000, floats": (REFLECTANCE * 1e4).astype(np.float32),
    "16 bits": (REFLECTANCE / 0.4 * 65000).astype(np.uint16),
    "8 bits in floats": (REFLECTANCE / 0.4 * 250).astype(np.float32),
}
KINDS = tuple(STORED)
SAME = {(kind, kind): "right" for kind in KINDS}
THOUSANDS = {
    (one, other): "warned" for one in KINDS[3:6] for other in KINDS[3:6] if one != other
}  # another type, the same values
OTHER = {
    ("8 bits", "8 bits in 16"): "warned", ("8 bits in 16", "8 bits"): "warned",
    ("8 bits", "8 bits in floats"): "warned", ("8 bits in floats", "8 bits"): "warned",
    ("8 bits", "reflectance"): "refused", ("reflectance", "8 bits"): "refused",
    ("8 bits", "times 10,000, unsigned"): "refused", ("times 10,000, unsigned", "8 bits"): "refused",
    ("8 bits", "16 bits"): "refused", ("16 bits", "8 bits"): "refused",
    ("reflectance", "times 10,000, signed"): "refused", ("times 10,000, signed", "reflectance"): "refused",
    ("reflectance", "times 10,000, floats"): "refused", ("times 10,000, floats", "reflectance"): "refused",
    ("times 10,000, unsigned", "16 bits"): "warned", ("times 10,000, unsigned", "8 bits in 16"): "warned",
}  # fmt: skip


def folder(root, domain, pixels, scaling=None, name="x", mask=None):
    path = write_raster(root / domain / "images" / f"{name}.tif", pixels, BANDS, **PLACE)
    if scaling:
        with rasterio.open(path, "r+") as dataset:
            dataset.scales, dataset.offsets = ((value,) * 3 for value in scaling)
    label = np.tile(np.arange(64, dtype=np.uint8) % 2, (64, 1)) if mask is None else mask
    write_raster(root / domain / "masks" / f"{name}.tif", label, **PLACE)
    return path


def opened(root, domain="a"):
    labels = RasterLabels(ValueCode((0, 1)))
    return GeoTiffTiles(root, bands=BANDS, classes=2, labels=labels, domains=(domain,))


def config_of(root, **changes):
    given = load_config("configs/cloud_shadow.py").replaced(
        {
            "bands": BANDS, "sensor": None,
            "classes": {"names": ("land", "water"), "palette": ((1, 1, 1), (2, 2, 2))},
            "data": {
                "kind": "geotiff", "root": str(root), "image_glob": "{domain}/images/*.tif",
                "mask_template": "{domain}/masks/{stem}.tif", "label_values": (0, 1), "source": ("a",),
                "target": ("b",), "crop": 32, "tile": 32, "holdout": 0.25,
            },
            "model.pixel_mean": (1.0,) * 3, "model.pixel_std": (1.0,) * 3,
        }
    )  # fmt: skip
    return given.replaced(changes)


def outcome(act, caplog):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        try:
            act()
        except UserError as error:
            said = str(error)
        else:
            return "warned" if caplog.text else "right"
    assert re.fullmatch(r".* accept these by config\.data\.check_values=warn", said)  # one line
    return "refused"


ALL = [*SAME.items(), *THOUSANDS.items(), *OTHER.items()]
QUICK = [*ALL[::12], *[*OTHER.items()][4::3]]
PAIRS = [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in ALL]


@pytest.mark.parametrize(("pair", "wanted"), PAIRS, ids=str)
def test_training_and_target(pair, wanted, tmp_path, caplog):
    for domain, kind in zip("ab", pair, strict=True):
        folder(tmp_path, domain, STORED[kind])
    assert outcome(lambda: open_splits(config_of(tmp_path)), caplog) == wanted
    softer = config_of(tmp_path, **{"data.check_values": "warn"})
    assert outcome(lambda: open_splits(softer), caplog) == wanted.replace("refused", "warned")
    off = config_of(tmp_path, **{"data.check_values": "off"})
    assert outcome(lambda: open_splits(off), caplog) == "right"


def predicted(scene, output, values, policy="stop"):
    settings = EvaluateConfig(window=32, overlap=8, batch_size=4)
    return predict_scene(
        lambda tiles: np.ones((*tiles.shape[:3], 2), np.float32), scene, output, settings=settings,
        names=("land", "water"), palette=((1, 1, 1), (2, 2, 2)), bands=BANDS, values=values,
        check_values=policy,
    )  # fmt: skip


@pytest.mark.parametrize(("pair", "wanted"), PAIRS, ids=str)
def test_training_and_a_scene(pair, wanted, tmp_path, caplog):
    folder(tmp_path, "a", STORED[pair[0]])
    scene = folder(tmp_path, "b", STORED[pair[1]])
    values = measure(opened(tmp_path), BANDS, None)
    output = tmp_path / "map.tif"
    assert outcome(lambda: predicted(scene, output, values), caplog) == wanted
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["map.tif"] * (wanted != "refused")
    assert outcome(lambda: predicted(scene, output, values, "off"), caplog) == "right"
    assert outcome(lambda: predicted(scene, output, None), caplog) == "right"  # a model of an earlier version


def test_parts_without_data_tell_nothing(tmp_path, caplog):
    """The first rows with data are looked at."""
    pixels = np.concatenate([np.zeros((96, 64, 3)), REFLECTANCE]).astype(np.float32)
    scene = write_raster(tmp_path / "s.tif", pixels, BANDS, **PLACE)
    trained = StatedValues(BANDS, "uint8", 3.0, 240.0)
    assert outcome(lambda: predicted(scene, tmp_path / "map.tif", trained), caplog) == "refused"
    empty = write_raster(tmp_path / "e.tif", np.zeros((64, 64, 3), np.float32), BANDS, **PLACE)
    assert outcome(lambda: predicted(empty, tmp_path / "map.tif", trained), caplog) == "right"


def test_measured_range(tmp_path):
    folder(tmp_path, "a", STORED["reflectance"])
    found = measure(opened(tmp_path), BANDS, "sentinel2")
    low, high = np.percentile(STORED["reflectance"], (1, 99))
    assert (found.dtype, found.sensor, found.bands) == ("float32", "sentinel2", BANDS)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_scale_and_offset(tmp_path, caplog):
    """Different ones in one source, and in source and target, are said; equal ones are not."""
    pixels = STORED["times 10,000, unsigned"]
    folder(tmp_path, "a", pixels, (1e-4, 0.0))
    folder(tmp_path, "b", pixels, (1e-4, 0.0))
    assert outcome(lambda: open_splits(config_of(tmp_path)), caplog) == "right"
    scene = folder(tmp_path, "b", pixels, (1e-4, -0.1))
    assert outcome(lambda: open_splits(config_of(tmp_path)), caplog) == "warned"
    assert (
        "files state scale 0.0001 and offset -0.1, those of the training scale 0.0001 and offset 0"
        in caplog.text
    )
    values = measure(opened(tmp_path), BANDS, None)
    assert outcome(lambda: predicted(scene, tmp_path / "map.tif", values), caplog) == "warned"
    folder(tmp_path, "a", pixels, (1e-4, -0.1), "y")
    assert outcome(lambda: opened(tmp_path), caplog) == "warned"
    assert "files state different scale and offset" in caplog.text


def test_a_run_keeps_what_it_was_trained_on(tmp_path):
    folder(tmp_path, "a", STORED["8 bits"])
    folder(tmp_path, "b", STORED["8 bits"])
    config = config_of(tmp_path)
    assert config.values_of_files is None
    kept = with_values(config, {"main": open_splits(config).values})
    save_config(kept, tmp_path / "config.json")
    stored = read_config(tmp_path / "config.json")
    assert stored.values_of_files == open_splits(config).values
    assert json.loads((tmp_path / "config.json").read_text())["stated_values"]["dtype"] == "uint8"
    assert stored.replaced({"bands": ("red",)}).values_of_files is None  # it is of other bands
    assert config.with_statements_of_run(stored).values_of_files == stored.values_of_files
    folder(tmp_path, "b", STORED["reflectance"])
    with pytest.raises(UserError, match=r"images of config\.data\.target: float32 values"):
        open_splits(stored, only="target")


def test_unknown_training_is_no_comparison():
    check("x", StatedValues(BANDS, "float32", 0.0, 1.0), None, "stop")


def test_classes_without_a_label(tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    for domain in "ab":
        folder(tmp_path, domain, STORED["8 bits"], mask=mask)
    config = config_of(tmp_path)
    assert absent_classes(config, open_splits(config)) == ("water",)
    folder(tmp_path, "a", STORED["8 bits"])
    assert absent_classes(config, open_splits(config)) == ()


@pytest.mark.parametrize("kind", ["image_folder", "geotiff"])
def test_masks_of_0_and_255_for_two_classes(kind, tmp_path):
    """Refused without their values; they work with them, and 255 may be no label if 1 is there."""
    mask = np.where(np.arange(64) % 2, 255, 0).astype(np.uint8) * np.ones((64, 1), np.uint8)
    for domain in "ab":
        folder(tmp_path, domain, STORED["8 bits"], mask=mask)
    changes = {"data.kind": kind, "data.label_values": None, "data.tile": None, "data.holdout": 0.0}
    with pytest.raises(UserError, match=r"masks hold 0 and 255 alone.*label_values = \(0, 255\)") as error:
        open_splits(config_of(tmp_path, **changes))
    assert "'water' has no labelled pixel" in str(error.value)
    source = open_splits(config_of(tmp_path, **{**changes, "data.label_values": (0, 255)})).source
    np.testing.assert_array_equal(source.class_pixels.sum(axis=0), [2048, 2048])
    mask[:8] = 1
    folder(tmp_path, "a", STORED["8 bits"], mask=mask)
    source = open_splits(config_of(tmp_path, **changes)).source
    np.testing.assert_array_equal(source.class_pixels.sum(axis=0), [28 * 64, 8 * 64])
