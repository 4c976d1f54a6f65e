"""Label rasters of every type, and pixels that they leave out themselves."""

import numpy as np
import pytest
import rasterio

from data_pipelines.readers.image_files import GeoTiffTiles, ImageFolder
from data_pipelines.readers.label_codes import ColourCode, ValueCode
from data_pipelines.readers.labels import RasterLabels
from spectralmoe_jax.errors import UserError
from tests.rasters import PLACE, write_raster

IDS = np.random.default_rng(0).integers(0, 3, (12, 10))
PALETTE = ((200, 0, 0), (0, 200, 0), (0, 0, 200))


def labels_of(root, values, code, **profile):
    write_raster(root / "a/images/x.tif", np.ones((*IDS.shape, 1), np.uint8), **PLACE)
    write_raster(root / "a/masks/x.tif", values, **PLACE, **profile)
    classes = 3
    source = GeoTiffTiles(root, bands=("z",), classes=classes, labels=RasterLabels(code))
    label = source.read_label(source.records[0])
    assert source.class_pixels.sum() == np.count_nonzero(label != 255)
    return label


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]
)
@pytest.mark.parametrize("by_value", [True, False])
def test_every_type_of_numbers(dtype, by_value, tmp_path):
    code = ValueCode((1, 2, 3)) if by_value else ColourCode(PALETTE)
    label = labels_of(tmp_path, (IDS + by_value).astype(dtype), code)
    np.testing.assert_array_equal(label, IDS)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "float32"])
def test_negative_values(dtype, tmp_path):
    label = labels_of(tmp_path, (IDS - 2).astype(dtype), ValueCode((-2, -1, 0)))
    np.testing.assert_array_equal(label, IDS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fractions_as_the_type_stores_them(dtype, tmp_path):
    label = labels_of(tmp_path, (IDS / 10).astype(dtype), ValueCode((0, 0.1, 0.2)))
    np.testing.assert_array_equal(label, IDS)


@pytest.mark.parametrize("by_value", [True, False])
@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("float32", np.nan), ("float64", np.nan), ("float32", -9999), ("int16", -9999), ("uint8", 200),
     ("uint16", 65535), ("int32", -(2**31)), ("float32", float(np.finfo(np.float32).min))],
)  # fmt: skip
def test_nodata_is_no_label(dtype, nodata, by_value, tmp_path):
    """Where rasterio's own mask of the file is 0."""
    values = (IDS + by_value).astype(dtype)
    values[2:5, 3:7] = nodata
    code = ValueCode((1, 2, 3)) if by_value else ColourCode(PALETTE)
    label = labels_of(tmp_path, values, code, nodata=nodata)
    with rasterio.open(tmp_path / "a/masks/x.tif") as dataset:
        valid = dataset.read_masks(1) != 0
    assert np.count_nonzero(~valid) == 12
    np.testing.assert_array_equal(label, np.where(valid, IDS, 255))


def test_not_a_number_without_a_declaration(tmp_path):
    values = (IDS + 1).astype(np.float32)
    values[0, :3] = np.nan
    label = labels_of(tmp_path, values, ValueCode((1, 2, 3)))
    np.testing.assert_array_equal(label, np.where(np.isnan(values), 255, IDS))


def test_a_mask_inside_the_label_file(tmp_path):
    write_raster(tmp_path / "a/images/x.tif", np.ones((*IDS.shape, 1), np.uint8), **PLACE)
    path = write_raster(tmp_path / "a/masks/x.tif", (IDS + 1).astype(np.uint8), **PLACE)
    valid = np.ones(IDS.shape, bool)
    valid[4:, 6:] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(valid)
    source = GeoTiffTiles(tmp_path, bands=("z",), classes=3, labels=RasterLabels(ValueCode((1, 2, 3))))
    np.testing.assert_array_equal(source.read_label(source.records[0]), np.where(valid, IDS, 255))


@pytest.mark.parametrize("by_value", [True, False])
def test_a_class_that_is_nodata_is_refused(by_value, tmp_path):
    code = ValueCode((0, 1, 2)) if by_value else ColourCode(PALETTE)
    with pytest.raises(UserError, match="declares 0 as nodata, which means no label, but that is a class"):
        labels_of(tmp_path, IDS.astype(np.uint8), code, nodata=0)
    named = ValueCode((1, 2), (0,))
    label = labels_of(tmp_path, IDS.astype(np.uint8), named, nodata=0)
    np.testing.assert_array_equal(label, np.where(IDS == 0, 255, IDS - 1))


@pytest.mark.parametrize(("value", "name"), [(1.5, "1.5"), (np.inf, "inf"), (7, "7")])
def test_values_that_nobody_named(value, name, tmp_path):
    values = (IDS + 1).astype(np.float32)
    values[0, 0] = value
    with pytest.raises(UserError, match=f"1 pixels hold {name}, which is neither in data.label_values"):
        labels_of(tmp_path, values, ValueCode((1, 2, 3)))


def test_an_image_folder_reads_stored_values(tmp_path):
    """Grey masks of 0 and 255 are two classes if the values say so."""
    write_raster(tmp_path / "a/images/x.png", np.ones((12, 10, 3), np.uint8), driver="PNG")
    write_raster(tmp_path / "a/masks/x.png", np.where(IDS > 0, 255, 0).astype(np.uint8), driver="PNG")
    source = ImageFolder(
        tmp_path, palette=PALETTE[:2], bands=("red", "green", "blue"), image_glob="*/images/*.png",
        label_values=(0, 255),
    )  # fmt: skip
    np.testing.assert_array_equal(source.read_label(source.records[0]), IDS > 0)
