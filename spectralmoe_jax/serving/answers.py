"""From the file of one posted image to the bytes of an answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.shutil
from rasterio._err import CPLE_BaseError  # what copying raises; no public module has it
from rasterio.enums import Interleaving
from rasterio.errors import RasterioError

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.model import Model
from spectralmoe_jax.inference.scene import files_of_others, open_scene, reading
from spectralmoe_jax.serving.geojson import map_as_geojson
from spectralmoe_jax.serving.limits import Limits

FORMATS = {"tif": "image/tiff", "png": "image/png", "geojson": "application/geo+json"}
"""Media type of an answer by the name of its format."""
_MAX_BLOCK = 2**28  # bytes that GDAL decodes at once
_MAX_ROW = 2**29  # bytes of the scores of one row of windows, which a map keeps in memory
_SAMPLE_BYTES = {"uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "float32": 4}


class ImageTooLargeError(UserError):
    """An image has more pixels than the server maps."""


class ServerFailedError(Exception):
    """A map could not be made, through no fault of its image."""


def answer_image(model: Model, image: Path, format: str, limits: Limits) -> bytes:
    """Map one posted image.

    Args:
      model: the trained model.
      image: the body of the request, alone in its folder, which is used for the map too.
      format: one of `FORMATS`.
      limits: of the server.

    Raises:
      UserError: the file is no image, or not one for this model; the message calls it `image`.
      ServerFailedError: the map cannot be written.
    """
    output = image.with_name("map.tif")
    try:
        with files_of_others():
            _check_size(image, limits, model.config.evaluate.window, len(model.classes))
            model.map(image, output)
            return _ENCODERS[format](output, model)
    except (RasterioError, CPLE_BaseError, OSError) as error:  # errors of reading are a UserError already
        raise ServerFailedError(f"{output}: cannot be written ({' '.join(str(error).split())})") from error
    except UserError as error:
        said = str(error)
        if str(output) in said:
            raise ServerFailedError(said) from error
        kind = ImageTooLargeError if isinstance(error, ImageTooLargeError) else UserError
        raise kind(said.replace(str(image), "image")) from error


def _check_size(image: Path, limits: Limits, window: int, classes: int) -> None:
    """Check how much memory an image takes, before a pixel of it is decoded.

    Raises:
      ImageTooLargeError: it takes too much.
    """
    with reading(str(image)), open_scene(image) as dataset:
        height, width = dataset.shape
        if max(height, window) * max(width, window) > limits.max_megapixels * 1e6:
            raise ImageTooLargeError(
                f"the image has {height} x {width} pixels, more than {limits.max_megapixels:g} megapixels "
                f"where a side counts as {window} at least; post it in parts"
            )
        row = width * window * classes * np.dtype(np.float32).itemsize
        if row > _MAX_ROW:
            raise ImageTooLargeError(
                f"the image is {width} pixels wide: the scores of a row of windows take {row / 1e6:.0f} MB, "
                f"more than {_MAX_ROW / 1e6:.0f} MB; post it in parts that are less wide"
            )
        block = _block_bytes(dataset)
        if block > _MAX_BLOCK:
            raise ImageTooLargeError(
                f"the image is stored in blocks of {block / 1e6:.0f} MB, more than "
                f"{_MAX_BLOCK / 1e6:.0f} MB; store it in tiles"
            )


def _block_bytes(dataset: Any) -> int:
    """Return how much GDAL decodes at once: a block of one band, or of all where they are interleaved."""
    bands = zip(dataset.block_shapes, dataset.dtypes, strict=True)
    sizes = [math.prod(shape) * _SAMPLE_BYTES.get(dtype, 8) for shape, dtype in bands]
    return sum(sizes) if dataset.interleaving == Interleaving.pixel else max(sizes)


def _as_tif(path: Path, model: Model) -> bytes:
    return path.read_bytes()


def _as_png(path: Path, model: Model) -> bytes:
    """Return an indexed picture: numbers of classes with their colours, transparent without data."""
    picture = path.with_suffix(".png")
    rasterio.shutil.copy(path, picture, driver="PNG")
    return picture.read_bytes()


def _as_geojson(path: Path, model: Model) -> bytes:
    return map_as_geojson(path, model.classes).encode()


_ENCODERS: dict[str, Callable[[Path, Model], bytes]] = {
    "tif": _as_tif,
    "png": _as_png,
    "geojson": _as_geojson,
}
assert set(_ENCODERS) == set(FORMATS)
