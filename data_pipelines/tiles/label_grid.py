"""Where in images which classes are: labelled pixels in coarse cells, for windows that hold some."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.records import IGNORE, Record, Window

CELL = 256
"""Side of a coarse cell in pixels, at most."""

_UNKNOWN, _LABELLED, _EMPTY = 0, 1, 2


@functools.lru_cache(maxsize=1024)
def edges(side: int, cell: int = CELL) -> np.ndarray:
    """Where the cells of `side` pixels begin, and the last one ends, (n + 1,) read-only; they differ by at
    most 1."""
    count = -(-side // cell)
    found = np.arange(count + 1) * side // count
    found.setflags(write=False)
    return found


def grid_cells(record: Record) -> Iterator[Window]:
    """The coarse cells of a record, row by row."""
    tops, lefts = edges(record.height), edges(record.width)
    for top, bottom in zip(tops[:-1].tolist(), tops[1:].tolist(), strict=True):
        for left, right in zip(lefts[:-1].tolist(), lefts[1:].tolist(), strict=True):
            yield Window(top, left, bottom - top, right - left)


class LabelGrid:
    """Labelled pixels of each class in the cells of a regular grid over each image.

    Args:
      records: the images.
      counts: (cells, K), the cells of one image after the other, each row by row.
      cell: side of the cells, at most; None for one cell an image.
      lossy: of which images (records,) the counts are those of the labels alone, with pixels that the image
        itself lacks. Whether one of their cells has a labelled pixel with data is then found out when that
        is first asked for, once in a process, and does not change what is drawn.
    """

    def __init__(
        self,
        records: Sequence[Record],
        counts: np.ndarray,
        cell: int | None = CELL,
        lossy: np.ndarray | None = None,
    ):
        self.records, self.counts, self.cell = records, counts, cell
        self.lossy = np.zeros(len(records), bool) if lossy is None else lossy
        self._rows = {record: row for row, record in enumerate(records)}
        sizes = np.array([(r.height, r.width) for r in records]).reshape(-1, 2)
        self._shapes = np.ones_like(sizes) if cell is None else -(-sizes // cell)
        self._starts = np.concatenate([[0], np.cumsum(self._shapes.prod(axis=1))])
        self._known = np.zeros(len(counts), np.uint8)

    def pixels(self, records: Sequence[Record]) -> np.ndarray:
        """Labelled pixels of each class in each of `records`, (records, K) int64."""
        sums = np.add.reduceat(self.counts, self._starts[:-1], axis=0, dtype=np.int64)
        return sums[[self._rows[record] for record in records]]

    def cells_of(self, rows: slice) -> slice:
        """Which cells are those of the images `rows` of the records."""
        return slice(int(self._starts[rows.start]), int(self._starts[rows.stop]))

    def labelled_parts(self, record: Record, tops: np.ndarray, lefts: np.ndarray) -> np.ndarray:
        """Which parts of an image, between edges `tops` (n + 1,) and `lefts` (m + 1,), touch a cell with
        labels, (n, m) bool."""
        labelled = self._of(record).any(axis=-1)
        if labelled.all():
            return np.ones((len(tops) - 1, len(lefts) - 1), bool)
        sums = np.pad(labelled.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
        (up, down), (left, right) = (
            _touched(self._edges(side), parts)
            for side, parts in ((record.height, tops), (record.width, lefts))
        )
        return sums[down][:, right] - sums[up][:, right] - sums[down][:, left] + sums[up][:, left] > 0

    def cells_with(self, records: Sequence[Record], wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the cells of `records` that hold the class `wanted`, and their areas in pixels."""
        numbers, areas = [], []
        for record in records:
            row = self._rows[record]
            held = np.flatnonzero(self.counts[self._starts[row] : self._starts[row + 1], wanted])
            if len(held):
                heights, widths = np.diff(self._edges(record.height)), np.diff(self._edges(record.width))
                numbers.append(self._starts[row] + held)
                areas.append(np.outer(heights, widths).ravel()[held])
        if not numbers:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return np.concatenate(numbers), np.concatenate(areas)

    def place(self, number: int) -> tuple[Any, Window]:
        """The image and the window of it that a cell is."""
        row = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self.records[row], self._window(row, number)

    def draw_cells(
        self, rng: np.random.Generator, record: Record, within: Window, wanted: int | None
    ) -> Iterator[tuple[int, Window]]:
        """Cells that touch a window of an image and have labels, or the class `wanted`, in random order.

        The more such pixels, the earlier; cells that are known to have none with data are left out.
        """
        row = self._rows[record]
        numbers = self._touching(row, within)
        counts = self.counts[numbers]
        weights = (counts.sum(axis=1) if wanted is None else counts[:, wanted]).astype(np.float64)
        numbers, weights = numbers[weights > 0], weights[weights > 0]
        # The least of exponential numbers over their weights is each one's with the chance of its share.
        for number in numbers[np.argsort(rng.standard_exponential(len(numbers)) / weights)].tolist():
            if self._known[number] != _EMPTY:
                yield number, self._window(row, number)

    def has_data(self, source: Any, record: Record, within: Window) -> bool:
        """Whether a cell that touches `within` has a labelled pixel with data, as `source` reads it.

        Raises UserError where that cannot be read.
        """
        row = self._rows[record]
        numbers = self._touching(row, within)
        numbers = numbers[self.counts[numbers].any(axis=1)]
        if not self.lossy[row]:
            return bool(len(numbers))
        if (self._known[numbers] == _LABELLED).any():
            return True
        for number in numbers[self._known[numbers] == _UNKNOWN].tolist():
            label = source.read_label(record, self._window(row, number))
            if self.note(number, bool((label != IGNORE).any())):
                return True
        return False

    def note(self, number: int, labelled: bool) -> bool:
        """Remembers whether a cell has a labelled pixel with data; returns it."""
        self._known[number] = _LABELLED if labelled else _EMPTY
        return labelled

    def _of(self, record: Record) -> np.ndarray:
        """(rows, cols, K) of an image."""
        row = self._rows[record]
        return self.counts[self._starts[row] : self._starts[row + 1]].reshape(*self._shapes[row], -1)

    def _edges(self, side: int) -> np.ndarray:
        return np.array([0, side]) if self.cell is None else edges(side, self.cell)

    def _touching(self, row: int, window: Window) -> np.ndarray:
        """Numbers of the cells of an image that overlap a window."""
        record, cols = self.records[row], int(self._shapes[row][1])
        (up,), (down,) = _touched(
            self._edges(record.height), np.array([window.row, window.row + window.height])
        )
        (left,), (right,) = _touched(
            self._edges(record.width), np.array([window.col, window.col + window.width])
        )
        places = np.arange(up, down)[:, None] * cols + np.arange(left, right)
        return self._starts[row] + places.ravel()

    def _window(self, row: int, number: int) -> Window:
        record = self.records[row]
        down, right = divmod(number - int(self._starts[row]), int(self._shapes[row][1]))
        top, bottom = self._edges(record.height)[down : down + 2].tolist()
        left, end = self._edges(record.width)[right : right + 2].tolist()
        return Window(top, left, bottom - top, end - left)


def _touched(cells: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First cell that each part between edges `parts` overlaps, and the one after its last, (n,) each."""
    return (
        np.searchsorted(cells, parts[:-1], side="right") - 1,
        np.searchsorted(cells, parts[1:], side="left"),
    )


def label_grid(source: Any, exact: bool = False) -> LabelGrid | None:
    """What a source knows of where its labels are; None where it does not count them.

    Args:
      source: has `label_grid`, or `class_pixels` of whole images, or neither.
      exact: without the pixels that images lack; the source may have to read them for it.
    """
    if getattr(source, "label_grid", None) is not None:
        return source.exact_label_grid if exact else source.label_grid
    counts = getattr(source, "class_pixels", None)
    return None if counts is None else LabelGrid(source.records, np.asarray(counts), cell=None)
