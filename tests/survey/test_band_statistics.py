"""Statistics of the bands of image files against NumPy's over the same values."""

import numpy as np
import pytest

from data_pipelines.survey.band_statistics import band_statistics
from data_pipelines.survey.bands import Bands
from spectralmoe_jax.errors import UserError
from tests.rasters import write_raster

NAMES = ("a", "b", "c")
BANDS = Bands(NAMES, None, None, {}, "", "")


def files(tmp_path, images, **profile):
    return [
        ("here", write_raster(tmp_path / f"{number}.tif", pixels, NAMES, **profile))
        for number, pixels in enumerate(images)
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_against_numpy(tmp_path, dtype):
    rng = np.random.default_rng(0)
    images = [rng.normal((50, 90, 120), (5, 20, 2), (30 + 7 * n, 40, 3)).astype(dtype) for n in range(3)]
    found = band_statistics(files(tmp_path, images), BANDS)
    values = np.concatenate([image.reshape(-1, 3) for image in images]).astype(np.float64)
    np.testing.assert_allclose(found.mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, values.std(axis=0), rtol=1e-12)
    assert (found.share, found.zeros, found.nodata) == (1.0, 0.0, ())


@pytest.mark.parametrize("nodata", [-9999.0, np.nan])
def test_nodata_is_left_out(tmp_path, nodata):
    """In whole pixels, and in single bands; pixels that are zero in every band, too."""
    rng = np.random.default_rng(0)
    image = rng.normal(100, 10, (40, 50, 3)).astype(np.float32)
    kept = rng.random(image.shape) < 0.9
    kept[:7] = False
    image[~kept] = nodata
    image[20:23] = 0
    kept[20:23] = False
    found = band_statistics(files(tmp_path, [image], nodata=nodata), BANDS)
    of_band = [image[..., band][kept[..., band]].astype(np.float64) for band in range(3)]
    np.testing.assert_allclose(found.mean, [values.mean() for values in of_band], rtol=1e-12)
    np.testing.assert_allclose(found.std, [values.std() for values in of_band], rtol=1e-10)
    np.testing.assert_allclose(found.data, kept.reshape(-1, 3).mean(axis=0))
    assert found.zeros == pytest.approx(3 / 40)
    assert len(found.nodata) == 1


def test_nodata_of_the_sensor(tmp_path):
    """Where files state none: a pixel of Landsat's 0 in every band is missing."""
    image = np.full((10, 10, 3), 500, np.uint16)
    image[:5] = 0
    image[5:, :5] = 700
    path = write_raster(tmp_path / "a.tif", image, ("blue", "green", "red"))
    bands = Bands(("blue", "green", "red"), None, "landsat8", {}, "", "")
    found = band_statistics([("here", path)], bands)
    np.testing.assert_array_equal(found.mean, 600)
    np.testing.assert_array_equal(found.data, 0.5)


def test_bands_without_data_are_not_used(tmp_path):
    image = np.random.default_rng(0).integers(1, 9, (10, 10, 3)).astype(np.int16)
    image[..., 1] = -1
    image[..., 2] = 4
    found = band_statistics(files(tmp_path, [image], nodata=-1), BANDS)
    assert found.used.tolist() == [True, False, False]


def test_large_data_are_sampled_evenly(tmp_path):
    """A part of the rows that was asked for, from all over the file."""
    rows = np.arange(1, 1001)[:, None, None]
    image = np.broadcast_to(rows, (1000, 8, 3)).astype(np.float32)
    found = band_statistics(files(tmp_path, [image]), BANDS, most_values=image.size // 10)
    assert 0.05 < found.share < 0.15
    np.testing.assert_allclose(found.mean, image.mean(), rtol=0.1)
    np.testing.assert_allclose(found.std, image.std(), rtol=0.1)


def test_no_data_and_no_numbers(tmp_path):
    with pytest.raises(UserError, match="no pixel has data"):
        band_statistics(files(tmp_path, [np.full((4, 4, 3), 7, np.uint8)], nodata=7), BANDS)
    image = np.ones((4, 4, 3), np.float32)
    image[0, 0] = np.inf
    infinite = files(tmp_path, [image])
    with pytest.raises(UserError, match="3 values are not finite"):
        band_statistics(infinite, BANDS)
