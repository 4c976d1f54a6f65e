"""Counts of labelled pixels in coarse cells, and of those that the image lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines.readers.file_records import FileRecord
from data_pipelines.readers.labels import LOSSY, Labels
from data_pipelines.readers.raster_file import keep_files_open, missing_pixels
from data_pipelines.readers.raster_header import read_header
from data_pipelines.records import IGNORE, Window
from data_pipelines.tiles.label_grid import grid_cells
from spectralmoe_jax.errors import UserError

_PIXELS = 1 << 23  # counted at a time
_ROWS = 256  # rows are read in multiples of this, as blocks of files have


def count_labels(labels: Labels, records: Sequence[FileRecord], classes: int) -> tuple[np.ndarray, Counter]:
    """Count the labels of one file in coarse cells.

    Args:
      labels: reads the labels.
      records: all records of the file.
      classes: number of classes K.

    Returns:
      Labelled pixels (cells, K) uint32, as `LabelGrid` has them, and the count of each unknown value.

    Raises:
      UserError: the labels are unreadable, or strict and have an unknown value.
    """
    mask = records[0].mask
    cells = _cells(records)
    counts = np.zeros((len(cells), classes), np.uint32)
    unknown: Counter = Counter()
    with keep_files_open():
        for rows in _bands_of_rows(records):
            label, values = labels.read(records[0].image, mask, rows)
            unknown += values
            for number in _overlapping(rows, cells):
                counts[number] += _count(label, cells[number], rows, classes)
    if unknown and labels.strict:
        value, count = unknown.most_common(1)[0]
        lossy = read_header(mask).lossy
        raise UserError(
            f"{mask}: {count} pixels hold {value}, which is neither in data.label_values nor "
            "in data.ignore_values: "
            + (f"{LOSSY}, which changes values: store masks as PNG" if lossy else "add it to one of them")
        )
    return counts, unknown


def count_missing(labels: Labels, records: Sequence[FileRecord], labelled: np.ndarray) -> np.ndarray:
    """Count the labelled pixels of one file that are missing in the image; reads only around labelled cells.

    Args:
      labels: reads the labels.
      records: all records of the file.
      labelled: labelled pixels (cells, K), from `count_labels`.

    Returns:
      (cells, K).

    Raises:
      UserError: the image is unreadable.
    """
    image, cells = records[0].image, _cells(records)
    lost = np.zeros_like(labelled)
    with keep_files_open():
        for rows in _bands_of_rows(records):
            here = [number for number in _overlapping(rows, cells) if labelled[number].any()]
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
    """Return the coarse cells of all records as windows of the file."""
    return [record.in_file(cell) for record in records for cell in grid_cells(record)]


def _bands_of_rows(records: Sequence[FileRecord]) -> Iterator[Window]:
    """Yield windows over the full width of the file, from top to bottom."""
    height, width = (max(r.row + r.height for r in records), max(r.col + r.width for r in records))
    rows = max(1, _PIXELS // width)
    rows = rows // _ROWS * _ROWS or rows
    for row in range(0, height, rows):
        yield Window(row, 0, min(rows, height - row), width)


def _overlapping(rows: Window, cells: Sequence[Window]) -> list[int]:
    """Return the numbers of the cells that overlap some rows."""
    return [
        number
        for number, cell in enumerate(cells)
        if cell.row < rows.row + rows.height and rows.row < cell.row + cell.height
    ]


def _around(cells: Sequence[Window], rows: Window) -> Window:
    """Return the smallest part of some rows that contains their share of all `cells`."""
    top = max(rows.row, min(cell.row for cell in cells))
    bottom = min(rows.row + rows.height, max(cell.row + cell.height for cell in cells))
    left, right = min(cell.col for cell in cells), max(cell.col + cell.width for cell in cells)
    return Window(top, left, bottom - top, right - left)


def _count(label: np.ndarray, cell: Window, part: Window, classes: int) -> np.ndarray:
    """Count the pixels of each class (K,) in a cell, from `label`, the ids of a part of the file."""
    top, left = max(cell.row - part.row, 0), cell.col - part.col
    inside = label[top : max(cell.row + cell.height - part.row, 0), left : left + cell.width]
    return np.bincount(inside.ravel(), minlength=IGNORE + 1)[:classes].astype(np.uint32)
