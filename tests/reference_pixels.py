"""Images as training and prediction read them, and as plain rasterio does with the masks of single bands."""

import numpy as np
import rasterio
from rasterio.enums import MaskFlags

from data_pipelines.readers.file_records import find_channels
from data_pipelines.readers.raster_file import missing_pixels, read_pixels
from data_pipelines.readers.raster_header import read_header
from data_pipelines.records import Window
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.scene import Scene, open_scene, reading


def read_both(path, sensor_nodata=None):
    """Read all bands of an image as training does and as prediction does; they agree, and windows as well.

    Returns:
      Positions of the bands and of alpha bands, pixels (H, W, C), and where they are missing (H, W).
    """
    header = read_header(path)
    colours = [colour for colour in header.colours if colour != "alpha" or header.count == 1]
    names = ("red", "green", "blue") if len(colours) == 3 else tuple(map(str, range(len(colours))))
    named = tuple(name or f"unnamed {place}" for place, name in enumerate(header.descriptions))
    file_bands = named if any(header.descriptions) else None
    names = named if file_bands else names
    channels, alpha = find_channels(path, header, names, None, file_bands)
    if header.with_type_of(channels).dtype.kind not in "uif":
        raise UserError("as the readers of whole data sets refuse complex values")
    pixels, missing = read_pixels(path, None, channels, sensor_nodata, alpha)
    where = np.zeros(pixels.shape[:2], bool) if missing is None else missing
    with reading(str(path)), open_scene(path) as dataset:
        scene = Scene(dataset, path, names, None, file_bands)
        again, valid = scene.read(0, scene.height)
        np.testing.assert_array_equal(again, pixels)
        np.testing.assert_array_equal(valid, ~where)
        rows = slice(scene.height // 3, scene.height // 3 + (scene.height + 1) // 2)
        again, valid = scene.read(rows.start, rows.stop)
        np.testing.assert_array_equal(again, pixels[rows])
        np.testing.assert_array_equal(valid, ~where[rows])
    height, width = where.shape
    part = Window(height // 4, width // 3, (height + 1) // 2, (width + 1) // 2)
    inside = np.s_[part.row : part.row + part.height, part.col : part.col + part.width]
    cut, _ = read_pixels(path, part, channels, sensor_nodata, alpha)
    np.testing.assert_array_equal(cut, pixels[inside])
    lost = missing_pixels(path, part, channels, sensor_nodata, alpha)
    np.testing.assert_array_equal(np.zeros_like(where)[inside] if lost is None else lost, where[inside])
    return channels, alpha, pixels, where


def expected(path, channels, alpha, **options):
    """Read pixels (H, W, C), and where they are missing (H, W), by plain rasterio."""
    with rasterio.Env(GDAL_PNG_WHOLE_IMAGE_OPTIM=False), rasterio.open(path, **options) as dataset:
        pixels = np.stack([dataset.read(band + 1) for band in channels], axis=-1)
        masked = np.zeros(pixels.shape, bool)
        for place, band in enumerate(channels):
            if MaskFlags.alpha not in dataset.mask_flag_enums[band]:
                masked[..., place] = dataset.read_masks(band + 1) == 0
        missing = masked.all(axis=-1)
        for band in alpha:
            missing |= dataset.read(band + 1) == 0
    return np.where(masked | missing[..., None], 0, pixels), missing


def is_undefined(path, window=None):
    """Return whether GDAL reads a file differently each time.

    With some damaged headers it returns what its memory held, without an error.
    """
    readings = []
    for _ in range(4):
        with rasterio.open(path) as dataset:
            readings.append(dataset.read(window=window).tobytes())
    return len(set(readings)) > 1


def check(path, lost=None, alpha=None):
    """Require that an image is read as by plain rasterio, with some missing pixels and alpha bands."""
    channels, found, pixels, missing = read_both(path)
    wanted, where = expected(path, channels, found)
    np.testing.assert_array_equal(pixels, wanted.astype(np.float32))
    np.testing.assert_array_equal(missing, where)
    assert lost is None or missing.sum() == lost
    assert alpha is None or found == alpha
    return pixels, missing
