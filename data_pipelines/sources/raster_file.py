"""Reading one image file through rasterio, with errors that name the file."""

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from data_pipelines.sources.records import Window
from spectralmoe_jax.errors import UserError

_opening = threading.Lock()  # warnings.catch_warnings is not safe across threads


@dataclass(frozen=True)
class Header:
    """What the header of an image file says. `dtype` is the widest of its bands."""

    height: int
    width: int
    count: int
    dtype: np.dtype
    descriptions: tuple[str | None, ...]
    has_nodata: bool


def read_header(path: Path) -> Header:
    """Size, band count, type and band names, without decoding a pixel.

    Raises:
      UserError: the file cannot be opened as an image.
    """
    with _opened(path) as dataset:
        dtype = np.result_type(*dataset.dtypes)
        return Header(
            dataset.height,
            dataset.width,
            dataset.count,
            dtype,
            dataset.descriptions,
            dataset.nodata is not None,
        )


def read_pixels(path: Path, window: Window | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels (H, W, C), uint8 or float32, and where they are missing (H, W) bool, or None.

    A value that is the file's nodata value reads as zero; a pixel is missing when all its bands do.

    Raises:
      UserError: the file is truncated or unreadable, or has pixels that are not finite.
    """
    with _opened(path) as dataset:
        pixels = np.ascontiguousarray(np.moveaxis(dataset.read(window=_raster_window(window)), 0, -1))
        nodata = dataset.nodata
    missing = None
    if nodata is not None:
        equal = np.isnan(pixels) if np.isnan(nodata) else pixels == nodata
        missing = equal.all(axis=-1)
        pixels[equal] = 0
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float32)
        broken = pixels.size - np.count_nonzero(np.isfinite(pixels))
        if broken:
            raise UserError(
                f"{path}: {broken} values are not finite (NaN or infinite): replace them, "
                "or declare the file's nodata value"
            )
    return pixels, missing


def read_mask(
    path: Path, window: Window | None = None
) -> tuple[np.ndarray, Mapping[int, tuple[int, ...]] | None]:
    """The mask (H, W, bands) as stored, of the whole file or of `window`, and its colour table if any.

    Raises:
      UserError: the file is truncated or unreadable.
    """
    with _opened(path) as dataset:
        indexed = dataset.count == 1 and dataset.colorinterp[0] == ColorInterp.palette
        table = dataset.colormap(1) if indexed else None
        return np.moveaxis(dataset.read(window=_raster_window(window)), 0, -1), table


@contextmanager
def _opened(path: Path) -> Iterator[rasterio.DatasetReader]:
    # GDAL's quick path for whole PNG files returns stale memory for the missing end of a truncated one.
    try:
        with rasterio.Env(GDAL_PNG_WHOLE_IMAGE_OPTIM=False):
            with _opening, warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                dataset = rasterio.open(path)
            with dataset:
                yield dataset
    except RasterioError as error:
        reason = " ".join(str(error.__cause__ or error).split()).partition(" (this error can")[0]
        raise UserError(
            f"{path}: truncated or not a readable image ({reason}): "
            "restore the file or remove it from the folder"
        ) from error


def _raster_window(window: Window | None) -> RasterWindow | None:
    if window is None:
        return None
    return RasterWindow(window.col, window.row, window.width, window.height)
