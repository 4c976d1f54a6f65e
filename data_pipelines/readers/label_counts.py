"""Counting the labels of image files that may be larger than memory, each read once from top to bottom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.readers.labels import Labels
from data_pipelines.readers.raster_file import keep_files_open, missing_pixels
from data_pipelines.records import IGNORE, Window
from data_pipelines.tiles.label_grid import grid_cells
from spectralmoe_jax.errors import UserError

if TYPE_CHECKING:
    from data_pipelines.readers.file_records import FileRecord

_PIXELS = 1 << 23  # at a time
_ROWS = 256  # a multiple of these at a time, as blocks of files are


def count_labels(labels: Labels, records: Sequence[FileRecord], classes: int) -> tuple[np.ndarray, Counter]:
    """Labelled pixels (cells, K) uint32 in the coarse cells of all records of one file, as `LabelGrid` has
    them, and the count of each unknown value.

    Raises:
      UserError: the labels are unreadable, or strict and hold a value that is unknown.
    """
    mask = records[0].mask
    cells = _cells(records)
    counts = np.zeros((len(cells), classes), np.uint32)
    unknown: Counter = Counter()
    with keep_files_open():
        for rows in _bands_of_rows(records):
            label, values = labels.read(records[0].image, mask, rows)
            unknown += values
            for number in _cut_by(rows, cells):
                counts[number] += _count(label, cells[number], rows, classes)
    if unknown and labels.strict:
        value, count = unknown.most_common(1)[0]
        raise UserError(
            f"{mask}: {count} pixels hold {value}, which is neither in data.label_values nor "
            "in data.ignore_values: add it to one of them"
        )
    return counts, unknown


def count_missing(labels: Labels, records: Sequence[FileRecord], labelled: np.ndarray) -> np.ndarray:
    """How many of the `labelled` pixels (cells, K) of the records of one file their image lacks, likewise.

    Of the file, only what lies around cells with labels is read.

    Raises:
      UserError: the image is unreadable.
    """
    image, cells = records[0].image, _cells(records)
    lost = np.zeros_like(labelled)
    with keep_files_open():
        for rows in _bands_of_rows(records):
            here = [number for number in _cut_by(rows, cells) if labelled[number].any()]
            if not here:
                continue
            part = _around([cells[number] for number in here], rows)
            first = records[0]
            missing = missing_pixels(image, part, first.channels, first.nodata, first.alpha)
            if missing is None:
                continue
            label, _ = labels.read(image, records[0].mask, part)
            label = np.where(missing, label, IGNORE)
            for number in here:
                lost[number] += _count(label, cells[number], part, lost.shape[1])
    return lost


def _cells(records: Sequence[FileRecord]) -> list[Window]:
    """The coarse cells of all records, as windows of their file."""
    return [record.in_file(cell) for record in records for cell in grid_cells(record)]


def _bands_of_rows(records: Sequence[FileRecord]) -> Iterator[Window]:
    """Windows over all of the width of a file, as many rows each as are read at a time."""
    height, width = (max(r.row + r.height for r in records), max(r.col + r.width for r in records))
    rows = max(1, _PIXELS // width)
    rows = rows // _ROWS * _ROWS or rows
    for row in range(0, height, rows):
        yield Window(row, 0, min(rows, height - row), width)


def _cut_by(rows: Window, cells: Sequence[Window]) -> list[int]:
    """Numbers of the cells that share pixels with a band of rows."""
    return [
        number
        for number, cell in enumerate(cells)
        if cell.row < rows.row + rows.height and rows.row < cell.row + cell.height
    ]


def _around(cells: Sequence[Window], rows: Window) -> Window:
    """The part of a band of rows that holds what it cuts of all these cells."""
    top = max(rows.row, min(cell.row for cell in cells))
    bottom = min(rows.row + rows.height, max(cell.row + cell.height for cell in cells))
    left, right = min(cell.col for cell in cells), max(cell.col + cell.width for cell in cells)
    return Window(top, left, bottom - top, right - left)


def _count(label: np.ndarray, cell: Window, part: Window, classes: int) -> np.ndarray:
    """Pixels of each class (K,) of a cell, within `label`, the ids of a part of the same file."""
    top, left = max(cell.row - part.row, 0), cell.col - part.col
    inside = label[top : max(cell.row + cell.height - part.row, 0), left : left + cell.width]
    return np.bincount(inside.ravel(), minlength=IGNORE + 1)[:classes].astype(np.uint32)
