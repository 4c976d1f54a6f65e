"""Rare classes more often: the class first, then an image that has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np

from data_pipelines.sources.records import R, Source, Window
from data_pipelines.sources.tiles import Tile, TileIndex, class_pixels
from spectralmoe_jax.errors import UserError


@dataclass(frozen=True)
class ClassDraw:
    """One element of an epoch of `ClassBalancedIndex`: a tile that is chosen when it is drawn."""

    index: "ClassBalancedIndex[Any]"

    def draw(self, rng: np.random.Generator) -> Tile:
        """The whole of an image that holds a drawn class, and which class that is."""
        return self.index.draw(rng)


class ClassBalancedIndex(Generic[R]):
    """Rare class sampling (Hoyer et al., DAFormer, arXiv:2111.14887, section 3.2), for `train_batches`.

    A class is drawn with probability proportional to exp((1 - f) / temperature), f being its share of the
    labelled pixels of the training images, then an image that has it, each by its area, then the crop: one
    with a pixel of the class, if ten tries find one. All of it by the generator of the element alone, so that
    element i of a run is a function of (seed, i).

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
        self._cells = TileIndex(source, stride, records, min_labelled=min_labelled)
        counts = class_pixels(source, self._cells.records)
        assert counts is not None  # as the source has them
        self.probabilities = class_probabilities(counts.sum(axis=0), temperature)
        self._images = [np.flatnonzero(column) for column in counts.T]
        self._ends = [np.cumsum(self._cells.areas[images]) for images in self._images]

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
        """A random image, all of it as the cell, and the class it was chosen for."""
        wanted = int(rng.choice(len(self.probabilities), p=self.probabilities))
        ends = self._ends[wanted]
        place = int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))
        record = self.records[self._images[wanted][place]]
        return Tile(self._cells.source, record, Window(0, 0, record.height, record.width), wanted)

    def __repr__(self) -> str:
        shares = ", ".join(f"{p:.0%}" for p in self.probabilities)
        return f"ClassBalancedIndex({len(self)} draws of {len(self.records)} images, classes {shares})"


def class_probabilities(pixels: np.ndarray, temperature: float) -> np.ndarray:
    """Chance of each class to be drawn, (K,), from its number of pixels; 0 for a class without any."""
    scores = (1 - pixels / pixels.sum()) / temperature
    scores = np.where(pixels > 0, scores, -np.inf)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
