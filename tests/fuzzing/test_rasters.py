"""Damaged images: read as plain rasterio reads the same bytes, in training and prediction, or refused."""

import numpy as np
import pytest

from tests.fuzzing.mutations import damaged
from tests.fuzzing.outcome import try_all
from tests.rasters import PLACE, write_raster
from tests.reference_pixels import expected, read_both

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
RGB = {"photometric": "RGB"}
FORMATS = {
    "GeoTIFF, striped": ("a.tif", np.uint16, 4, {"nodata": 3, **PLACE}),
    "GeoTIFF, tiled": ("b.tif", np.uint8, 3, {"tiled": True, "blockxsize": 16, "blockysize": 16, **RGB}),
    "GeoTIFF, deflate": ("c.tif", np.uint16, 5, {"compress": "deflate", "interleave": "pixel"}),
    "GeoTIFF, float": ("d.tif", np.float32, 2, {"nodata": -9999, "compress": "lzw", "predictor": 3}),
    "PNG": ("e.png", np.uint8, 3, {"driver": "PNG"}),
    "PNG, alpha": ("f.png", np.uint16, 4, {"driver": "PNG"}),
    "JPEG": ("g.jpg", np.uint8, 3, {"driver": "JPEG"}),
    "BMP": ("h.bmp", np.uint8, 3, {"driver": "BMP"}),
    "ENVI header": ("i.img", np.int16, 3, {"driver": "ENVI", "nodata": -7}),
}


@pytest.mark.parametrize(("seed", "count"), [(0, 60), pytest.param(1, 400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", FORMATS)
def test_images(kind, seed, count, tmp_path, record_property):
    name, dtype, bands, options = FORMATS[kind]
    pixels = np.random.default_rng(5).integers(0, 9, (40, 50, bands)).astype(dtype)
    path = write_raster(tmp_path / name, pixels, **options)
    changed = path.with_suffix(".hdr") if kind == "ENVI header" else path
    good, number = changed.read_bytes(), iter(range(1 << 30))
    rest = path.read_bytes()

    def read(variant):
        # a folder each: GDAL remembers files by name
        folder = tmp_path / str(next(number))
        folder.mkdir()
        read.path = folder / name
        read.path.write_bytes(rest)
        (folder / changed.name).write_bytes(variant)
        return read_both(read.path)

    def is_exact(_, found):
        channels, alpha, pixels, missing = found
        # what a damaged stream holds beyond a block's end depends on GDAL's decoder, another with threads
        for options in ({}, {"NUM_THREADS": 2}):
            wanted, where = expected(read.path, channels, alpha, **options)
            if np.array_equal(pixels, wanted.astype(np.float32)) and np.array_equal(missing, where):
                return True
        return False

    assert is_exact(None, read(good))
    try_all(damaged(good, count, seed), read, is_exact, record_property, kind)
