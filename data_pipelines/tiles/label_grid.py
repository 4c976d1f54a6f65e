"""Label grid: counts of the labelled pixels of each class in coarse cells, to find windows with labels.

The grid divides every image into cells of at most 256 pixels a side. A cell has a number, counted over all
images in order and row by row within an image.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.records import IGNORE, Record, Window

CELL = 256
"""Largest side of a coarse cell in pixels."""

_UNKNOWN, _LABELLED, _EMPTY = 0, 1, 2  # whether a labelled pixel of a cell has data


@functools.lru_cache(maxsize=1024)
def edges(side: int, cell: int = CELL) -> np.ndarray:
    """Return where the cells along a side begin and the last one ends, (n + 1,) read-only, in pixels.

    The lengths of cells differ by at most one pixel.

    Args:
      side: length of the side in pixels.
      cell: largest length of a cell in pixels.
    """
    count = -(-side // cell)
    found = np.arange(count + 1) * side // count
    found.setflags(write=False)
    return found


def grid_cells(record: Record) -> Iterator[Window]:
    """Yield the coarse cells of a record, row by row."""
    tops, lefts = edges(record.height), edges(record.width)
    for top, bottom in zip(tops[:-1].tolist(), tops[1:].tolist(), strict=True):
        for left, right in zip(lefts[:-1].tolist(), lefts[1:].tolist(), strict=True):
            yield Window(top, left, bottom - top, right - left)


class LabelGrid:
    """Counts of labelled pixels of each class in the cells of a regular grid over each image.

    Args:
      records: the images.
      counts: (cells, K) for the K classes, in the order of the cells' numbers.
      cell: largest side of a cell in pixels; None for one cell per image.
      lossy: (records,) bool, images whose counts include pixels that are nodata in the image. Whether one of
        their cells has a labelled pixel with data is found out at the first request, once in each process;
        this does not change what is drawn.
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
        self._indices = {record: index for index, record in enumerate(records)}
        sizes = np.array([(r.height, r.width) for r in records]).reshape(-1, 2)  # (records, 2)
        self._shapes = np.ones_like(sizes) if cell is None else -(-sizes // cell)  # in cells
        self._starts = np.concatenate([[0], np.cumsum(self._shapes.prod(axis=1))])  # first cell of each image
        self._known = np.zeros(len(counts), np.uint8)

    def pixels(self, records: Sequence[Record]) -> np.ndarray:
        """Return the labelled pixels of each class in each of `records`, (records, K) int64."""
        sums = np.add.reduceat(self.counts, self._starts[:-1], axis=0, dtype=np.int64)  # (cells, K) -> images
        return sums[[self._indices[record] for record in records]]

    def cells_of(self, records: slice) -> slice:
        """Return the numbers of the cells of some consecutive records."""
        return slice(int(self._starts[records.start]), int(self._starts[records.stop]))

    def labelled_parts(self, record: Record, tops: np.ndarray, lefts: np.ndarray) -> np.ndarray:
        """Return which parts of an image touch a cell with labels.

        Args:
          record: the image.
          tops: rows where the parts begin and the last one ends, (n + 1,).
          lefts: columns likewise, (m + 1,).

        Returns:
          (n, m) bool.
        """
        labelled = self._counts_of(record).any(axis=-1)  # (rows, cols, K) -> (rows, cols)
        if labelled.all():
            return np.ones((len(tops) - 1, len(lefts) - 1), bool)
        sums = np.pad(labelled.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))  # summed-area table
        (up, down), (left, right) = (
            _overlapping(self._edges(side), parts)
            for side, parts in ((record.height, tops), (record.width, lefts))
        )
        return sums[down][:, right] - sums[up][:, right] - sums[down][:, left] + sums[up][:, left] > 0

    def cells_with(self, records: Sequence[Record], wanted: int) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers and areas in pixels of the cells of `records` that hold the class `wanted`."""
        numbers, areas = [], []
        for record in records:
            index = self._indices[record]
            held = np.flatnonzero(self.counts[self._starts[index] : self._starts[index + 1], wanted])
            if len(held):
                heights, widths = np.diff(self._edges(record.height)), np.diff(self._edges(record.width))
                numbers.append(self._starts[index] + held)
                areas.append(np.outer(heights, widths).ravel()[held])
        if not numbers:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return np.concatenate(numbers), np.concatenate(areas)

    def labelled_cells(self, records: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
        """Return numbers and labelled pixels of the cells of `records` that have any, (n,) int64 both."""
        indices = [self._indices[record] for record in records]
        numbers = np.concatenate([np.arange(self._starts[i], self._starts[i + 1]) for i in indices])
        pixels = self.counts[numbers].sum(axis=1, dtype=np.int64)
        return numbers[pixels > 0], pixels[pixels > 0]

    def locate(self, number: int) -> tuple[Any, Window]:
        """Return the image of a cell and its window there."""
        index = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self.records[index], self._window(index, number)

    def draw_cells(
        self, rng: np.random.Generator, record: Record, within: Window, wanted: int | None
    ) -> Iterator[tuple[int, Window]]:
        """Yield the cells with labels that touch a window of an image, in random order.

        The more labelled pixels a cell has, the earlier it tends to come. Cells whose labelled pixels are
        known to be nodata are left out.

        Args:
          rng: random generator.
          record: the image.
          within: the window.
          wanted: only cells with this class, and only its pixels count; None for any class.
        """
        index = self._indices[record]
        numbers = self._touching(index, within)
        counts = self.counts[numbers]
        weights = (counts.sum(axis=1) if wanted is None else counts[:, wanted]).astype(np.float64)
        numbers, weights = numbers[weights > 0], weights[weights > 0]
        # Exponential variates over weights sort like draws without replacement in proportion to the weights.
        for number in numbers[np.argsort(rng.standard_exponential(len(numbers)) / weights)].tolist():
            if self._known[number] != _EMPTY:
                yield number, self._window(index, number)

    def has_data(self, source: Any, record: Record, within: Window) -> bool:
        """Return whether a cell that touches `within` has a labelled pixel with data.

        Args:
          source: reads the labels of cells for which this is not known yet.
          record: the image.
          within: a window of it.

        Raises:
          UserError: a file cannot be read.
        """
        index = self._indices[record]
        numbers = self._touching(index, within)
        numbers = numbers[self.counts[numbers].any(axis=1)]
        if not self.lossy[index]:
            return bool(len(numbers))
        if (self._known[numbers] == _LABELLED).any():
            return True
        for number in numbers[self._known[numbers] == _UNKNOWN].tolist():
            label = source.read_label(record, self._window(index, number))
            if self.remember(number, bool((label != IGNORE).any())):
                return True
        return False

    def remember(self, number: int, labelled: bool) -> bool:
        """Store whether a cell has a labelled pixel with data, and return it."""
        self._known[number] = _LABELLED if labelled else _EMPTY
        return labelled

    def _counts_of(self, record: Record) -> np.ndarray:
        """Return the counts of an image, (rows, cols, K)."""
        index = self._indices[record]
        return self.counts[self._starts[index] : self._starts[index + 1]].reshape(*self._shapes[index], -1)

    def _edges(self, side: int) -> np.ndarray:
        return np.array([0, side]) if self.cell is None else edges(side, self.cell)

    def _touching(self, index: int, window: Window) -> np.ndarray:
        """Return the numbers of the cells of an image that overlap a window."""
        record, cols = self.records[index], int(self._shapes[index][1])
        (up,), (down,) = _overlapping(
            self._edges(record.height), np.array([window.row, window.row + window.height])
        )
        (left,), (right,) = _overlapping(
            self._edges(record.width), np.array([window.col, window.col + window.width])
        )
        places = np.arange(up, down)[:, None] * cols + np.arange(left, right)
        return self._starts[index] + places.ravel()

    def _window(self, index: int, number: int) -> Window:
        """Return the window of a cell in image number `index`."""
        record = self.records[index]
        down, right = divmod(number - int(self._starts[index]), int(self._shapes[index][1]))
        top, bottom = self._edges(record.height)[down : down + 2].tolist()
        left, end = self._edges(record.width)[right : right + 2].tolist()
        return Window(top, left, bottom - top, end - left)


def _overlapping(cells: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first cell that each part overlaps and one more than the last, (n,) each.

    Args:
      cells: edges of the cells, ascending.
      parts: edges of the parts, (n + 1,).
    """
    return (
        np.searchsorted(cells, parts[:-1], side="right") - 1,
        np.searchsorted(cells, parts[1:], side="left"),
    )


def label_grid(source: Any, exact: bool = False) -> LabelGrid | None:
    """Return the label grid of a source; None if the source does not count its labels.

    Args:
      source: has `label_grid`, or `class_pixels` of whole images, or neither.
      exact: without labelled pixels that are nodata in the image; the source may have to read its images.
    """
    if getattr(source, "label_grid", None) is not None:
        return source.exact_label_grid if exact else source.label_grid
    counts = getattr(source, "class_pixels", None)
    return None if counts is None else LabelGrid(source.records, np.asarray(counts), cell=None)
