"""Images as clients post them."""

from pathlib import Path

import numpy as np
import rasterio

from tests.rasters import write_raster

OLD_RUN = Path(__file__).resolve().parents[1] / "checkpoints" / "old_run"
"""A stored run, with a scene and its map as an earlier version made it."""
UTM = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(500_000, 5_000_000, 10, 10)}


def pixels_of(height, width, bands=3, dtype=np.uint8, seed=0):
    """Blocks of 7 pixels of one colour each, so that a map has areas, with some noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 230, (-(-height // 7), -(-width // 7), bands))
    blocks = coarse.repeat(7, 0).repeat(7, 1)[:height, :width]
    return (blocks + rng.integers(-15, 16, blocks.shape)).astype(dtype)


def file_of(folder, pixels, driver="GTiff", **profile):
    """The bytes of an image file."""
    path = folder / f"posted.{driver.lower()}"
    more = UTM if driver == "GTiff" else {}
    return write_raster(path, pixels, driver=driver, **{**more, **profile}).read_bytes()
