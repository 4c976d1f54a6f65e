"""Counting the labels of image files that may be larger than memory, each read once from top to bottom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.sources.labels import Labels
from data_pipelines.sources.raster_file import kept_open, missing_pixels
from data_pipelines.sources.records import IGNORE, Window
from spectralmoe_jax.errors import UserError

if TYPE_CHECKING:
    from data_pipelines.sources.geotiff_tiles import FileRecord

_PIXELS = 1 << 23  # at a time
_ROWS = 256  # a multiple of these at a time, as blocks of files are


def count_labels(labels: Labels, records: Sequence[FileRecord], classes: int) -> tuple[np.ndarray, Counter]:
    """Labelled pixels (records, K) int64 of all records of one file, and the count of each unknown value.

    Raises:
      UserError: the labels are unreadable, or strict and hold a value that is unknown.
    """
    mask = records[0].mask
    counts = np.zeros((len(records), classes), np.int64)
    unknown: Counter = Counter()
    with kept_open():
        for rows in _bands_of_rows(records):
            label, values = labels.read(records[0].image, mask, rows)
            unknown += values
            for number, record in enumerate(records):
                counts[number] += _count(label[_within(record, rows)], classes)
    if unknown and labels.strict:
        value, count = unknown.most_common(1)[0]
        raise UserError(
            f"{mask}: {count} pixels hold {value}, which is neither in data.label_values nor "
            "in data.ignore_values: add it to one of them"
        )
    return counts, unknown


def count_missing(
    labels: Labels, records: Sequence[FileRecord], labelled: np.ndarray, nodata: float | None
) -> np.ndarray:
    """How many of the `labelled` pixels (records, K) of the records of one file their image lacks, likewise.

    Parts of the file without a label are not read.

    Raises:
      UserError: the image is unreadable.
    """
    image = records[0].image
    lost = np.zeros_like(labelled)
    with kept_open():
        for rows in _bands_of_rows(records):
            here = [n for n, r in enumerate(records) if labelled[n].any() and _within(r, rows)[0] != slice(0)]
            if not here:
                continue
            missing = missing_pixels(image, rows, records[0].channels, nodata)
            if missing is None:
                continue
            label, _ = labels.read(image, records[0].mask, rows)
            label = np.where(missing, label, IGNORE)
            for number in here:
                lost[number] += _count(label[_within(records[number], rows)], lost.shape[1])
    return lost


def _bands_of_rows(records: Sequence[FileRecord]) -> Iterator[Window]:
    """Windows over all of the width of a file, as many rows each as are read at a time."""
    height, width = (max(r.row + r.height for r in records), max(r.col + r.width for r in records))
    rows = max(1, _PIXELS // width)
    rows = rows // _ROWS * _ROWS or rows
    for row in range(0, height, rows):
        yield Window(row, 0, min(rows, height - row), width)


def _within(record: FileRecord, rows: Window) -> tuple[slice, slice]:
    """The part of a band of rows that is a record's; rows `slice(0)` for none."""
    top, bottom = max(record.row - rows.row, 0), min(record.row + record.height - rows.row, rows.height)
    return slice(top, bottom) if top < bottom else slice(0), slice(record.col, record.col + record.width)


def _count(label: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(label.ravel(), minlength=IGNORE + 1)[:classes]
