"""Training tiles from images of any size, drawn evenly by area or with rare classes more often.

An element of an epoch is an image and a cell of it; no pixel is read before the crop is placed. `TileIndex`
visits every cell once an epoch, `ClassBalancedIndex` draws a class first and then a place that has it. Both
are random access data sources for Grain.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np

from data_pipelines.records import IGNORE, R, Record, Source, Window
from data_pipelines.tiles.label_grid import LabelGrid, edges, label_grid
from spectralmoe_jax.errors import UserError, bad_value

_TRIES = 100  # random draws of a cell with data, before cells are searched in order


@dataclass(frozen=True)
class Tile:
    """One element of an epoch: an image that is not read yet, and a cell of it.

    Attributes:
      source: reads the image.
      record: the image.
      cell: the part of the image that this element represents.
      wanted: class that a crop from this tile has to show; None for any label.
      index: the index that it comes from, which knows where labels are; None to place crops blindly.
      on_label: whether a crop from this tile is placed over a labelled pixel of the cell, of any class.
    """

    source: Source[Any]
    record: Record
    cell: Window
    wanted: int | None = None
    index: TileIndex[Any] | None = field(default=None, repr=False, compare=False)
    on_label: bool = False
    _pixels: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def is_targeted(self) -> bool:
        """True if every crop from this tile is placed over a pixel that is searched for."""
        return self.on_label or self.wanted is not None

    def draw(self, rng: np.random.Generator, on_labels: float = 0.0) -> Tile:
        """Return this tile, or another one if no labelled pixel around its cell has data.

        Args:
          rng: random generator.
          on_labels: probability of a tile around a labelled pixel instead, as `TileIndex.draw_labelled`
            draws it.
        """
        if self.index is None:
            return self
        if on_labels and rng.random() < on_labels:
            return self.index.draw_labelled(rng)
        return self.index.with_data(self, rng)

    def find_pixel(self, rng: np.random.Generator, within: Window) -> tuple[int, int] | None:
        """Draw a labelled pixel, of the class `wanted` if set, from the coarse cells around a window.

        Args:
          rng: random generator.
          within: a window of the image.

        Returns:
          Row and column in the image; None if there is no such pixel, or no label grid.
        """
        grid = None if self.index is None else self.index.grid
        if grid is None:
            return None
        for number, cell in grid.draw_cells(rng, self.record, within, self.wanted):
            if number not in self._pixels:  # one crop may ask several times
                label = self.read_label(cell)
                held = label != IGNORE if self.wanted is None else label == self.wanted
                self._pixels[number] = np.flatnonzero(held)
            pixels = self._pixels[number]
            if len(pixels):
                row, col = divmod(int(pixels[rng.integers(len(pixels))]), cell.width)
                return cell.row + row, cell.col + col
            if self.wanted is None:
                grid.remember(number, False)
        return None

    def read_image(self, window: Window) -> np.ndarray:
        """Read pixels (height, width, C) of a window within the image."""
        return self.source.read_image(self.record, window)

    def read_label(self, window: Window) -> np.ndarray:
        """Read training ids (height, width) of a window within the image."""
        return self.source.read_label(self.record, window)


class TileIndex(Generic[R]):
    """The cells of all images of a source, as a random access source of `Tile` that is even by area.

    Every image is divided into a regular grid of ceil(H / stride) x ceil(W / stride) cells that cover each
    pixel exactly once and whose sides differ by at most one pixel. An epoch visits each cell once. A
    transform places its crop at random within the cell's share of the possible positions, so that an epoch
    samples all images evenly by area, whatever their sizes.

    If the source knows where its labels are (`label_grid`), cells that touch no coarse cell with labels are
    left out. A cell whose labelled pixels all lack data is recognised only when it is drawn; another one is
    then drawn with the generator of the element.

    Args:
      source: the images.
      stride: side of a cell in pixels; with the side of the crop, an epoch sees about every pixel once.
      records: the images to use; default all of `source.records`.
      min_labelled: smallest share of labelled pixels of an image that is used; images without labels are
        never used. Above 0, the source has to count the pixels of each class, and may have to read images.
      exact: find out at the start which cells have labelled pixels with data; the source may have to read
        images.

    Attributes:
      records: the images that are drawn from.
      grid: the label grid, or None.

    Raises:
      UserError: no images, none with labels, a stride below 1, or `min_labelled` for a source that does not
        count labels.
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
            raise bad_value("config.data.crop", stride, "must be at least 1 pixel")
        self.source, self.stride = source, stride
        self.grid = label_grid(source, exact or min_labelled > 0)
        self.records = labelled_records(source, records, min_labelled, self.grid)
        sizes = np.array([(record.height, record.width) for record in self.records])  # (images, 2)
        self._shapes = -(-sizes // stride)  # of each image, in cells
        self._ends = np.cumsum(self._shapes.prod(axis=1))  # one more than the last cell of each image
        self._cells = self._labelled_cells()

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, index: int) -> Tile:
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        cell = int(self._cells[index])
        image = int(np.searchsorted(self._ends, cell, side="right"))
        rows, cols = (int(n) for n in self._shapes[image])
        row, col = divmod(cell - int(self._ends[image]) + rows * cols, cols)
        record = self.records[image]
        top, bottom = row * record.height // rows, (row + 1) * record.height // rows
        left, right = col * record.width // cols, (col + 1) * record.width // cols
        return Tile(self.source, record, Window(top, left, bottom - top, right - left), index=self)

    def with_data(self, tile: Tile, rng: np.random.Generator) -> Tile:
        """Return `tile`, or a random one of this index if no labelled pixel around its cell has data.

        Raises:
          UserError: no cell has such a pixel, or a file cannot be read.
        """
        if self.grid is None:
            return tile
        # 1. random draws, which find a cell at once unless data are rare
        for _ in range(_TRIES):
            if self.grid.has_data(self.source, tile.record, tile.cell):
                return tile
            tile = self[int(rng.integers(len(self)))]
        # 2. all cells in order, from a random one on
        start = int(rng.integers(len(self)))
        for step in range(len(self)):
            tile = self[(start + step) % len(self)]
            if self.grid.has_data(self.source, tile.record, tile.cell):
                return tile
        raise UserError(
            f"none of the {len(self.records)} training images has data where it is labelled: check the "
            "masks, the files' nodata values and config.sensor"
        )

    def draw_labelled(self, rng: np.random.Generator) -> Tile:
        """Draw a coarse cell by its number of labelled pixels, as a tile whose crops lie over one of them.

        With a pixel drawn evenly from those of the cell (`Tile.find_pixel`), every labelled pixel of all
        images is equally likely. The index has to know where labels are.
        """
        assert self.grid is not None  # checked when the index was made for such draws
        numbers, ends = self._labelled_pixels
        place = int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))
        record, cell = self.grid.locate(int(numbers[place]))
        return Tile(self.source, record, cell, index=self, on_label=True)

    @functools.cached_property
    def _labelled_pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the coarse cells with labels, and sums of labelled pixels up to each, (n,) both."""
        assert self.grid is not None
        numbers, pixels = self.grid.labelled_cells(self.records)
        return numbers, np.cumsum(pixels)

    def _labelled_cells(self) -> np.ndarray:
        """Return the numbers of the cells, counted over all images, that touch labels."""
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
    """Return the records with a share of labelled pixels of at least `min_labelled`, and with any label.

    Args:
      source: the images.
      records: the images to choose from; default all.
      min_labelled: the share.
      grid: the label grid; None keeps all records.

    Raises:
      UserError: no record is left, or a share above 0 is asked of a source that does not count labels.
    """
    if not 0 <= min_labelled <= 1:
        raise bad_value("config.data.min_labelled", min_labelled, "must be between 0 and 1")
    chosen = tuple(source.records if records is None else records)
    if not chosen:
        raise UserError("the training split is empty: name at least one domain with images in data.source")
    if grid is None:
        if min_labelled > 0:
            must = f"must be 0, as {type(source).__name__} does not count the labelled pixels of its images"
            raise bad_value("config.data.min_labelled", min_labelled, must)
        return chosen
    labelled = grid.pixels(chosen).sum(axis=1)  # (images, K) -> (images,)
    areas = np.array([record.height * record.width for record in chosen])
    kept = (labelled > 0) & (labelled >= min_labelled * areas)
    if not kept.any():
        best = (labelled / areas).max()
        raise UserError(
            f"config.data.min_labelled = {min_labelled}: leaves none of the {len(chosen)} training images, "
            f"the best has {best:.1%} of its pixels labelled: lower it, or check the labels"
        )
    return tuple(record for record, keep in zip(chosen, kept, strict=True) if keep)


@dataclass(frozen=True)
class ClassDraw:
    """One element of an epoch of `ClassBalancedIndex`: a tile that is chosen when it is drawn."""

    index: ClassBalancedIndex[Any]

    def draw(self, rng: np.random.Generator, on_labels: float = 0.0) -> Tile:
        """Draw a class, and a coarse cell that has it; crops lie over labels whatever `on_labels` is."""
        return self.index.draw(rng)


class ClassBalancedIndex(Generic[R]):
    """Rare class sampling (Hoyer et al., DAFormer, arXiv:2111.14887, section 3.2), for `train_batches`.

    1. A class is drawn with probability proportional to exp((1 - f) / temperature), where f is its share of
       the labelled pixels of the training images.
    2. A coarse cell with this class is drawn by area (the whole image if a source counts only whole images).
    3. A pixel of the class in that cell is drawn, and a crop that covers the pixel.

    All draws use the generator of the element, so that element i of a run is a function of (seed, i). Where
    images can have nodata, the labelled parts of all images are read once at the start, so that no class is
    drawn where it has no data.

    An epoch has as many elements as one of `TileIndex`. Classes that no image has are not drawn.

    Args:
      source: the images; it has to have `class_pixels`.
      stride: as for `TileIndex`.
      records: as for `TileIndex`.
      temperature: a small value draws almost only the rarest class, a large one all classes alike.
      min_labelled: as for `TileIndex`.

    Attributes:
      probabilities: probability of each class, (K,).

    Raises:
      UserError: as for `TileIndex`, a temperature that is not above 0, or a source without `class_pixels`.
    """

    def __init__(
        self,
        source: Source[R],
        stride: int,
        records: Sequence[R] | None = None,
        *,
        temperature: float,
        min_labelled: float = 0.0,
    ):
        if not 0 < temperature < np.inf:
            raise bad_value("config.data.class_temperature", temperature, "must be above 0, or None for off")
        if getattr(source, "class_pixels", None) is None:
            must = f"must be None, as {type(source).__name__} does not count the pixels of each class"
            raise bad_value("config.data.class_temperature", temperature, must)
        self._cells = TileIndex(source, stride, records, min_labelled=min_labelled, exact=True)
        grid = self._cells.grid
        assert grid is not None  # as the source counts classes
        self._grid = grid
        counts = grid.pixels(self._cells.records).sum(axis=0)  # (images, K) -> (K,)
        self.probabilities = class_probabilities(counts, temperature)
        held = [grid.cells_with(self._cells.records, label) for label in range(len(counts))]
        self._numbers = [numbers for numbers, _ in held]  # numbers of the cells with each class
        self._ends = [np.cumsum(areas) for _, areas in held]

    @property
    def records(self) -> tuple[R, ...]:
        """The images that are drawn from."""
        return self._cells.records

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, index: int) -> ClassDraw:
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        return ClassDraw(self)

    def draw(self, rng: np.random.Generator) -> Tile:
        """Draw a class, and a coarse cell that has it."""
        # 1. a class, rare ones more often
        wanted = int(rng.choice(len(self.probabilities), p=self.probabilities))
        # 2. a cell with this class, by area
        ends = self._ends[wanted]
        place = int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))
        record, cell = self._grid.locate(int(self._numbers[wanted][place]))
        return Tile(self._cells.source, record, cell, wanted, self._cells)

    def __repr__(self) -> str:
        shares = ", ".join(f"{p:.0%}" for p in self.probabilities)
        return f"ClassBalancedIndex({len(self)} draws of {len(self.records)} images, classes {shares})"


def class_probabilities(pixels: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probability of each class, (K,), from its number of pixels; 0 for a class without any."""
    scores = (1 - pixels / pixels.sum()) / temperature
    scores = np.where(pixels > 0, scores, -np.inf)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
