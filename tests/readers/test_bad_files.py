"""Errors of a file are one line that names it, raised at opening or at reading."""

import logging
import struct

import numpy as np
import pytest

from data_pipelines.readers.image_files import GeoTiffTiles
from data_pipelines.readers.label_codes import ValueCode
from data_pipelines.readers.labels import RasterLabels
from data_pipelines.records import Window
from spectralmoe_jax.errors import UserError
from tests.rasters import PLACE, write_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
BANDS = ("red", "nir")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        image = rng.integers(1, 3000, (64, 64, 2)).astype(np.int16)
        write_raster(tmp_path / f"x/images/{name}.tif", image, BANDS, tiled=True,
                     blockxsize=16, blockysize=16,
                     **PLACE)  # fmt: skip
        write_raster(tmp_path / f"x/masks/{name}.tif", rng.integers(0, 3, (64, 64)).astype(np.uint8), **PLACE)
    return tmp_path


def open_tiles(root, **changes):
    labels = RasterLabels(ValueCode((1, 2), ignore=(0,)))
    return GeoTiffTiles(root, **{"bands": BANDS, "labels": labels, "classes": 2, **changes})


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def empty(root):
    (root / "x/images/b.tif").write_bytes(b"")


def cut_the_header(root):
    cut(root / "x/images/b.tif", 0.01)


def without_a_band(root):
    write_raster(root / "x/images/b.tif", np.ones((64, 64, 2), np.int16), ("red", "green"))


def band_twice(root):
    write_raster(root / "x/images/b.tif", np.ones((64, 64, 3), np.int16), ("red", "nir", "nir"))


def unknown_label(root):
    write_raster(root / "x/masks/b.tif", np.full((64, 64), 7, np.uint8), **PLACE)


def fraction_as_label(root):
    write_raster(root / "x/masks/b.tif", np.full((64, 64), 1.5, np.float32), **PLACE)


def mask_of_colours(root):
    write_raster(root / "x/masks/b.tif", np.zeros((64, 64, 3), np.uint8), **PLACE)


def cut_the_mask(root):
    cut(root / "x/masks/b.tif", 0.6)


def no_mask(root):
    (root / "x/masks/b.tif").unlink()


def mask_elsewhere(root):
    place = {
        **PLACE,
        "transform": PLACE["transform"].translation(500_640, 5_000_000) @ PLACE["transform"].scale(10, -10),
    }
    write_raster(root / "x/masks/b.tif", np.ones((64, 64), np.uint8), **place)


def mask_of_another_crs(root):
    write_raster(root / "x/masks/b.tif", np.ones((64, 64), np.uint8), **{**PLACE, "crs": "EPSG:32634"})


def same_name(root):
    (root / "x/images/b.png").write_bytes((root / "x/images/b.tif").read_bytes())


def complex_pixels(root):
    write_raster(root / "x/images/b.tif", np.ones((64, 64, 2), np.complex64), BANDS)


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (empty, ["images/b.tif", "not a readable image"]),
        (cut_the_header, ["images/b.tif", "truncated or not a readable image"]),
        (without_a_band, ["images/b.tif", "no band 'nir'", "red, green"]),
        (band_twice, ["images/b.tif", "2 of its bands are called nir"]),
        (unknown_label, ["masks/b.tif", "4096 pixels hold 7", "data.label_values", "data.ignore_values"]),
        (fraction_as_label, ["masks/b.tif", "hold 1.5"]),
        (mask_of_colours, ["masks/b.tif", "3 bands of uint8", "data.label_values"]),
        (cut_the_mask, ["masks/b.tif", "truncated"]),
        (no_mask, ["images/b.tif", "no mask", "masks/b.tif", "data.mask_template"]),
        (mask_elsewhere, ["masks/b.tif", "lies elsewhere", "images/b.tif"]),
        (mask_of_another_crs, ["masks/b.tif: lies in EPSG:32634", "images/b.tif in EPSG:32633", "reproject"]),
        (same_name, ["images/b", "same name", "rename"]),
        (complex_pixels, ["images/b.tif", "complex64", "not supported"]),
    ],
)
def test_opening_names_the_file_and_the_problem(folder, spoil, parts):
    spoil(folder)
    with pytest.raises(UserError) as error:
        open_tiles(folder, image_glob="*/images/*")
    assert all(part in str(error.value) for part in parts), error.value
    assert "\n" not in str(error.value)


def overwrite(path, share):
    data = bytearray(path.read_bytes())
    start = int(share * len(data))
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)


@pytest.mark.parametrize("spoil", [cut, overwrite])
@pytest.mark.parametrize("count", [2, 7])
def test_a_truncated_image_is_named_when_it_is_read(folder, count, spoil):
    """Its header is whole, so that it is known only then; the part that is there can be read."""
    pixels = np.random.default_rng(0).integers(1, 3000, (256, 256, count)).astype(np.int16)
    names = (*BANDS, *"abcde")[:count]
    write_raster(folder / "x/images/b.tif", pixels, names, driver="COG", blocksize=128, overviews="none")
    write_raster(folder / "x/masks/b.tif", np.ones((256, 256), np.uint8))
    spoil(folder / "x/images/b.tif", 0.7)
    source = open_tiles(folder, cache_bytes=0)
    record = source.records[1]
    part = source.read_image(record, Window(5, 5, 99, 99))
    np.testing.assert_array_equal(part, pixels[5:104, 5:104, :2])
    with pytest.raises(UserError, match=r"images/b\.tif: truncated"):
        source.read_image(record, Window(200, 200, 24, 24))
    with pytest.raises(UserError, match=r"images/b\.tif: truncated"):
        source.read_image(record)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_values_are_named_when_they_are_read(folder, value):
    pixels = np.ones((64, 64, 2), np.float32)
    pixels[50, 3, 1] = value
    write_raster(folder / "x/images/a.tif", pixels, BANDS)
    write_raster(folder / "x/images/b.tif", pixels, BANDS, nodata=np.nan)
    source = open_tiles(folder)
    with pytest.raises(UserError, match=r"images/a\.tif: 1 values are not finite"):
        source.read_image(source.records[0])
    if np.isnan(value):
        image = source.read_image(source.records[1])
        assert (image[50, 3] == (1, 0)).all()  # declared: the one value reads as zero


VRT = '<VRTDataset rasterXSize="{}" rasterYSize="{}">{}</VRTDataset>'
VRT_BAND = '<VRTRasterBand dataType="Byte" band="1"/>'


def tiff_of_size(width, height):
    """A TIFF of 8 bits whose directory says so, with no strip."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 1)]
    fields = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    return struct.pack("<2sHIxx", b"II", 42, 10) + struct.pack("<H", len(tags)) + fields + bytes(4)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.vrt", VRT.format(0, 0, "").encode()),
        ("a.vrt", VRT.format(0, 5, VRT_BAND).encode()),
        ("a.vrt", VRT.format(5, 5, "").encode()),
        ("a.tif", tiff_of_size(0, 0)),
        ("a.tif", tiff_of_size(5, 0)),
    ],
)
def test_an_image_without_pixels_is_named(tmp_path, name, content):
    (tmp_path / "x/images").mkdir(parents=True)
    path = tmp_path / "x/images" / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        open_tiles(tmp_path, image_glob="*/images/*")
    assert str(error.value) == f"{path}: has no pixels: remove the file, or write it anew"


def test_spaces_and_non_ascii_names_are_accepted(folder):
    moved = folder.rename(folder.with_name("Müritz 北京 ß"))
    (moved / "x").rename(moved / "é place")
    source = open_tiles(moved)
    assert [record.domain for record in source.records] == ["é place"] * 2
    for record in source.records:
        assert source.read_image(record).shape == (64, 64, 2)
        assert set(np.unique(source.read_label(record))) <= {0, 1, 255}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"domains": ("x", "y")}, ["no images of domain 'y'", "there are x"]),
        ({"tile": 0}, ["data.tile = 0"]),
        ({"bands": ("red", "red")}, ["config.bands", "'red' twice"]),
        ({"image_glob": "{domain}/none/*.tif"}, ["data.image_glob='{domain}/none/*.tif'"]),
    ],
)
def test_settings_that_match_no_files(folder, changes, parts):
    with pytest.raises(UserError) as error:
        open_tiles(folder, **changes)
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize(
    ("values", "ignore", "part"),
    [((1, (2, 1)), (), "1 twice"), ((1, 2), (2,), "2 twice"), ((), (0,), "names 0 classes")],
)
def test_label_values_are_checked(values, ignore, part):
    with pytest.raises(UserError, match=part):
        ValueCode(values, ignore)


@pytest.mark.parametrize(("value", "warned"), [(1 << 24, False), ((1 << 24) + 1, True), (-(1 << 25), True)])
def test_rounded_integers_are_warned_of_once_per_file(folder, caplog, value, warned):
    pixels = np.ones((64, 64, 2), np.int32)
    pixels[9, 9, 1] = value
    for name in ("a", "b"):
        write_raster(folder / f"x/images/{name}.tif", pixels, BANDS, **PLACE)
    source = open_tiles(folder, cache_bytes=0)
    with caplog.at_level(logging.WARNING):
        for record in (*source.records, *source.records):
            assert source.read_image(record)[9, 9, 1] == np.float32(value)
    told = [entry.getMessage() for entry in caplog.records if "rounded above 16777216" in entry.getMessage()]
    assert len(told) == (2 if warned else 0)
    for name, line in zip("ab", told, strict=False):
        assert f"images/{name}.tif: holds whole numbers up to {abs(value)}" in line
