"""Random access to small windows of images of any size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np

from data_pipelines.sources.records import R, Record, Source, Window
from spectralmoe_jax.errors import UserError


@dataclass(frozen=True)
class Tile:
    """One element of an epoch: an image not yet read, and the cell of it that this element stands for.

    A crop drawn from it holds a pixel of the class `wanted` where one is easily found.
    """

    source: Source[Any]
    record: Record
    cell: Window
    wanted: int | None = None

    def draw(self, rng: np.random.Generator) -> "Tile":
        """This tile; other kinds of elements choose theirs with the generator."""
        del rng
        return self

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
      min_labelled: images with a smaller share of labelled pixels are left out, and always those without
        any; as the source's `class_pixels` say, where it has them.

    Attributes:
      records: the images that are drawn from.

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
    ):
        if stride < 1:
            raise UserError(f"data.crop={stride}: give at least 1 pixel")
        self.source = source
        self.records = labelled_records(source, records, min_labelled)
        sizes = np.array([(record.height, record.width) for record in self.records])
        self._grids = -(-sizes // stride)
        self._ends = np.cumsum(self.areas)

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

    @property
    def areas(self) -> np.ndarray:
        """Number of cells of each image, (images,)."""
        return self._grids.prod(axis=1)

    def __repr__(self) -> str:
        return f"TileIndex({len(self)} cells of {len(self.records)} images)"


def labelled_records(
    source: Source[R], records: Sequence[R] | None = None, min_labelled: float = 0.0
) -> tuple[R, ...]:
    """Those of `records`, default all of the source's, with labels on `min_labelled` of their pixels or more.

    Images without any label are always left out, unless the source does not know: one without
    `class_pixels` gives all its records.

    Raises:
      UserError: nothing is left, or a share above 0 of a source without `class_pixels`.
    """
    if not 0 <= min_labelled <= 1:
        raise UserError(f"data.min_labelled={min_labelled}: give a share of the pixels, 0 to 1")
    chosen = tuple(source.records if records is None else records)
    if not chosen:
        raise UserError("the training split is empty: name at least one domain with images in data.source")
    counts = class_pixels(source, chosen)
    if counts is None:
        if min_labelled > 0:
            raise UserError(
                f"data.min_labelled={min_labelled} needs the pixels of each class in each image, which "
                f"{type(source).__name__} does not count: set it to 0"
            )
        return chosen
    labelled = counts.sum(axis=1)
    areas = np.array([record.height * record.width for record in chosen])
    kept = (labelled > 0) & (labelled >= min_labelled * areas)
    if not kept.any():
        raise UserError(
            f"data.min_labelled={min_labelled} leaves none of the {len(chosen)} training images, the best "
            f"has {(labelled / areas).max():.1%} of its pixels labelled: lower it or check the labels"
        )
    return tuple(record for record, keep in zip(chosen, kept, strict=True) if keep)


def class_pixels(source: Source[R], records: Sequence[R]) -> np.ndarray | None:
    """Labelled pixels of each class in each of `records`, (records, K); None if the source does not know."""
    counts = getattr(source, "class_pixels", None)
    if counts is None:
        return None
    rows = {record: row for row, record in enumerate(source.records)}
    return np.asarray(counts)[[rows[record] for record in records]]
