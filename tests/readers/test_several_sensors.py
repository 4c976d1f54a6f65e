"""Domains of several sensors in one source, and images with an alpha band."""

import numpy as np
import pytest
import rasterio

from data_pipelines.readers.from_config import domain_sensors
from data_pipelines.readers.image_files import GeoTiffTiles
from data_pipelines.readers.label_codes import ValueCode
from data_pipelines.readers.labels import RasterLabels
from data_pipelines.sources import open_source
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.scene import Scene, open_scene
from tests.rasters import PLACE, write_raster

BANDS = ("blue", "green", "red", "nir", "swir16", "swir22")
TABLES = {"landsat5": (1, 2, 3, 4, 5, 7), "landsat8": (2, 3, 4, 5, 6, 7)}  # numbers of these bands


@pytest.fixture
def root(tmp_path):
    """An image a sensor, in bands B1 to B7, each full of 100 times its number; row 0 lacks data."""
    for sensor in TABLES:
        image = np.full((32, 32, 7), 100 * np.arange(1, 8), np.uint16)
        image[0] = 0
        names = [f"B{number}" for number in range(1, 8)]
        write_raster(tmp_path / f"{sensor}_image.tif", image, names, **PLACE)
        write_raster(tmp_path / f"{sensor}_label.tif", np.ones((32, 32), np.uint8), **PLACE)
    return tmp_path


def configuration(root, sensors):
    return load_config("configs/cloud_shadow.py", [
        f"--config.data.root={root}", "--config.data.target=landsat8", f"--config.data.sensors={sensors}",
    ])  # fmt: skip


def test_a_third_sensor_is_added_by_an_override(root):
    config = configuration(root, "landsat5=landsat5,landsat8=landsat8")
    for sensor, numbers in TABLES.items():
        source = open_source(config, (sensor,))
        image = source.read_image(source.records[0])
        assert (image[1:] == 100 * np.array(numbers)).all()
    both = open_source(config, tuple(TABLES))
    assert {record.domain for record in both.records} == set(TABLES)


def test_band_numbers_of_an_undeclared_sensor_are_rejected(root):
    with pytest.raises(UserError, match=r"landsat8_image\.tif: is of landsat8 .* data\.sensors"):
        open_source(configuration(root, "landsat5=landsat5"), ("landsat8",))
    (root / "landsat8_image.tif").rename(root / "third_image.tif")
    (root / "landsat8_label.tif").rename(root / "third_label.tif")
    with rasterio.open(root / "third_image.tif", "r+") as file:
        file.update_tags(SPACECRAFT_ID="LANDSAT_8")
    with pytest.raises(UserError, match=r"third_image\.tif: is of landsat8"):
        open_source(configuration(root, "none"), ("third",))
    assert open_source(configuration(root, "third=landsat9"), ("third",)).records


def test_nodata_is_that_of_the_domains_sensor(root):
    """0 on Landsat, nothing known for aerial images."""
    settings = {"bands": BANDS, "labels": RasterLabels(ValueCode((1,))), "classes": 1, "sensor": "landsat5",
                "image_glob": "{domain}_image.tif", "mask_template": "{domain}_label.tif"}  # fmt: skip
    source = GeoTiffTiles(
        root, sensors={"landsat8": "generic"}, file_bands=("thermal", *BANDS), domains=("landsat8",),
        **settings,
    )  # fmt: skip
    assert (source.read_label(source.records[0]) == 0).all()
    source = GeoTiffTiles(root, domains=("landsat5",), sensors={"landsat8": "generic"}, **settings)
    label = source.read_label(source.records[0])
    assert (label[0] == 255).all()
    assert (label[1:] == 0).all()


@pytest.mark.parametrize(
    ("sensors", "message"),
    [
        ("landsat8", ": 'landsat8' is not of the form DOMAIN=SENSOR"),
        ("a=landsat4", ", a = 'landsat4': must be one of sentinel2"),
    ],
)
def test_invalid_sensors(root, sensors, message):
    with pytest.raises(UserError, match=rf"config\.data\.sensors{message}"):
        domain_sensors(configuration(root, sensors))


def test_sensors_as_a_mapping(root):
    config = configuration(root, "none").replaced({"data.sensors": {"a": "landsat8"}})
    assert domain_sensors(config) == {"a": "landsat8"}
    assert domain_sensors(configuration(root, "none")) == {}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("cache", [0, 1 << 30])
def test_an_alpha_band_masks(tmp_path, dtype, cache):
    """In training as in prediction, and in the counts; other pixels keep their values, zeros as well."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 3, (40, 50, 4)).astype(dtype)
    pixels[..., 3] = np.where(rng.random((40, 50)) < 0.3, 0, 255)
    write_raster(tmp_path / "a/images/x.tif", pixels, photometric="RGB", alpha="yes", **PLACE)
    mask = rng.integers(0, 2, (40, 50), np.uint8)
    write_raster(tmp_path / "a/masks/x.tif", mask, **PLACE)
    source = GeoTiffTiles(
        tmp_path, bands=("red", "green", "blue"), labels=RasterLabels(ValueCode((0, 1))), classes=2,
        cache_bytes=cache,
    )  # fmt: skip
    valid = pixels[..., 3] > 0
    expected = np.where(valid[..., None], pixels[..., :3], 0)
    record = source.records[0]
    np.testing.assert_array_equal(source.read_image(record), expected)
    np.testing.assert_array_equal(source.read_label(record), np.where(valid, mask, 255))
    assert source.class_pixels.tolist() == [[(mask[valid] == label).sum() for label in range(2)]]
    with open_scene(tmp_path / "a/images/x.tif") as dataset:
        scene = Scene(dataset, tmp_path / "a/images/x.tif", ("red", "green", "blue"), None, None)
        for found, wanted in zip(scene.read(0, 40), (expected, valid), strict=True):
            np.testing.assert_array_equal(found, wanted)
