"""Random access to small windows of images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np

from data_pipelines.records import IGNORE, R, Record, Source, Window
from data_pipelines.tiles.label_grid import LabelGrid, edges, label_grid
from spectralmoe_jax.errors import UserError

_TRIES = 100  # to find a cell with data by chance


@dataclass(frozen=True)
class Tile:
    """One element of an epoch: an image not yet read, and the cell of it that this element stands for.

    A crop drawn from it holds a pixel of the class `wanted`. `index` is what it comes from, which knows where
    labels are; without it crops are placed blindly.
    """

    source: Source[Any]
    record: Record
    cell: Window
    wanted: int | None = None
    index: TileIndex[Any] | None = field(default=None, repr=False, compare=False)
    _places: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def draw(self, rng: np.random.Generator) -> Tile:
        """This tile, or another one where no labelled pixel around its cell has data."""
        return self if self.index is None else self.index.with_data(self, rng)

    def find_pixel(self, rng: np.random.Generator, within: Window) -> tuple[int, int] | None:
        """Row and column of a random labelled pixel, or one of `wanted`, in a coarse cell touching `within`.

        None if none of these cells has one, or where nothing is known about it.
        """
        grid = None if self.index is None else self.index.grid
        if grid is None:
            return None
        for number, cell in grid.draw_cells(rng, self.record, within, self.wanted):
            if number not in self._places:  # several may be asked for, for one crop
                label = self.read_label(cell)
                held = label != IGNORE if self.wanted is None else label == self.wanted
                self._places[number] = np.flatnonzero(held)
            places = self._places[number]
            if len(places):
                row, col = divmod(int(places[rng.integers(len(places))]), cell.width)
                return cell.row + row, cell.col + col
            if self.wanted is None:
                grid.note(number, False)
        return None

    def read_image(self, window: Window) -> np.ndarray:
        """Pixels (height, width, C) of `window`, which lies within the image."""
        return self.source.read_image(self.record, window)

    def read_label(self, window: Window) -> np.ndarray:
        """Training ids (height, width) of `window`, which lies within the image."""
        return self.source.read_label(self.record, window)


class TileIndex(Generic[R]):
    """The cells of all images of a source, as a Grain random access source of `Tile`.

    Every image is divided into a regular grid of ceil(H / stride) x ceil(W / stride) cells which cover
    each pixel exactly once and whose sides differ by at most one pixel. An epoch visits each cell once,
    and a transform places its window at random within the cell's share of the possible positions: an
    epoch samples all images evenly by area, whatever their sizes.

    Where the source knows where its labels are (`label_grid`), cells are left out that touch none of its
    coarse cells with labels. A cell without a labelled pixel that has data is known only when it is drawn,
    which then draws another one by the element's generator.

    Args:
      source: the images.
      stride: side of a cell in pixels; with the crop size, an epoch sees about every pixel once.
      records: the images to use; default all of `source.records`.
      min_labelled: images with a smaller share of labelled pixels are left out, and always those without
        any; above 0 the source has to count the pixels of each class, and may have to read images for it.
      exact: whether to know of every cell what it holds from the start, likewise.

    Attributes:
      records: the images that are drawn from.
      grid: where labels are, or None.

    Raises:
      UserError: no images or none with labels, a stride below 1, or a share to hold without class_pixels.
    """

    def __init__(
        self,
        source: Source[R],
        stride: int,
        records: Sequence[R] | None = None,
        *,
        min_labelled: float = 0.0,
        exact: bool = False,
    ):
        if stride < 1:
            raise UserError(f"data.crop={stride}: give at least 1 pixel")
        self.source, self.stride = source, stride
        self.grid = label_grid(source, exact or min_labelled > 0)
        self.records = labelled_records(source, records, min_labelled, self.grid)
        sizes = np.array([(record.height, record.width) for record in self.records])
        self._grids = -(-sizes // stride)
        self._ends = np.cumsum(self._grids.prod(axis=1))
        self._cells = self._labelled_cells()

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, index: int) -> Tile:
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        cell = int(self._cells[index])
        image = int(np.searchsorted(self._ends, cell, side="right"))
        rows, cols = (int(n) for n in self._grids[image])
        row, col = divmod(cell - int(self._ends[image]) + rows * cols, cols)
        record = self.records[image]
        top, bottom = row * record.height // rows, (row + 1) * record.height // rows
        left, right = col * record.width // cols, (col + 1) * record.width // cols
        return Tile(self.source, record, Window(top, left, bottom - top, right - left), index=self)

    def with_data(self, tile: Tile, rng: np.random.Generator) -> Tile:
        """`tile`, or a random one of this index where no labelled pixel around its cell has data.

        Raises:
          UserError: no cell has one, or a file cannot be read.
        """
        if self.grid is None:
            return tile
        for _ in range(_TRIES):
            if self.grid.has_data(self.source, tile.record, tile.cell):
                return tile
            tile = self[int(rng.integers(len(self)))]
        start = int(rng.integers(len(self)))
        for step in range(len(self)):
            tile = self[(start + step) % len(self)]
            if self.grid.has_data(self.source, tile.record, tile.cell):
                return tile
        raise UserError(
            f"none of the {len(self.records)} training images has data where it is labelled: check the "
            "masks, the files' nodata values and config.sensor"
        )

    def _labelled_cells(self) -> np.ndarray:
        """Numbers of the cells, of those of all images, that touch labels."""
        if self.grid is None:
            return np.arange(self._ends[-1])
        held = [
            self.grid.labelled_parts(r, edges(r.height, self.stride), edges(r.width, self.stride)).ravel()
            for r in self.records
        ]
        return np.flatnonzero(np.concatenate(held))

    def __repr__(self) -> str:
        return f"TileIndex({len(self)} cells of {len(self.records)} images)"


def labelled_records(
    source: Source[R], records: Sequence[R] | None, min_labelled: float, grid: LabelGrid | None
) -> tuple[R, ...]:
    """Those of `records`, default all of the source's, with labels on `min_labelled` of their pixels or more.

    Images without any label are always left out, as `grid` knows them; without one all stay.

    Raises:
      UserError: nothing is left, or a share above 0 of a source that does not count labels.
    """
    if not 0 <= min_labelled <= 1:
        raise UserError(f"data.min_labelled={min_labelled}: give a share of the pixels, 0 to 1")
    chosen = tuple(source.records if records is None else records)
    if not chosen:
        raise UserError("the training split is empty: name at least one domain with images in data.source")
    if grid is None:
        if min_labelled > 0:
            raise UserError(
                f"data.min_labelled={min_labelled} needs the pixels of each class in each image, which "
                f"{type(source).__name__} does not count: set it to 0"
            )
        return chosen
    labelled = grid.pixels(chosen).sum(axis=1)
    areas = np.array([record.height * record.width for record in chosen])
    kept = (labelled > 0) & (labelled >= min_labelled * areas)
    if not kept.any():
        raise UserError(
            f"data.min_labelled={min_labelled} leaves none of the {len(chosen)} training images, the best "
            f"has {(labelled / areas).max():.1%} of its pixels labelled: lower it or check the labels"
        )
    return tuple(record for record, keep in zip(chosen, kept, strict=True) if keep)
