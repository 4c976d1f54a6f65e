"""What is no data: nodata values of each band, masks, alpha bands and combinations of them."""

import itertools

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp, Resampling
from rasterio.shutil import copy

from data_pipelines.readers.image_files import GeoTiffTiles
from data_pipelines.readers.label_codes import ValueCode
from data_pipelines.readers.labels import RasterLabels
from data_pipelines.readers.raster_file import read_pixels, read_values
from data_pipelines.readers.validity import has_mask, is_nodata
from spectralmoe_jax.inference.scene import Scene, open_scene
from tests.rasters import PLACE, write_raster
from tests.reference_pixels import check, expected

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
SIZE = (24, 30)
COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)


def small(bands, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 3, (*SIZE, bands)).astype(dtype)


def with_mask(path, inside=True, seed=9):
    valid = np.random.default_rng(seed).random(SIZE) > 0.4
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(path, "r+") as file:
        file.write_mask(valid)
    assert path.with_name(path.name + ".msk").exists() != inside
    return valid


def with_colours(path, colours):
    with rasterio.open(path, "r+") as file:
        file.colorinterp = colours
    return path


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_an_alpha_band_in_any_place(place, dtype, tmp_path):
    pixels = small(5, dtype)
    path = write_raster(tmp_path / "x.tif", pixels, alpha="no", **PLACE)
    colours = [*COLOURS, ColorInterp.undefined]
    with_colours(path, [*colours[:place], ColorInterp.alpha, *colours[place:]])
    check(path, alpha=(place,), lost=(pixels[..., place] == 0).sum())


@pytest.mark.parametrize("nodata", [0, 1, 2])
def test_alpha_and_nodata(nodata, tmp_path):
    """Either makes a pixel missing."""
    pixels = small(4)
    path = write_raster(tmp_path / "x.tif", pixels, nodata=nodata, photometric="RGB", alpha="yes", **PLACE)
    _, missing = check(path, alpha=(3,))
    alone = (pixels[..., :3] == nodata).all(-1)
    assert alone.any()
    np.testing.assert_array_equal(missing, alone | (pixels[..., 3] == 0))


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("nodata", [None, 0, 1])
def test_a_mask_goes_before_nodata(inside, nodata, tmp_path):
    path = write_raster(tmp_path / "x.tif", small(3), nodata=nodata, photometric="RGB", **PLACE)
    valid = with_mask(path, inside)
    pixels, missing = check(path)
    np.testing.assert_array_equal(missing, ~valid)
    np.testing.assert_array_equal(pixels[valid], small(3)[valid])
    _, is_data = read_values(path)
    np.testing.assert_array_equal(is_data, np.repeat(valid[..., None], 3, axis=-1))


def test_a_mask_beside_an_alpha_band(tmp_path):
    path = write_raster(tmp_path / "x.tif", small(4), photometric="RGB", alpha="yes", **PLACE)
    valid = with_mask(path, inside=False)
    _, missing = check(path, alpha=(3,))
    np.testing.assert_array_equal(missing, ~valid | (small(4)[..., 3] == 0))


def test_nan_is_no_data_beside_a_mask(tmp_path):
    """GDAL's mask says that it is; it cannot be."""
    pixels = small(2, np.float32)
    pixels[3:6], pixels[8, :, 0] = np.nan, np.nan
    path = write_raster(tmp_path / "x.tif", pixels, nodata=np.nan, **PLACE)
    valid = with_mask(path)
    found, missing = read_pixels(path)
    np.testing.assert_array_equal(missing, ~valid | np.isnan(pixels).all(-1))
    np.testing.assert_array_equal(found, np.where(missing[..., None], 0, np.nan_to_num(pixels)))


def virtual(path, nodata=(), masks=False, of="x.tif"):
    """A virtual raster of the bands of a file, with nodata or a mask of each; masks are of the next band."""

    def source(number):
        name = f"<SourceFilename relativeToVRT='1'>{of}</SourceFilename>"
        return f"<SimpleSource>{name}<SourceBand>{number}</SourceBand></SimpleSource>"

    bands = ""
    for number, value in enumerate(nodata, 1):
        bands += f"<VRTRasterBand dataType='Byte' band='{number}'>{source(number)}"
        bands += "" if value is None else f"<NoDataValue>{value}</NoDataValue>"
        if masks:
            masked = f"<VRTRasterBand dataType='Byte'>{source(number + 1)}</VRTRasterBand>"
            bands += f"<MaskBand>{masked}</MaskBand>"
        bands += "</VRTRasterBand>"
    path.write_text(f"<VRTDataset rasterXSize='{SIZE[1]}' rasterYSize='{SIZE[0]}'>{bands}</VRTDataset>")
    return path


@pytest.mark.parametrize("nodata", [(0, 1, 2), (0, 0, 0), (0, None, 1), (None, None, 2), (0, -9999, 1)])
def test_nodata_of_each_band(nodata, tmp_path):
    pixels = small(3)
    write_raster(tmp_path / "x.tif", pixels, **PLACE)
    path = virtual(tmp_path / "x.vrt", nodata)
    found, missing = check(path)
    absent = np.stack([pixels[..., band] == nodata[band] for band in range(3)], axis=-1)
    np.testing.assert_array_equal(missing, absent.all(-1))
    np.testing.assert_array_equal(found, np.where(absent, 0, pixels))
    with open_scene(path) as dataset:  # two of the bands, in another order
        scene = Scene(dataset, path, ("c", "a"), None, ("a", "b", "c"))
        np.testing.assert_array_equal(scene.read(0, SIZE[0])[1], ~absent[..., [2, 0]].all(-1))


def test_masks_of_each_band(tmp_path):
    pixels = small(3)
    write_raster(tmp_path / "x.tif", pixels, **PLACE)
    path = virtual(tmp_path / "x.vrt", (None, None), masks=True)
    found, missing = check(path)
    absent = pixels[..., 1:] == 0
    np.testing.assert_array_equal(missing, absent.all(-1))
    np.testing.assert_array_equal(found, np.where(absent, 0, pixels[..., :2]))
    with rasterio.open(path) as dataset:
        assert has_mask(dataset)


def test_nodata_values_of_all_bands_together(tmp_path):
    """GDAL's tag: a pixel is masked where each band has its value; one alone is data."""
    path = write_raster(tmp_path / "x.tif", small(3), photometric="RGB", **PLACE)
    with rasterio.open(path, "r+") as file:
        file.update_tags(NODATA_VALUES="0 1 2")
    _, missing = check(path)
    np.testing.assert_array_equal(missing, (small(3) == (0, 1, 2)).all(-1))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_a_value_is_nodata_by_the_test_of_gdal(dtype, tmp_path):
    """Fractions of whole numbers are cut, floats may differ in the last digits, and large ones overflow."""
    stated = (0, 1, 5.5, -0.5, -9999, 65535, 0.1, 1e20, -3.4e38, float(np.finfo(np.float32).min))
    if np.dtype(dtype).kind == "f":
        near = [dtype(value) * dtype(1 + step * 1e-8) for value in stated for step in range(-70, 70, 5)]
        values = np.array(
            [*near, *(-(10.0**power) for power in range(25, 39)), np.inf, -np.inf, np.nan], dtype
        )
    else:
        limits = np.iinfo(dtype)
        values = np.unique(np.clip(np.array([-9999, -1, 0, 1, 5, 6, 65535]), limits.min, limits.max)).astype(
            dtype
        )
    for value in stated:
        if np.dtype(dtype).kind != "f" and not limits.min <= value <= limits.max:
            assert not is_nodata(values, value).any()
            continue
        path = write_raster(tmp_path / "x.tif", values[None], nodata=value)
        with rasterio.open(path) as dataset:
            np.testing.assert_array_equal(is_nodata(values, dataset.nodata), dataset.read_masks(1)[0] == 0)


def test_training_and_prediction_agree_on_every_combination(tmp_path):
    """Labels, pixels and counts of the reader for training are those of a scene, whatever masks a file."""
    combinations = list(itertools.product((None, 1), (True, False), (True, False)))
    for number, (nodata, alpha, masked) in enumerate(combinations):
        path = tmp_path / f"a/images/{number}.tif"
        options = {"nodata": nodata, "photometric": "RGB"} | ({"alpha": "yes"} if alpha else {})
        write_raster(path, small(3 + alpha, seed=number), **options, **PLACE)
        if masked:
            with_mask(path, inside=bool(number % 3), seed=number)
        write_raster(tmp_path / f"a/masks/{number}.tif", small(1)[..., 0], **PLACE)
    source = GeoTiffTiles(
        tmp_path, bands=("red", "green", "blue"), labels=RasterLabels(ValueCode((0, 1, 2))), classes=3,
    )  # fmt: skip
    assert len(source.records) == len(combinations) == 8
    for record, (_, alpha, _) in zip(source.records, combinations, strict=True):
        pixels, missing = expected(record.image, (0, 1, 2), (3,) if alpha else ())
        np.testing.assert_array_equal(source.read_image(record), pixels)
        np.testing.assert_array_equal(source.read_label(record), np.where(missing, 255, small(1)[..., 0]))
        with open_scene(record.image) as dataset:
            scene = Scene(dataset, record.image, ("red", "green", "blue"), None, None)
            for found, wanted in zip(scene.read(0, SIZE[0]), (pixels, ~missing), strict=True):
                np.testing.assert_array_equal(found, wanted)
    counts = [(~expected(record.image, (0, 1, 2), (3,) if alpha else ())[1]).sum()
              for record, (_, alpha, _) in zip(source.records, combinations, strict=True)]  # fmt: skip
    assert source.class_pixels.sum(axis=1).tolist() == counts


def test_masks_with_overviews_and_copies(tmp_path):
    """Of a cloud-optimised file, as tools of the cloud write them."""
    path = write_raster(tmp_path / "x.tif", small(3), photometric="RGB", **PLACE)
    valid = with_mask(path)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2], Resampling.nearest)
    copy(path, tmp_path / "cog.tif", driver="COG", compress="deflate")
    np.testing.assert_array_equal(check(tmp_path / "cog.tif")[1], ~valid)
