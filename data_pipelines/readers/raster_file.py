"""Reading one image file through rasterio, with errors that name the file."""

from __future__ import annotations

import logging
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from rasterio.enums import ColorInterp, Interleaving, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from data_pipelines.records import Window
from data_pipelines.sensors.file_tags import stated_platforms, states_wavelengths
from spectralmoe_jax.errors import UserError

AS_STORED = (np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.uint16))
"""Types that pixels keep. All others become float32: int32 is exact up to 2**24 and rounded beyond, which is
logged, float64 is rounded to 7 digits, and a float64 above 3.4e38 is reported as not finite."""

log = logging.getLogger(__name__)
_NO_PIXELS = ("Invalid dataset dimensions", "zero number of strips", "Missing one of rasterXSize")
_EXACT = 1 << 24  # the largest number to which float32 holds all integers
_rounded: set[Path] = set()  # files whose integers were found beyond that
_warnings = threading.Lock()  # warnings.catch_warnings is not safe across threads
_used = threading.local()  # `datasets`, while an OpenFiles is in use by the thread


class UnreadableFile(UserError):
    """A file that is truncated, empty or not what its name says, which `data.corrupt=skip` leaves out."""


@dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    Attributes:
      dtype: the widest of its bands.
      descriptions: names of the bands, None where there is none.
      colours: what each band is said to be: "red", "gray", "undefined", ...
      random_access: whether a window is read without decoding what lies before it.
      has_nodata: whether pixels can be missing, by a nodata value or a mask of the file's.
      crs, transform: where it lies, or None and the identity.
      states_wavelengths: whether the tags of any band state its wavelength.
      platforms: what its tags say took it.
    """

    height: int
    width: int
    count: int
    dtype: np.dtype
    descriptions: tuple[str | None, ...]
    colours: tuple[str, ...]
    has_nodata: bool
    random_access: bool
    crs: Any
    transform: Any
    states_wavelengths: bool
    platforms: tuple[str, ...]


class OpenFiles:
    """Leaves the last `count` files that each thread read open, for many windows of one file after another.

    What GDAL decoded around a window, such as the whole strips of a TIFF or all lines of a PNG above it,
    then serves the next windows; a file that is changed meanwhile is not read anew. Pickling keeps the count
    alone.
    """

    def __init__(self, count: int):
        self.count = count
        self._threads = threading.local()

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenFiles, (self.count,)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within it, the functions of this module read this thread's files through it."""
        before = getattr(_used, "files", None)
        _used.files = self
        try:
            yield
        finally:
            _used.files = before

    def open(self, path: Path) -> rasterio.DatasetReader:
        datasets = self._datasets()
        if path not in datasets:
            datasets[path] = open_as_stored(path)
            if len(datasets) > self.count:
                datasets.popitem(last=False)[1].close()
        datasets.move_to_end(path)
        return datasets[path]

    def close(self) -> None:
        """Closes the files of this thread."""
        datasets = self._datasets()
        while datasets:
            datasets.popitem()[1].close()

    def _datasets(self) -> OrderedDict[Path, rasterio.DatasetReader]:
        if not hasattr(self._threads, "datasets"):
            self._threads.datasets = OrderedDict()
        return self._threads.datasets


@contextmanager
def keep_files_open(count: int = 2) -> Iterator[None]:
    """Within it, this thread leaves the last `count` files open; see `OpenFiles`."""
    files = OpenFiles(count)
    try:
        with files.used():
            yield
    finally:
        files.close()


def read_header(path: Path) -> Header:
    """Size, band count, type and band names, without decoding a pixel.

    Raises:
      UnreadableFile: the file cannot be opened as an image, or has no pixels.
    """
    with opened(path) as dataset:
        if not dataset.width or not dataset.height or not dataset.count:
            raise _without_pixels(path)
        return Header(
            dataset.height,
            dataset.width,
            dataset.count,
            _widest(dataset.dtypes),
            dataset.descriptions,
            tuple(colour.name for colour in dataset.colorinterp),
            dataset.nodata is not None or has_mask(dataset),
            dataset.driver in ("GTiff", "COG", "VRT", "HDF4Image", "netCDF", "Zarr", "ENVI", "EHdr", "HFA"),
            dataset.crs,
            dataset.transform,
            states_wavelengths(dataset),
            stated_platforms(dataset),
        )


def read_pixels(
    path: Path,
    window: Window | None = None,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: bool = False,
) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels (H, W, C), of a type of `AS_STORED` or float32, and where they are missing (H, W), or None.

    A value that is the nodata value reads as zero; a pixel is missing when all its bands do. In a file with a
    mask and no nodata value, as JPEG-compressed mosaics have, the pixels that it masks are missing and zero.

    Args:
      window: of the file; default the whole.
      bands: their places in the file, in the order wanted; default all as they lie.
      nodata: the nodata value where the file states none and has no mask.
      alpha: whether the file's last band is an alpha, which masks where it is 0.

    Raises:
      UnreadableFile: the file is truncated or unreadable.
      UserError: it has pixels that are not finite.
    """
    indexes = None if bands is None else [band + 1 for band in bands]
    with opened(path) as dataset:
        pixels = _read_band_last(dataset, indexes, window)
        missing = _masked(dataset, window, alpha)
        nodata = _nodata(dataset, nodata, alpha)
    if nodata is not None:
        everywhere = zero_nodata(pixels, nodata)
        missing = everywhere if missing is None else missing | everywhere
    if missing is not None:
        pixels[missing] = 0
    if pixels.dtype not in AS_STORED:
        if pixels.dtype.kind in "ui":
            _mention_rounding(path, pixels)
        pixels = pixels.astype(np.float32, copy=False)
        broken = pixels.size - np.count_nonzero(np.isfinite(pixels))
        if broken:
            raise UserError(
                f"{path}: {broken} values are not finite (NaN or infinite): replace them, "
                "or declare the file's nodata value"
            )
    return pixels, missing


def zero_nodata(pixels: np.ndarray, nodata: float) -> np.ndarray:
    """Sets values that are the nodata value to zero, in place: (H, W, C), as stored.

    Returns where pixels are missing, (H, W) bool: where all their bands are. Infinite values are not NaN.
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
    """Where pixels are missing (H, W) bool, or None for nowhere, as `read_pixels`; reads no more than needed.

    Raises:
      UnreadableFile: the file is truncated or unreadable.
    """
    with opened(path) as dataset:
        masked = _masked(dataset, window, alpha)
        nodata = _nodata(dataset, nodata, alpha)
        equal = None if nodata is None else _all_equal(dataset, window, bands, nodata)
    missing = equal if masked is None else masked if equal is None else masked | equal
    return missing if missing is not None and missing.any() else None


def read_mask(
    path: Path, window: Window | None = None
) -> tuple[np.ndarray, Mapping[int, tuple[int, ...]] | None]:
    """The mask (H, W, bands) as stored, of the whole file or of `window`, and its colour table if any.

    Raises:
      UnreadableFile: the file is truncated or unreadable.
    """
    with opened(path) as dataset:
        indexed = dataset.count == 1 and dataset.colorinterp[0] == ColorInterp.palette
        table = dataset.colormap(1) if indexed else None
        return np.moveaxis(dataset.read(window=_raster_window(window)), 0, -1), table


def _mention_rounding(path: Path, pixels: np.ndarray) -> None:
    """Warns of integers that float32 does not hold exactly, once a file."""
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


def band_last(pixels: np.ndarray) -> np.ndarray:
    """(C, H, W) to (H, W, C), contiguous. OpenCV does it several times faster than a strided copy."""
    count, *size = pixels.shape
    if count == 1:
        return pixels[0][..., None]
    if pixels.dtype not in (*AS_STORED, np.float32) or not pixels.size:
        return np.ascontiguousarray(np.moveaxis(pixels, 0, -1))
    if count <= 4:
        return cv2.merge(list(pixels))
    return cv2.transpose(pixels.reshape(count, -1)).reshape(*size, count)


def _read_band_last(
    dataset: rasterio.DatasetReader, indexes: Sequence[int] | None, window: Window | None
) -> np.ndarray:
    """Pixels (H, W, C) as stored; those of `_decoded_in_place` files without a detour by bands."""
    if not _decoded_in_place(dataset):
        return band_last(dataset.read(indexes, window=_raster_window(window)))
    height, width = (dataset.height, dataset.width) if window is None else (window.height, window.width)
    count = dataset.count if indexes is None else len(indexes)
    pixels = np.empty((height, width, count), dataset.dtypes[0])
    dataset.read(indexes, window=_raster_window(window), out=np.moveaxis(pixels, -1, 0))
    return pixels


def _decoded_in_place(dataset: rasterio.DatasetReader) -> bool:
    """Whether GDAL, given threads, decodes blocks straight into an array (H, W, C).

    It is so for GeoTIFFs whose bands lie pixel by pixel. For a few bands the other way is as fast.
    """
    return (
        dataset.driver == "GTiff"
        and dataset.count > 4
        and dataset.interleaving == Interleaving.pixel
        and len(set(dataset.dtypes)) == 1
    )


@contextmanager
def opened(path: Path) -> Iterator[rasterio.DatasetReader]:
    """An image file, its four samples a pixel as stored where it announces them as CMYK.

    Raises:
      UnreadableFile: the file cannot be opened as an image, or an error of reading within the context.
    """
    files = getattr(_used, "files", None)
    # GDAL's quick path for whole PNG files returns stale memory for the missing end of a truncated one.
    try:
        with rasterio.Env(GDAL_PNG_WHOLE_IMAGE_OPTIM=False):
            if files is not None:
                with _forgetting_errors(files.open(path)) as dataset:
                    yield dataset
            else:
                with open_as_stored(path) as opened_now, _forgetting_errors(opened_now) as dataset:
                    yield dataset
    except RasterioError as error:
        reason = " ".join(str(error.__cause__ or error).split()).partition(" (this error can")[0]
        if any(sign in reason for sign in _NO_PIXELS):
            raise _without_pixels(path) from error
        raise unreadable(path, reason) from error


def unreadable(path: Path, reason: str) -> UnreadableFile:
    """The error for an image file that cannot be read whole."""
    return UnreadableFile(
        f"{path}: truncated or not a readable image ({reason}): restore the file or remove it from the folder"
    )


def _without_pixels(path: Path) -> UnreadableFile:
    return UnreadableFile(f"{path}: has no pixels: remove the file, or write it anew")


@contextmanager
def _forgetting_errors(dataset: rasterio.DatasetReader) -> Iterator[rasterio.DatasetReader]:
    """GDAL keeps an error of reading, and rasterio raises it again at its next call of another kind, be that
    for another file: that call is made here."""
    try:
        yield dataset
    except RasterioError:
        with suppress(Exception):
            _ = dataset.colorinterp
        raise


def open_as_stored(path: Path) -> rasterio.DatasetReader:
    """`rasterio.open`, quiet about a missing georeference, and without turning four samples that the file
    announces as CMYK into red, green, blue and alpha."""
    with quiet():
        dataset = rasterio.open(path)
        if dataset.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE") == "CMYK":
            dataset.close()
            dataset = rasterio.open(f"GTIFF_RAW:{path}")
        elif _decoded_in_place(dataset):
            dataset.close()
            dataset = rasterio.open(path, NUM_THREADS=2)
        return dataset


@contextmanager
def quiet() -> Iterator[None]:
    """Rasterio without its warning about images that are not georeferenced; one thread at a time."""
    with _warnings, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def has_mask(dataset: rasterio.DatasetReader) -> bool:
    """Whether a file without a nodata value has a mask of its own; an alpha band is a band like others."""
    return dataset.nodata is None and dataset.mask_flag_enums[0] == [MaskFlags.per_dataset]


def _nodata(dataset: rasterio.DatasetReader, known: float | None, alpha: bool) -> float | None:
    """The nodata value of a file: its own, or the one that is `known` unless it has a mask."""
    return known if dataset.nodata is None and not alpha and not has_mask(dataset) else dataset.nodata


def _all_equal(
    dataset: rasterio.DatasetReader, window: Window | None, bands: Sequence[int] | None, nodata: float
) -> np.ndarray | None:
    """Where all bands hold a value (H, W), or None for nowhere; reads no more bands than that takes."""
    everywhere: np.ndarray | None = None
    for band in range(dataset.count) if bands is None else bands:
        values = dataset.read(band + 1, window=_raster_window(window))
        equal = np.isnan(values) if np.isnan(nodata) else values == nodata
        everywhere = equal if everywhere is None else everywhere & equal
        if not everywhere.any():
            return None
    return everywhere


def _masked(dataset: rasterio.DatasetReader, window: Window | None, alpha: bool) -> np.ndarray | None:
    """Where the file's mask, or the alpha, says that there is no data (H, W), or None without either."""
    if alpha:
        return dataset.read(dataset.count, window=_raster_window(window)) == 0
    if not has_mask(dataset):
        return None
    return dataset.read_masks(1, window=_raster_window(window)) == 0


def _widest(dtypes: Sequence[str]) -> np.dtype:
    """The type that holds the values of all bands; `complex_int16` is rasterio's name and not NumPy's."""
    return np.result_type(*(("complex64" if name.startswith("complex") else name) for name in dtypes))


def _raster_window(window: Window | None) -> RasterWindow | None:
    if window is None:
        return None
    return RasterWindow(window.col, window.row, window.width, window.height)
