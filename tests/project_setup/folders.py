"""Small folders of images and labels to write configurations for."""

from pathlib import Path

import numpy as np

from tests.rasters import PLACE, write_raster

NAMES = ("blue", "green", "red", "nir")


def write_folder(root: Path, seed: int = 0) -> Path:
    """Two places with two images each, four named bands of 16 bits, labels 1 to 3, a fifth of them 0."""
    rng = np.random.default_rng(seed)
    for place in ("north", "south"):
        for number in range(2):
            label = rng.integers(1, 4, (6, 7)).repeat(16, 0).repeat(16, 1)
            pixels = 700 * label[..., None] + rng.integers(1, 900, (*label.shape, 4))
            label[rng.random(label.shape) < 0.2] = 0
            write_raster(root / place / "images" / f"{number}.tif", pixels.astype(np.uint16), NAMES, **PLACE)
            write_raster(root / place / "labels" / f"{number}.tif", label.astype(np.uint8), **PLACE)
    return root
