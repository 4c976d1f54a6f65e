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
from weakref import WeakKeyDictionary

import cv2
import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, Interleaving
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from data_pipelines.readers.address import is_remote, network_options
from data_pipelines.readers.orientation import upright
from data_pipelines.readers.sealed_raster import open_sealed
from data_pipelines.readers.unreadable import UnreadableFile, unreadable
from data_pipelines.readers.validity import Validity, validity_of
from data_pipelines.records import Window
from spectralmoe_jax.errors import UserError

AS_STORED = (np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.uint16))
"""Types that pixels keep. All others become float32: int32 is exact up to 2**24 and rounded beyond, which is
logged; float64 is rounded to 7 digits, and values above 3.4e38 are reported as not finite."""

GDAL_ERRORS = (RasterioError, CPLE_BaseError)
"""What reading a damaged file raises: rasterio's errors, or GDAL's own where rasterio does not expect one."""

log = logging.getLogger(__name__)
_NO_PIXELS = ("Invalid dataset dimensions", "zero number of strips", "Missing one of rasterXSize")
_EXACT = 1 << 24  # float32 holds all integers up to this
_rounded: set[Path] = set()  # files with larger integers, for which a warning was logged
_validities: WeakKeyDictionary[Any, dict[Any, Validity]] = WeakKeyDictionary()  # of open files
_FEW_BANDS = 16
_warnings = threading.Lock()  # warnings.catch_warnings is not safe across threads
_used = threading.local()  # `files`, while the thread uses an OpenFiles


def read_pixels(
    path: Path,
    window: Window | None = None,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read pixels, with nodata set to zero.

    A pixel is missing where the file's mask or an alpha band is 0, or where each of the bands has its nodata
    value or is masked on its own; a single such band becomes zero. A mask goes before nodata values; see
    `validity.validity_of`.

    Args:
      path: the file.
      window: part of the file; default all.
      bands: positions in the file, from 0, in the wanted order; default all.
      nodata: nodata value where the file states none for these bands and has no mask.
      alpha: positions of alpha bands, which mask where they are 0.

    Returns:
      Pixels (H, W, C) of a type of `AS_STORED`, or float32; and where they are missing, (H, W) bool, or None.

    Raises:
      UnreadableFile: the file is truncated or unreadable.
      UserError: pixels are not finite.
    """
    with open_image(path) as dataset:
        pixels, missing = read_valid(dataset, _validity(dataset, bands, nodata, alpha), window)
    if pixels.dtype not in AS_STORED:
        warn_of_rounding(path, pixels)
        pixels = pixels.astype(np.float32, copy=False)
        _require_finite(path, pixels)
    return pixels, missing


def read_valid(
    dataset: Any, validity: Validity, window: Window | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read pixels of an open file, with what is no data set to zero; for training and prediction.

    Args:
      dataset: the file.
      validity: the bands, and how the file states which of their values are data.
      window: part of the file; None for all.

    Returns:
      Pixels (H, W, C) as stored, and where they are missing, (H, W) bool, or None if they cannot be.
    """
    part = _raster_window(window)
    pixels = _read_band_last(dataset, validity.bands, window)
    missing = validity.masked(dataset, part)
    absent = validity.absent(dataset, part, pixels)
    if absent is not None:
        everywhere = _in_all_bands(absent)
        if absent.any():
            pixels[absent] = 0
        missing = everywhere if missing is None else missing | everywhere
    if missing is not None:
        pixels[missing] = 0
    return pixels, missing


def _in_all_bands(absent: np.ndarray) -> np.ndarray:
    """Return where all bands lack data, (H, W) bool, from (H, W, C) bool.

    For a few bands, NumPy's reduction takes several times as long as their conjunction one by one.
    """
    if absent.shape[-1] > _FEW_BANDS:
        return np.asarray(absent.all(axis=-1))
    everywhere = absent[..., 0].copy()
    for band in range(1, absent.shape[-1]):
        everywhere &= absent[..., band]
    return everywhere


def read_values(
    path: Path,
    window: Window | None = None,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: Sequence[int] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Read pixels as stored, and which values are data, with the arguments of `read_pixels`.

    Returns:
      Pixels (H, W, C) as stored; and where they are data, (H, W, C) bool: a value is not if it is the nodata
      value, or if the file masks its pixel.

    Raises:
      UnreadableFile: the file is truncated or unreadable.
      UserError: values that are data are not finite.
    """
    with open_image(path) as dataset:
        validity, part = _validity(dataset, bands, nodata, alpha), _raster_window(window)
        pixels = _read_band_last(dataset, validity.bands, window)
        masked, absent = validity.masked(dataset, part), validity.absent(dataset, part, pixels)
    is_data = np.ones(pixels.shape, bool) if absent is None else ~absent
    if masked is not None:
        is_data &= ~masked[..., None]
    _require_finite(path, pixels[is_data])
    return pixels, is_data


def _validity(
    dataset: Any, bands: Sequence[int] | None, nodata: float | None, alpha: Sequence[int]
) -> Validity:
    """Return what `validity_of` finds, once for each open file and choice of bands."""
    key = None if bands is None else tuple(bands), nodata, tuple(alpha)
    found = _validities.setdefault(dataset, {})
    if key not in found:
        found[key] = validity_of(dataset, bands, nodata, alpha)
    return found[key]


def _require_finite(path: Path, values: np.ndarray) -> None:
    """Raise a UserError if there are values that are NaN or infinite."""
    broken = values.size - np.count_nonzero(np.isfinite(values))
    if broken:
        raise UserError(
            f"{path}: {broken} values are not finite (NaN or infinite): replace them, "
            "or declare the file's nodata value"
        )


def missing_pixels(
    path: Path,
    window: Window | None = None,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: Sequence[int] = (),
) -> np.ndarray | None:
    """Return where pixels are missing, with the arguments of `read_pixels`; reads as little as possible.

    Returns:
      (H, W) bool; None if no pixel is missing.

    Raises:
      UnreadableFile: the file is truncated or unreadable.
    """
    with open_image(path) as dataset:
        validity, part = _validity(dataset, bands, nodata, alpha), _raster_window(window)
        masked, absent = validity.masked(dataset, part), validity.all_absent(dataset, part)
    missing = absent if masked is None else masked if absent is None else masked | absent
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


def warn_of_rounding(path: Path, pixels: np.ndarray) -> None:
    """Warn once for each file of integers that float32 does not hold exactly."""
    if pixels.dtype.kind not in "ui" or pixels.dtype.itemsize < 4:
        return
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
    dataset: rasterio.DatasetReader, indexes: Sequence[int], window: Window | None
) -> np.ndarray:
    """Read pixels (H, W, C) as stored, straight into this layout where GDAL can."""
    height, width = (dataset.height, dataset.width) if window is None else (window.height, window.width)
    part = _raster_window(window)
    dtypes = {dataset.dtypes[index - 1] for index in indexes}
    if len(dtypes) > 1:  # as virtual rasters may have, and rasterio does not read at once
        pixels = np.empty((height, width, len(indexes)), np.result_type(*dtypes))
        for place, index in enumerate(indexes):
            pixels[..., place] = dataset.read(index, window=part)
        return pixels
    if not _decodes_in_place(dataset):
        return band_last(dataset.read(indexes, window=part))
    pixels = np.empty((height, width, len(indexes)), dataset.dtypes[0])
    dataset.read(indexes, window=part, out=np.moveaxis(pixels, -1, 0))
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
    except UnicodeDecodeError as error:
        raise text_unreadable(os.fspath(path)) from error
    except GDAL_ERRORS as error:
        reason = " ".join(str(error.__cause__ or error).split()).partition(" (this error can")[0]
        if any(sign in reason for sign in _NO_PIXELS):
            raise no_pixels(path) from error
        raise unreadable(path, reason) from error


def text_unreadable(name: str) -> UserError:
    """Return the error for an image file with a text that cannot be decoded."""
    return UserError(
        f"{name}: a text in its header, such as the description of a band, is not UTF-8; write the "
        "texts anew, or store the image without them"
    )


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
    except GDAL_ERRORS:
        with suppress(Exception):
            _ = dataset.colorinterp
        raise


def open_as_stored(path: Path | str, driver: str | None = None) -> rasterio.DatasetReader:
    """Open a raster upright, without the warning on a missing georeference, and TIFFs of CMYK as four bands.

    Args:
      path: a file, or any other name that GDAL opens.
      driver: GDAL's driver that may open it; None for those of `sealed_raster`.

    Raises:
      UserError: it would read other files.
      RasterioError: it cannot be opened.
    """
    with ignore_missing_georeference():
        dataset = open_sealed(os.fspath(path), driver)
        stated = dataset.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE")
        if stated == "CMYK" and dataset.driver == "GTiff":
            dataset.close()
            dataset = rasterio.open(f"GTIFF_RAW:{path}", driver="GTiff")
        # With threads, GDAL does not repeat a request that fails, and some of its versions then return zeros:
        # https://github.com/OSGeo/gdal/issues/12426
        elif _decodes_in_place(dataset) and not is_remote(os.fspath(path)):
            dataset.close()
            dataset = rasterio.open(path, driver="GTiff", NUM_THREADS=2)
        return upright(dataset, os.fspath(path))


@contextmanager
def ignore_missing_georeference() -> Iterator[None]:
    """Suppress rasterio's warning on images without georeference; one thread at a time."""
    with _warnings, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield
