"""Reading one image file through rasterio, with errors that name the file."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from rasterio.enums import ColorInterp, Interleaving, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from data_pipelines.sensors.band_tags import states_wavelengths
from data_pipelines.sources.records import Window
from spectralmoe_jax.errors import UserError

AS_STORED = (np.dtype(np.uint8), np.dtype(np.int16), np.dtype(np.uint16))
"""Types that pixels keep. All others become float32: int32 is exact up to 2**24 and rounded beyond, float64
is rounded to 7 digits, and a float64 above 3.4e38 is reported as not finite."""

_warnings = threading.Lock()  # warnings.catch_warnings is not safe across threads
_used = threading.local()  # `datasets`, while an OpenFiles is in use by the thread


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
def kept_open(count: int = 2) -> Iterator[None]:
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
      UserError: the file cannot be opened as an image, or has no pixels.
    """
    with opened(path) as dataset:
        if not dataset.width or not dataset.height or not dataset.count:
            raise UserError(f"{path}: has no pixels ({dataset.height} x {dataset.width}), remove the file")
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
        )


def read_pixels(
    path: Path, window: Window | None = None, bands: Sequence[int] | None = None, nodata: float | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels (H, W, C), of a type of `AS_STORED` or float32, and where they are missing (H, W), or None.

    A value that is the nodata value reads as zero; a pixel is missing when all its bands do. In a file with a
    mask and no nodata value, as JPEG-compressed mosaics have, the pixels that it masks are missing and zero.

    Args:
      window: of the file; default the whole.
      bands: their places in the file, in the order wanted; default all as they lie.
      nodata: the nodata value where the file states none and has no mask.

    Raises:
      UserError: the file is truncated or unreadable, or has pixels that are not finite.
    """
    indexes = None if bands is None else [band + 1 for band in bands]
    with opened(path) as dataset:
        pixels = _read_band_last(dataset, indexes, window)
        missing = _masked(dataset, window)
        nodata = nodata if dataset.nodata is None else dataset.nodata
    if missing is not None:
        pixels[missing] = 0
    elif nodata is not None:
        equal = np.isnan(pixels) if np.isnan(nodata) else pixels == nodata
        missing = equal.all(axis=-1)
        pixels[equal] = 0
    if pixels.dtype not in AS_STORED:
        pixels = pixels.astype(np.float32, copy=False)
        broken = pixels.size - np.count_nonzero(np.isfinite(pixels))
        if broken:
            raise UserError(
                f"{path}: {broken} values are not finite (NaN or infinite): replace them, "
                "or declare the file's nodata value"
            )
    return pixels, missing


def missing_pixels(
    path: Path, window: Window | None = None, bands: Sequence[int] | None = None, nodata: float | None = None
) -> np.ndarray | None:
    """Where pixels are missing (H, W) bool, or None for nowhere, as `read_pixels`; reads no more than needed.

    Raises:
      UserError: the file is truncated or unreadable.
    """
    with opened(path) as dataset:
        missing = _masked(dataset, window)
        if missing is not None:
            return missing if missing.any() else None
        nodata = nodata if dataset.nodata is None else dataset.nodata
        if nodata is None:
            return None
        for band in range(dataset.count) if bands is None else bands:
            values = dataset.read(band + 1, window=_raster_window(window))
            equal = np.isnan(values) if np.isnan(nodata) else values == nodata
            missing = equal if missing is None else missing & equal
            if not missing.any():
                return None
    return missing


def read_mask(
    path: Path, window: Window | None = None
) -> tuple[np.ndarray, Mapping[int, tuple[int, ...]] | None]:
    """The mask (H, W, bands) as stored, of the whole file or of `window`, and its colour table if any.

    Raises:
      UserError: the file is truncated or unreadable.
    """
    with opened(path) as dataset:
        indexed = dataset.count == 1 and dataset.colorinterp[0] == ColorInterp.palette
        table = dataset.colormap(1) if indexed else None
        return np.moveaxis(dataset.read(window=_raster_window(window)), 0, -1), table


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
      UserError: the file cannot be opened as an image, or an error of reading within the context.
    """
    files = getattr(_used, "files", None)
    # GDAL's quick path for whole PNG files returns stale memory for the missing end of a truncated one.
    try:
        with rasterio.Env(GDAL_PNG_WHOLE_IMAGE_OPTIM=False):
            if files is not None:
                yield files.open(path)
            else:
                with open_as_stored(path) as dataset:
                    yield dataset
    except RasterioError as error:
        reason = " ".join(str(error.__cause__ or error).split()).partition(" (this error can")[0]
        raise UserError(
            f"{path}: truncated or not a readable image ({reason}): "
            "restore the file or remove it from the folder"
        ) from error


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


def _masked(dataset: rasterio.DatasetReader, window: Window | None) -> np.ndarray | None:
    """Where the file's mask says that there is no data (H, W), or None for a file without a mask."""
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
