"""Pixels and masks of one raster file through rasterio, with errors that name the file.

Pixels without data are zero in all bands. A file that is read window by window stays open (`OpenFiles`).
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from rasterio.enums import ColorInterp, Interleaving, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from data_pipelines.readers.address import is_remote, network_options
from data_pipelines.readers.unreadable import UnreadableFile, unreadable
from data_pipelines.records import Window
from spectralmoe_jax.errors import UserError

AS_STORED = (np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.uint16))
"""Types that pixels keep. All others become float32: int32 is exact up to 2**24 and rounded beyond, which is
logged; float64 is rounded to 7 digits, and values above 3.4e38 are reported as not finite."""

log = logging.getLogger(__name__)
_NO_PIXELS = ("Invalid dataset dimensions", "zero number of strips", "Missing one of rasterXSize")
_EXACT = 1 << 24  # float32 holds all integers up to this
_rounded: set[Path] = set()  # files with larger integers, for which a warning was logged
_warnings = threading.Lock()  # warnings.catch_warnings is not safe across threads
_used = threading.local()  # `files`, while the thread uses an OpenFiles


def read_pixels(
    path: Path,
    window: Window | None = None,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read pixels, with nodata set to zero.

    A pixel is missing if all its bands have the nodata value; a single band with that value becomes zero. In
    a file with a mask and no nodata value, such as a JPEG-compressed mosaic, masked pixels are missing and
    become zero.

    Args:
      path: the file.
      window: part of the file; default all.
      bands: positions in the file, from 0, in the wanted order; default all.
      nodata: nodata value where the file states none and has no mask.
      alpha: the file's last band is an alpha, which masks where it is 0.

    Returns:
      Pixels (H, W, C) of a type of `AS_STORED`, or float32; and where they are missing, (H, W) bool, or None.

    Raises:
      UnreadableFile: the file is truncated or unreadable.
      UserError: pixels are not finite.
    """
    pixels, missing, nodata = _read_as_stored(path, window, bands, nodata, alpha)
    if nodata is not None:
        everywhere = zero_nodata(pixels, nodata)
        missing = everywhere if missing is None else missing | everywhere
    if missing is not None:
        pixels[missing] = 0
    if pixels.dtype not in AS_STORED:
        if pixels.dtype.kind in "ui":
            _warn_of_rounding(path, pixels)
        pixels = pixels.astype(np.float32, copy=False)
        _require_finite(path, pixels)
    return pixels, missing


def read_values(
    path: Path,
    window: Window | None = None,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Read pixels as stored, and which values are data, with the arguments of `read_pixels`.

    Returns:
      Pixels (H, W, C) as stored; and where they are data, (H, W, C) bool: a value is not if it is the nodata
      value, or if the file masks its pixel.

    Raises:
      UnreadableFile: the file is truncated or unreadable.
      UserError: values that are data are not finite.
    """
    pixels, missing, nodata = _read_as_stored(path, window, bands, nodata, alpha)
    is_data = np.ones(pixels.shape, bool)
    if nodata is not None:
        is_data = ~np.isnan(pixels) if np.isnan(nodata) else pixels != nodata
    if missing is not None:
        is_data &= ~missing[..., None]
    _require_finite(path, pixels[is_data])
    return pixels, is_data


def _read_as_stored(
    path: Path, window: Window | None, bands: Sequence[int] | None, nodata: float | None, alpha: bool
) -> tuple[np.ndarray, np.ndarray | None, float | None]:
    """Read pixels (H, W, C), where a mask or alpha marks them missing, and the nodata value that holds."""
    indexes = None if bands is None else [band + 1 for band in bands]
    with open_image(path) as dataset:
        pixels = _read_band_last(dataset, indexes, window)
        return pixels, _masked(dataset, window, alpha), _nodata(dataset, nodata, alpha)


def _require_finite(path: Path, values: np.ndarray) -> None:
    """Raise a UserError if there are values that are NaN or infinite."""
    broken = values.size - np.count_nonzero(np.isfinite(values))
    if broken:
        raise UserError(
            f"{path}: {broken} values are not finite (NaN or infinite): replace them, "
            "or declare the file's nodata value"
        )


def zero_nodata(pixels: np.ndarray, nodata: float) -> np.ndarray:
    """Set values that equal the nodata value to zero, in place.

    Args:
      pixels: (H, W, C) as stored.
      nodata: the nodata value; NaN does not match infinite values.

    Returns:
      (H, W) bool, true where all bands of a pixel had the nodata value.
    """
    equal = np.isnan(pixels) if np.isnan(nodata) else pixels == nodata
    pixels[equal] = 0
    return equal.all(axis=-1)


def missing_pixels(
    path: Path,
    window: Window | None = None,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: bool = False,
) -> np.ndarray | None:
    """Return where pixels are missing, with the arguments of `read_pixels`; reads as little as possible.

    Returns:
      (H, W) bool; None if no pixel is missing.

    Raises:
      UnreadableFile: the file is truncated or unreadable.
    """
    with open_image(path) as dataset:
        masked = _masked(dataset, window, alpha)
        nodata = _nodata(dataset, nodata, alpha)
        equal = None if nodata is None else _all_equal(dataset, window, bands, nodata)
    missing = equal if masked is None else masked if equal is None else masked | equal
    return missing if missing is not None and missing.any() else None


def read_mask(
    path: Path, window: Window | None = None
) -> tuple[np.ndarray, Mapping[int, tuple[int, ...]] | None]:
    """Read a label mask as stored, (H, W, bands), and its colour table if it has one.

    Raises:
      UnreadableFile: the file is truncated or unreadable.
    """
    with open_image(path) as dataset:
        indexed = dataset.count == 1 and dataset.colorinterp[0] == ColorInterp.palette
        table = dataset.colormap(1) if indexed else None
        return np.moveaxis(dataset.read(window=_raster_window(window)), 0, -1), table


def _nodata(dataset: rasterio.DatasetReader, known: float | None, alpha: bool) -> float | None:
    """Return the nodata value of a file: its own, else `known` unless the file has a mask or an alpha."""
    return known if dataset.nodata is None and not alpha and not has_mask(dataset) else dataset.nodata


def has_mask(dataset: rasterio.DatasetReader) -> bool:
    """Return whether a file without a nodata value has a mask; an alpha band counts as a band."""
    return dataset.nodata is None and dataset.mask_flag_enums[0] == [MaskFlags.per_dataset]


def _masked(dataset: rasterio.DatasetReader, window: Window | None, alpha: bool) -> np.ndarray | None:
    """Return where the file's mask or alpha marks missing pixels, (H, W) bool; None if it has neither."""
    if alpha:
        return dataset.read(dataset.count, window=_raster_window(window)) == 0
    if not has_mask(dataset):
        return None
    return dataset.read_masks(1, window=_raster_window(window)) == 0


def _all_equal(
    dataset: rasterio.DatasetReader, window: Window | None, bands: Sequence[int] | None, nodata: float
) -> np.ndarray | None:
    """Return where all bands equal a value, (H, W) bool; None as soon as that is nowhere."""
    everywhere: np.ndarray | None = None
    for band in range(dataset.count) if bands is None else bands:
        values = dataset.read(band + 1, window=_raster_window(window))
        equal = np.isnan(values) if np.isnan(nodata) else values == nodata
        everywhere = equal if everywhere is None else everywhere & equal
        if not everywhere.any():
            return None
    return everywhere


def _warn_of_rounding(path: Path, pixels: np.ndarray) -> None:
    """Warn once for each file of integers that float32 does not hold exactly."""
    largest = max(int(pixels.max(initial=0)), -int(pixels.min(initial=0)))
    if largest <= _EXACT or path in _rounded:
        return
    with _warnings:
        new = path not in _rounded
        _rounded.add(path)
    if new:
        log.warning(
            "%s: holds whole numbers up to %d, which are rounded above %d: store 16 bits or scaled floats",
            path,
            largest,
            _EXACT,
        )


def _read_band_last(
    dataset: rasterio.DatasetReader, indexes: Sequence[int] | None, window: Window | None
) -> np.ndarray:
    """Read pixels (H, W, C) as stored, straight into this layout where GDAL can."""
    if not _decodes_in_place(dataset):
        return band_last(dataset.read(indexes, window=_raster_window(window)))
    height, width = (dataset.height, dataset.width) if window is None else (window.height, window.width)
    count = dataset.count if indexes is None else len(indexes)
    pixels = np.empty((height, width, count), dataset.dtypes[0])
    dataset.read(indexes, window=_raster_window(window), out=np.moveaxis(pixels, -1, 0))
    return pixels


def _decodes_in_place(dataset: rasterio.DatasetReader) -> bool:
    """Return whether GDAL, given threads, decodes blocks straight into an array (H, W, C).

    It does so for GeoTIFFs with pixel interleaving. For a few bands, a transposition is as fast.
    """
    return (
        dataset.driver == "GTiff"
        and dataset.count > 4
        and dataset.interleaving == Interleaving.pixel
        and len(set(dataset.dtypes)) == 1
    )


def band_last(pixels: np.ndarray) -> np.ndarray:
    """Transpose (C, H, W) to contiguous (H, W, C), with OpenCV several times faster than a strided copy."""
    count, *size = pixels.shape
    if count == 1:
        return pixels[0][..., None]
    if pixels.dtype not in (*AS_STORED, np.float32) or not pixels.size:
        return np.ascontiguousarray(np.moveaxis(pixels, 0, -1))
    if count <= 4:
        return cv2.merge(list(pixels))
    return cv2.transpose(pixels.reshape(count, -1)).reshape(*size, count)  # (C, H W) -> (H W, C) -> (H, W, C)


def _raster_window(window: Window | None) -> RasterWindow | None:
    if window is None:
        return None
    return RasterWindow(window.col, window.row, window.width, window.height)


class OpenFiles:
    """Keeps the last `count` files that each thread read open, to read many windows of the same files.

    What GDAL decodes around a window, such as whole strips of a TIFF or all lines of a PNG above it, then
    serves the next windows. Changes to an open file are not noticed. Pickling keeps only the count.
    """

    def __init__(self, count: int):
        self.count = count
        self._threads = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenFiles, (self.count,)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Make this thread read files through this object within the context."""
        before = getattr(_used, "files", None)
        _used.files = self
        try:
            yield
        finally:
            _used.files = before

    def open(self, path: Path) -> rasterio.DatasetReader:
        """Return this thread's open file of a path, and close the one that was used longest ago."""
        datasets = self._datasets()
        if path not in datasets:
            datasets[path] = open_as_stored(path)
            if len(datasets) > self.count:
                datasets.popitem(last=False)[1].close()
        datasets.move_to_end(path)
        return datasets[path]

    def close(self) -> None:
        """Close the files of this thread."""
        datasets = self._datasets()
        while datasets:
            datasets.popitem()[1].close()

    def _datasets(self) -> OrderedDict[Path, rasterio.DatasetReader]:
        if not hasattr(self._threads, "datasets"):
            self._threads.datasets = OrderedDict()
        return self._threads.datasets


@contextmanager
def keep_files_open(count: int = 2) -> Iterator[None]:
    """Keep the last `count` files of this thread open within the context; see `OpenFiles`."""
    files = OpenFiles(count)
    try:
        with files.used():
            yield
    finally:
        files.close()


@contextmanager
def open_image(path: Path) -> Iterator[rasterio.DatasetReader]:
    """Open an image file as stored, through the thread's `OpenFiles` if one is in use.

    Raises:
      UnreadableFile: the file cannot be opened as an image, or reading fails within the context.
    """
    files = getattr(_used, "files", None)
    # GDAL's quick path for whole PNG files returns stale memory for the missing end of a truncated one.
    try:
        with rasterio.Env(GDAL_PNG_WHOLE_IMAGE_OPTIM=False, **network_options(os.fspath(path))):
            if files is not None:
                with _clearing_errors(files.open(path)) as dataset:
                    yield dataset
            else:
                with open_as_stored(path) as opened_now, _clearing_errors(opened_now) as dataset:
                    yield dataset
    except RasterioError as error:
        reason = " ".join(str(error.__cause__ or error).split()).partition(" (this error can")[0]
        if any(sign in reason for sign in _NO_PIXELS):
            raise no_pixels(path) from error
        raise unreadable(path, reason) from error


def no_pixels(path: Path) -> UnreadableFile:
    """Return the error for an image file without pixels."""
    return UnreadableFile(f"{path}: has no pixels: remove the file, or write it anew")


@contextmanager
def _clearing_errors(dataset: rasterio.DatasetReader) -> Iterator[rasterio.DatasetReader]:
    """Clear a pending GDAL error after a failed read.

    GDAL keeps the error, and rasterio raises it at its next call of another kind, even for another file. That
    call is made here.
    """
    try:
        yield dataset
    except RasterioError:
        with suppress(Exception):
            _ = dataset.colorinterp
        raise


def open_as_stored(path: Path | str, driver: str | None = None) -> rasterio.DatasetReader:
    """Open a raster without the warning on a missing georeference, and without converting CMYK to RGBA.

    Args:
      path: a file, or any other name that GDAL opens.
      driver: GDAL's driver that may open it; None for all.
    """
    with ignore_missing_georeference():
        dataset = rasterio.open(path, driver=driver)
        if dataset.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK":
            dataset.close()
            dataset = rasterio.open(f"GTIFF_RAW:{path}", driver=driver)
        # With threads, GDAL does not repeat a request that fails, and some of its versions then return zeros:
        # https://github.com/OSGeo/gdal/issues/12426
        elif _decodes_in_place(dataset) and not is_remote(os.fspath(path)):
            dataset.close()
            dataset = rasterio.open(path, driver=driver, NUM_THREADS=2)
        return dataset


@contextmanager
def ignore_missing_georeference() -> Iterator[None]:
    """Suppress rasterio's warning on images without georeference; one thread at a time."""
    with _warnings, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
