"""What is known of an image file and its labels before pixels are read, and the records it becomes.

A cache of decoded images, limited by its size in memory.
"""

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

from data_pipelines.readers.raster_file import AS_STORED, Header
from data_pipelines.records import Record, Window
from data_pipelines.sensors.band_selection import choose_bands
from spectralmoe_jax.errors import UserError


class ArrayCache:
    """Keeps the most recently used arrays, at most `limit` bytes of them, safely across threads.

    Pickling keeps the limit and drops the arrays, so each worker process fills its own. An array above
    a quarter of the limit is never kept: it would push out everything else.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._arrays: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self):
        return ArrayCache, (self.limit,)

    def admits(self, size: int) -> bool:
        """Whether an array of `size` bytes would be kept."""
        return size <= self.limit // 4

    def get(self, key: Hashable, read: Callable[[], np.ndarray]) -> np.ndarray:
        """The array under `key`, through `read()` if it is not here. Read-only."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        array = read()  # outside the lock: two threads may decode the same file, none waits for another's
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


_DECODED_WHOLE = 16 << 20  # bytes; larger files are read by window where their format allows it
_DECODED_FOR_A_WINDOW = 2 << 20  # bytes, about what a window and the blocks that it touches take


@dataclass(frozen=True)
class FileRecord(Record):
    """A `Record` with its two files, and the window of them that it is.

    Attributes:
      channels: places in the file of the source's bands.
      nodata: the value of pixels without data, where the file states none.
      alpha: whether the file's last band is an alpha beside them.
      has_nodata: whether pixels can be missing.
      by_window, label_by_window: whether windows of the image, of the labels, are read on their own, and not
        cut from the decoded file.
    """

    image: Path
    mask: Path
    row: int
    col: int
    channels: tuple[int, ...]
    nodata: float | None
    alpha: bool
    has_nodata: bool
    by_window: bool
    label_by_window: bool

    @property
    def image_name(self) -> str:
        return self.image.as_posix()

    def in_file(self, window: Window | None) -> Window:
        """`window` of this record, default all of it, as a window of the file."""
        row, col, height, width = window or Window(0, 0, self.height, self.width)
        return Window(self.row + row, self.col + col, height, width)


class Checked(NamedTuple):
    """What was found out of an image that is right, and its labels, before there are records.

    Attributes:
      domain, name, image, mask: of the record that it becomes, if it is not divided.
      channels, nodata, alpha: likewise.
      label_random_access: whether windows of the labels are read without decoding what lies before them.
    """

    domain: str
    name: str
    image: Path
    mask: Path
    header: Header
    channels: tuple[int, ...]
    nodata: float | None
    alpha: bool
    label_random_access: bool


def find_channels(
    image: Path,
    header: Header,
    bands: Sequence[str],
    sensor: str | None,
    file_bands: Sequence[str] | None,
    domain: str = "",
) -> tuple[tuple[int, ...], bool]:
    """Places of `bands` in a file, and whether its last band is an alpha beside them.

    Raises UserError as `sensors.choose_bands`.
    """
    return choose_bands(
        str(image), bands, header.descriptions, header.colours, sensor=sensor, file_bands=file_bands,
        texts=(image.stem, domain, *header.platforms),
    )  # fmt: skip


def to_records(
    files: Sequence[Checked], tile: int | None, cache: ArrayCache, dtype: np.dtype
) -> tuple[FileRecord, ...]:
    """The records of all files, in order: one a file, or its windows of at most `tile` pixels a side.

    Args:
      cache: where decoded files will be kept.
      dtype: of the pixels.
    """
    total = sum(sum(_sizes(file, dtype)) for file in files)
    records: list[FileRecord] = []
    for file in files:
        height, width = file.header.height, file.header.width
        by_window, label_by_window = _by_window(file, _sizes(file, dtype), total, cache)
        whole = FileRecord(
            file.domain, file.name, height, width, file.image, file.mask, 0, 0, file.channels, file.nodata,
            file.alpha, file.header.has_nodata or file.alpha or file.nodata is not None, by_window,
            label_by_window,
        )  # fmt: skip
        records += _divide(whole, tile)
    return tuple(records)


def common_dtype(files: Sequence[Checked]) -> np.dtype:
    """The type that all pixels are read as. Raises UserError for 8-bit files among others."""
    eight_bit = {file.header.dtype == np.uint8: file.image for file in files}
    if len(eight_bit) == 2:
        raise UserError(
            f"{eight_bit[False]}: not 8-bit, but {eight_bit[True]} is: "
            "store all images of a split in one type"
        )
    types = {file.header.dtype for file in files}
    return types.pop() if len(types) == 1 and types <= set(AS_STORED) else np.dtype(np.float32)


def _sizes(file: Checked, dtype: np.dtype) -> tuple[int, int]:
    """Bytes of an image and of its labels when decoded."""
    pixels = file.header.height * file.header.width
    return pixels * len(file.channels) * dtype.itemsize, pixels


def _by_window(file: Checked, sizes: tuple[int, int], total: int, cache: ArrayCache) -> tuple[bool, bool]:
    """Whether windows of an image, and of its labels, are to be read on their own.

    That is so for large files, and where decoding whole ones would take more bytes a window: files are
    drawn at random, so the cache finds one of `total` bytes at best with the chance of its share of them.
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
    """The records of an image: one, or its windows, whose sides differ by at most a pixel."""
    rows, cols = (ceil(side / tile) if tile else 1 for side in (whole.height, whole.width))
    if rows == cols == 1:
        return [whole]
    tops = [whole.height * row // rows for row in range(rows + 1)]
    lefts = [whole.width * col // cols for col in range(cols + 1)]
    return [
        dataclasses.replace(
            whole, name=f"{whole.name}_{top}_{left}", height=bottom - top, width=right - left,
            row=top, col=left,
        )
        for top, bottom in itertools.pairwise(tops)
        for left, right in itertools.pairwise(lefts)
    ]  # fmt: skip
