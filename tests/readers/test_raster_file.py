"""Reading windows of one file: internal masks, missing pixels, handles that stay open."""

import threading

import numpy as np
import pytest
import rasterio

from data_pipelines.readers import raster_file
from data_pipelines.readers.image_files import GeoTiffTiles
from data_pipelines.readers.label_codes import ValueCode
from data_pipelines.readers.labels import RasterLabels
from data_pipelines.readers.raster_file import (
    OpenFiles,
    keep_files_open,
    missing_pixels,
    open_image,
    read_pixels,
)
from data_pipelines.readers.raster_header import read_header
from data_pipelines.records import Window
from spectralmoe_jax.inference.scene import Scene, open_scene
from tests.rasters import PLACE, write_raster

WINDOW = Window(5, 7, 20, 30)
INSIDE = np.s_[5:25, 7:37]


@pytest.fixture
def masked(tmp_path):
    """Three bands of 0 to 3, and the file's own mask, False in a third of the pixels."""
    rng = np.random.default_rng(0)
    pixels, valid = rng.integers(0, 4, (40, 50, 3)).astype(np.uint8), rng.random((40, 50)) > 0.3
    path = tmp_path / "a/images/x.tif"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_raster(path, pixels, ("red", "green", "blue"), **PLACE)
        with rasterio.open(path, "r+") as file:
            file.write_mask(valid)
    assert not path.with_suffix(".tif.msk").exists()
    return path, pixels, valid


def test_an_internal_mask(masked):
    """It goes before the nodata value of the sensor; zeros that it does not mask are data."""
    path, pixels, valid = masked
    assert read_header(path).has_nodata
    for nodata in (None, 0.0):
        found, missing = read_pixels(path, nodata=nodata)
        np.testing.assert_array_equal(missing, ~valid)
        np.testing.assert_array_equal(found, np.where(valid[..., None], pixels, 0))
        found, missing = read_pixels(path, WINDOW, (2, 0), nodata)
        np.testing.assert_array_equal(
            found, np.where(valid[INSIDE][..., None], pixels[INSIDE][..., [2, 0]], 0)
        )
        np.testing.assert_array_equal(missing, ~valid[INSIDE])
        np.testing.assert_array_equal(missing_pixels(path, WINDOW, nodata=nodata), ~valid[INSIDE])
    row, col = np.argwhere(valid)[0]
    assert missing_pixels(path, Window(int(row), int(col), 1, 1)) is None


def test_training_and_prediction_read_the_same_mask(masked):
    path, pixels, valid = masked
    write_raster(path.parents[1] / "masks/x.tif", np.ones((40, 50), np.uint8), **PLACE)
    source = GeoTiffTiles(
        path.parents[2], bands=("blue", "red"), labels=RasterLabels(ValueCode((1,))), classes=1,
        sensor="sentinel2",
    )  # fmt: skip
    record = source.records[0]
    np.testing.assert_array_equal(source.read_label(record), np.where(valid, 0, 255))
    assert source.class_pixels.tolist() == [[valid.sum()]]
    with open_scene(path) as dataset:
        found, where = Scene(dataset, path, ("blue", "red"), "sentinel2", None).read(0, 40)
    np.testing.assert_array_equal(where, valid)
    np.testing.assert_array_equal(found, source.read_image(record))
    np.testing.assert_array_equal(found, np.where(valid[..., None], pixels[..., [2, 0]], 0))


def test_scenes_with_band_names_from_the_configuration(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 9, (10, 12, 3)).astype(np.uint16)
    path = write_raster(tmp_path / "x.tif", pixels, **PLACE)
    with open_scene(path) as dataset:
        scene = Scene(dataset, path, ("nir", "green"), None, ("green", "red", "nir"))
        assert scene.indexes == [3, 1]
        np.testing.assert_array_equal(scene.read(2, 7)[0], pixels[2:7][..., [2, 0]])


@pytest.mark.parametrize("nodata", [0, 7, np.nan])
def test_a_pixel_is_missing_where_all_chosen_bands_are(tmp_path, nodata):
    rng = np.random.default_rng(1)
    pixels = rng.choice(np.array([nodata, 1, 2], np.float32), (40, 50, 3))
    path = write_raster(tmp_path / "x.tif", pixels, nodata=nodata, **PLACE)
    equal = np.isnan(pixels) if np.isnan(nodata) else pixels == nodata
    for bands in (None, (1,), (2, 0)):
        expected = equal[..., list(bands or (0, 1, 2))].all(axis=-1)
        np.testing.assert_array_equal(missing_pixels(path, None, bands), expected)
        np.testing.assert_array_equal(missing_pixels(path, WINDOW, bands, nodata=5), expected[INSIDE])
        found, missing = read_pixels(path, WINDOW, bands)
        np.testing.assert_array_equal(missing, expected[INSIDE])
        stored = pixels[..., list(bands or (0, 1, 2))]
        np.testing.assert_array_equal(found, np.where(np.isin(stored, (1, 2)), stored, 0)[INSIDE])


def test_only_required_bands_are_read(tmp_path, monkeypatch):
    pixels = np.zeros((10, 10, 5), np.uint8)
    pixels[..., 1] = 3
    path = write_raster(tmp_path / "x.tif", pixels)
    read, asked = rasterio.DatasetReader.read, []
    monkeypatch.setattr(raster_file, "open_as_stored", lambda path: Watched(rasterio.open(path), read, asked))
    assert missing_pixels(path, nodata=0) is None
    assert asked == [1, 2]


class Watched:
    """A dataset that notes which bands are read."""

    def __init__(self, dataset, read, asked):
        self.dataset, self._read, self.asked = dataset, read, asked

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.dataset.close()

    def read(self, band, **options):
        self.asked.append(band)
        return self._read(self.dataset, band, **options)


@pytest.fixture
def three(tmp_path):
    return [write_raster(tmp_path / f"{n}.tif", np.full((8, 8), n, np.uint8), **PLACE) for n in range(3)]


def test_files_stay_open_and_the_oldest_is_closed(three):
    files = OpenFiles(2)
    with files.used():
        handles = []
        for path in (three[0], three[1], three[0], three[2]):
            with open_image(path) as dataset:
                handles.append(dataset)
        assert handles[0] is handles[2]
        assert [handle.closed for handle in handles] == [False, True, False, False]
        with open_image(three[1]) as again:
            assert again is not handles[1]
        assert handles[0].closed
    with open_image(three[2]) as other:  # outside, a handle of its own
        assert other is not handles[3]
    assert other.closed
    assert not handles[3].closed
    files.close()
    assert handles[3].closed


def test_all_handles_are_closed_at_the_end(three):
    with keep_files_open(3):
        handles = []
        for path in three:
            with open_image(path) as dataset:
                handles.append(dataset)
        assert not any(handle.closed for handle in handles)
        with keep_files_open(1), open_image(three[0]) as inner:
            assert inner is not handles[0]
        assert inner.closed
        with open_image(three[0]) as outer:
            assert outer is handles[0]
    assert all(handle.closed for handle in handles)


def test_each_thread_has_its_own_handles(three):
    files, handles = OpenFiles(2), []

    def use():
        with files.used(), open_image(three[0]) as dataset:
            handles.append(dataset)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
        thread.join()
    assert len({id(handle) for handle in handles}) == 3


@pytest.mark.parametrize(
    ("side", "cache", "image_by_window", "label_by_window"),
    [
        (64, 1 << 30, False, False),  # all fit
        (64, 12 << 10, True, True),  # 12 KiB and 4 KiB: more than a quarter of the cache
        (64, 64 << 10, False, False),
        (2600, 1 << 30, True, False),  # 19 MiB are more than are decoded for a window
    ],
)
def test_files_read_by_window(tmp_path, side, cache, image_by_window, label_by_window):
    write_raster(tmp_path / "a/images/x.tif", np.zeros((side, side, 3), np.uint8), tiled=True, **PLACE)
    write_raster(tmp_path / "a/masks/x.tif", np.ones((side, side), np.uint8), tiled=True, **PLACE)
    write_raster(tmp_path / "b/images/x.png", np.zeros((16, 16, 3), np.uint8), driver="PNG")
    write_raster(tmp_path / "b/masks/x.tif", np.ones((16, 16), np.uint8))
    source = GeoTiffTiles(
        tmp_path, bands=("red", "green", "blue"), labels=RasterLabels(ValueCode((1,))), classes=1,
        image_glob="*/images/*", cache_bytes=cache,
    )  # fmt: skip
    large, small = source.records
    assert (large.by_window, large.label_by_window) == (image_by_window, label_by_window)
    assert not small.by_window  # a PNG is decoded from its start


def test_medium_files_are_read_by_window_when_they_fill_the_cache(tmp_path):
    """3 MiB, and 1 MiB of labels, in 16 MiB: one of 64 files is missed 15 times of 16, 2.8 MiB a window."""
    for count, by_window in ((2, False), (8, False), (64, True)):
        for number in range(count):
            path = tmp_path / f"{count}/a/images/{number}.tif"
            if not path.exists():
                profile = {"tiled": True, "compress": "deflate", "sparse_ok": True, **PLACE}
                write_raster(path, np.zeros((1024, 1024, 3), np.uint8), **profile)
                write_raster(
                    path.parents[1] / f"masks/{number}.tif", np.ones((1024, 1024), np.uint8), **profile
                )
        source = GeoTiffTiles(
            tmp_path / str(count), bands=("red", "green", "blue"), labels=RasterLabels(ValueCode((1,))),
            classes=1, cache_bytes=16 << 20,
        )  # fmt: skip
        assert {record.by_window for record in source.records} == {by_window}
        assert not any(record.label_by_window for record in source.records)
