"""Random access to small windows of images of any size."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Generic

import numpy as np

from data_pipelines.sources.records import R, Record, Source, Window
from spectralmoe_jax.errors import UserError


@dataclass(frozen=True)
class Tile:
    """One element of an epoch: an image not yet read, and the cell of it that this element stands for."""

    source: Source[Any]
    record: Record
    cell: Window

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

    Args:
      source: the images.
      stride: side of a cell in pixels; with the crop size, an epoch sees about every pixel once.
      records: the images to use; default all of `source.records`.

    Raises:
      UserError: no images, or a stride below 1.
    """

    def __init__(self, source: Source[R], stride: int, records: Sequence[R] | None = None):
        self.source = source
        self.records = tuple(source.records if records is None else records)
        if not self.records:
            raise UserError(
                "the training split is empty: name at least one domain with images in data.source"
            )
        if stride < 1:
            raise UserError(f"data.crop={stride}: give at least 1 pixel")
        self._grids = np.array([(ceil(r.height / stride), ceil(r.width / stride)) for r in self.records])
        self._ends = np.cumsum(self._grids.prod(axis=1))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Tile:
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        image = int(np.searchsorted(self._ends, index, side="right"))
        rows, cols = (int(n) for n in self._grids[image])
        row, col = divmod(index - int(self._ends[image]) + rows * cols, cols)
        record = self.records[image]
        top, bottom = row * record.height // rows, (row + 1) * record.height // rows
        left, right = col * record.width // cols, (col + 1) * record.width // cols
        return Tile(self.source, record, Window(top, left, bottom - top, right - left))

    def __repr__(self) -> str:
        return f"TileIndex({len(self)} cells of {len(self.records)} images)"
