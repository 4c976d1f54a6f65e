"""Rare classes more often: the class first, then a place that has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np

from data_pipelines.records import R, Source
from data_pipelines.tiles.tile_index import Tile, TileIndex
from spectralmoe_jax.errors import UserError


@dataclass(frozen=True)
class ClassDraw:
    """One element of an epoch of `ClassBalancedIndex`: a tile that is chosen when it is drawn."""

    index: "ClassBalancedIndex[Any]"

    def draw(self, rng: np.random.Generator) -> Tile:
        """A coarse cell that holds a drawn class, and which class that is."""
        return self.index.draw(rng)


class ClassBalancedIndex(Generic[R]):
    """Rare class sampling (Hoyer et al., DAFormer, arXiv:2111.14887, section 3.2), for `train_batches`.

    A class is drawn with probability proportional to exp((1 - f) / temperature), f being its share of the
    labelled pixels of the training images, then a coarse cell (`label_grid`; the whole image where a source
    counts only images) that has it, each by its area, then a pixel of the class in it and a crop that covers
    that pixel. All of it by the generator of the element alone, so that element i of a run is a function of
    (seed, i). Where images can lack pixels, the labelled parts of all are read once at the start, so that no
    class is drawn where it has no data.

    An epoch has as many elements as one of `TileIndex`. Classes that no image has are not drawn.

    Args:
      source, stride, records, min_labelled: as `TileIndex`'s; the source has to have `class_pixels`.
      temperature: small ones draw the rarest class alone, large ones all alike.

    Attributes:
      probabilities: of each class to be drawn, (K,).

    Raises:
      UserError: as `TileIndex`, a temperature that is not above 0, or a source without `class_pixels`.
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
            raise UserError(f"data.class_temperature={temperature}: give a number above 0, or None for off")
        if getattr(source, "class_pixels", None) is None:
            raise UserError(
                f"data.class_temperature={temperature} needs the pixels of each class in each image, which "
                f"{type(source).__name__} does not count: set it to None"
            )
        self._cells = TileIndex(source, stride, records, min_labelled=min_labelled, exact=True)
        grid = self._cells.grid
        assert grid is not None  # as the source counts classes
        self._grid = grid
        counts = grid.pixels(self._cells.records).sum(axis=0)
        self.probabilities = class_probabilities(counts, temperature)
        held = [grid.cells_with(self._cells.records, label) for label in range(len(counts))]
        self._places = [numbers for numbers, _ in held]
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
        """A random class, and a random coarse cell that has it."""
        wanted = int(rng.choice(len(self.probabilities), p=self.probabilities))
        ends = self._ends[wanted]
        number = int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))
        record, cell = self._grid.place(int(self._places[wanted][number]))
        return Tile(self._cells.source, record, cell, wanted, self._cells)

    def __repr__(self) -> str:
        shares = ", ".join(f"{p:.0%}" for p in self.probabilities)
        return f"ClassBalancedIndex({len(self)} draws of {len(self.records)} images, classes {shares})"


def class_probabilities(pixels: np.ndarray, temperature: float) -> np.ndarray:
    """Chance of each class to be drawn, (K,), from its number of pixels; 0 for a class without any."""
    scores = (1 - pixels / pixels.sum()) / temperature
    scores = np.where(pixels > 0, scores, -np.inf)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
