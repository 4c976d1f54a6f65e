"""Records of image files: their metadata before pixels are read, and a cache of decoded images."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.readers.raster_file import AS_STORED
from data_pipelines.readers.raster_header import Header
from data_pipelines.records import Record, Window
from data_pipelines.sensors import choose_bands
from spectralmoe_jax.errors import UserError

_DECODED_WHOLE = 16 << 20  # bytes; larger files are read by window where their format allows it
_DECODED_FOR_A_WINDOW = 2 << 20  # bytes that reading one window takes, with the blocks that it touches


class ValidatedFile(NamedTuple):
    """Metadata of one validated image and label pair.

    Attributes:
      domain: domain of the image.
      name: name of its record, if it is not divided.
      image: path of the image.
      mask: path of its labels.
      header: header of the image.
      channels: positions of the wanted bands in the file.
      nodata: value of pixels without data, where the file states none.
      alpha: positions of alpha bands beside them.
      label_random_access: windows of the labels are read without decoding what precedes them.
    """

    domain: str
    name: str
    image: Path
    mask: Path
    header: Header
    channels: tuple[int, ...]
    nodata: float | None
    alpha: tuple[int, ...]
    label_random_access: bool


@dataclass(frozen=True)
class FileRecord(Record):
    """A record that is a window of an image file and its label file.

    Attributes:
      image: path of the image.
      mask: path of its labels.
      row: first row of the window in the file.
      col: first column.
      channels: positions of the wanted bands in the file.
      nodata: value of pixels without data, where the file states none.
      alpha: positions of alpha bands beside them.
      has_nodata: pixels can be missing.
      by_window: windows of the image are read from the file, not cut from the decoded image.
      label_by_window: likewise for the labels.
    """

    image: Path
    mask: Path
    row: int
    col: int
    channels: tuple[int, ...]
    nodata: float | None
    alpha: tuple[int, ...]
    has_nodata: bool
    by_window: bool
    label_by_window: bool

    @property
    def image_name(self) -> str:
        """The path of the image."""
        return self.image.as_posix()

    def in_file(self, window: Window | None) -> Window:
        """Return a window of this record, default all of it, as a window of the file."""
        row, col, height, width = window or Window(0, 0, self.height, self.width)
        return Window(self.row + row, self.col + col, height, width)


class ArrayCache:
    """Keeps the most recently used arrays up to a number of bytes, safely across threads.

    Pickling keeps the limit and drops the arrays, so that each worker process fills its own cache. An array
    above a quarter of the limit is not kept, because it would displace everything else.

    Args:
      limit: bytes of all arrays together.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._arrays: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self):
        return ArrayCache, (self.limit,)

    def admits(self, size: int) -> bool:
        """Return whether an array of `size` bytes would be kept."""
        return size <= self.limit // 4

    def get(self, key: Hashable, read: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the array of a key, read-only; call `read` if it is not in the cache."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        array = read()  # outside the lock: two threads may decode the same file, but none waits for another's
        array.setflags(write=False)
        if self.admits(array.nbytes):
            self._keep(key, array)
        return array

    def _keep(self, key: Hashable, array: np.ndarray) -> None:
        with self._lock:
            if key in self._arrays:
                return
            self._arrays[key] = array
            self._bytes += array.nbytes
            while self._bytes > self.limit:
                self._bytes -= self._arrays.popitem(last=False)[1].nbytes


def find_channels(
    image: Path,
    header: Header,
    bands: Sequence[str],
    sensor: str | None,
    file_bands: Sequence[str] | None,
    domain: str = "",
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Find bands in a file; see `data_pipelines.sensors.choose_bands`.

    Args:
      image: path of the file.
      header: its header.
      bands: names of the wanted bands.
      sensor: name of the sensor whose aliases are known.
      file_bands: names of all bands of the file in order, for a file with other names or none.
      domain: domain of the file, which may tell its sensor.

    Returns:
      Positions of the bands, and of alpha bands beside them.

    Raises:
      UserError: as for `choose_bands`.
    """
    return choose_bands(
        str(image),
        bands,
        header.descriptions,
        header.colours,
        sensor=sensor,
        file_bands=file_bands,
        texts=(image.stem, domain, *header.platforms),
    )


def to_records(
    files: Sequence[ValidatedFile], tile: int | None, cache: ArrayCache, dtype: np.dtype
) -> tuple[FileRecord, ...]:
    """Return the records of files in order.

    Args:
      files: the files.
      tile: largest side in pixels of the windows that files are divided into; None for one record a file.
      cache: where decoded files will be kept.
      dtype: type of the pixels.
    """
    total = sum(sum(_sizes(file, dtype)) for file in files)
    records: list[FileRecord] = []
    for file in files:
        by_window, label_by_window = _by_window(file, _sizes(file, dtype), total, cache)
        whole = FileRecord(
            domain=file.domain,
            name=file.name,
            height=file.header.height,
            width=file.header.width,
            image=file.image,
            mask=file.mask,
            row=0,
            col=0,
            channels=file.channels,
            nodata=file.nodata,
            alpha=file.alpha,
            has_nodata=file.header.has_nodata or bool(file.alpha) or file.nodata is not None,
            by_window=by_window,
            label_by_window=label_by_window,
        )
        records += _divide(whole, tile)
    return tuple(records)


def common_dtype(files: Sequence[ValidatedFile]) -> np.dtype:
    """Return the type that the pixels of all files are read as.

    Raises:
      UserError: some files are 8-bit and others are not.
    """
    eight_bit = {file.header.dtype == np.uint8: file.image for file in files}
    if len(eight_bit) == 2:
        raise UserError(
            f"{eight_bit[False]}: not 8-bit, but {eight_bit[True]} is: "
            "store all images of a split in one type"
        )
    types = {file.header.dtype for file in files}
    return types.pop() if len(types) == 1 and types <= set(AS_STORED) else np.dtype(np.float32)


def _sizes(file: ValidatedFile, dtype: np.dtype) -> tuple[int, int]:
    """Return the bytes of an image and of its labels when decoded."""
    pixels = file.header.height * file.header.width
    return pixels * len(file.channels) * dtype.itemsize, pixels


def _by_window(
    file: ValidatedFile, sizes: tuple[int, int], total: int, cache: ArrayCache
) -> tuple[bool, bool]:
    """Return whether windows of an image, and of its labels, are read from the file.

    They are if the file is large, or if decoding it whole would take more bytes per window. Files are drawn
    at random, so the cache holds a file with a probability of at most its limit's share of `total` bytes.
    """
    missed = max(0.0, 1 - cache.limit / max(total, 1))
    image, label = (
        random_access
        and (not cache.admits(size) or size > _DECODED_WHOLE or missed * size > _DECODED_FOR_A_WINDOW)
        for random_access, size in zip(
            (file.header.random_access, file.label_random_access), sizes, strict=True
        )
    )
    return image, label


def _divide(whole: FileRecord, tile: int | None) -> list[FileRecord]:
    """Divide an image into windows of at most `tile` pixels a side, which differ by at most one pixel."""
    rows, cols = (ceil(side / tile) if tile else 1 for side in (whole.height, whole.width))
    if rows == cols == 1:
        return [whole]
    tops = [whole.height * row // rows for row in range(rows + 1)]
    lefts = [whole.width * col // cols for col in range(cols + 1)]
    return [
        dataclasses.replace(
            whole,
            name=f"{whole.name}_{top}_{left}",
            height=bottom - top,
            width=right - left,
            row=top,
            col=left,
        )
        for top, bottom in itertools.pairwise(tops)
        for left, right in itertools.pairwise(lefts)
    ]
