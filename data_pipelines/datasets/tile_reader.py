"""Tiles of a published data set: the grid they are cut on, their pixels, and masks turned into training ids.

A mask value that a rule does not know is an error and is never guessed. The readers of image files are
imported when a file is read: a configuration needs only classes and bands of a data set, and not rasterio.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from data_pipelines.datasets.dataset import Pair
from data_pipelines.readers.label_codes import ColourCode
from data_pipelines.records import IGNORE, Window
from spectralmoe_jax.errors import UserError

if TYPE_CHECKING:
    from data_pipelines.readers.raster_header import Header

TILE = 512
"""Side of the published tiles in pixels."""

Grid = Callable[[Window], tuple[Window, ...]]
Area = Callable[[Pair, "Header"], Window]
_UNKNOWN = 254  # marks values that a rule does not know, until they are reported


def whole(area: Window) -> tuple[Window, ...]:
    """Return `area` as a single tile."""
    return (area,)


def padded(area: Window) -> tuple[Window, ...]:
    """Cover `area` row by row with adjacent tiles of 512 pixels, from its upper left corner.

    The last row and column extend beyond `area` unless its sides are multiples of 512.
    """
    return tuple(
        Window(area.row + TILE * row, area.col + TILE * col, TILE, TILE)
        for row in range(ceil(area.height / TILE))
        for col in range(ceil(area.width / TILE))
    )


def flush(area: Window) -> tuple[Window, ...]:
    """Cover `area` as `padded` does, with the last row and column shifted back to its edge.

    Shifted tiles overlap their neighbours. Tiles extend beyond `area` only if it is smaller than a tile.
    """
    bottom, right = area.row + max(area.height - TILE, 0), area.col + max(area.width - TILE, 0)
    return tuple(
        Window(min(row, bottom), min(col, right), height, width) for row, col, height, width in padded(area)
    )


def read_header(path: Path) -> Header:
    """Read the header of an image file; see `data_pipelines.readers.raster_header`."""
    from data_pipelines.readers.raster_header import read_header  # imports rasterio

    return read_header(path)


def read_mask(path: Path, window: Window | None = None) -> np.ndarray:
    """Read a mask as stored, (h, w, bands); see `data_pipelines.readers.raster_file`."""
    from data_pipelines.readers.raster_file import read_mask  # imports rasterio

    return read_mask(path, window)[0]


def read_pixels(path: Path, window: Window, channels: Sequence[int] | None) -> np.ndarray:
    """Read pixels (h, w, C); see `data_pipelines.readers.raster_file`."""
    from data_pipelines.readers.raster_file import read_pixels  # imports rasterio

    return read_pixels(path, window, channels)[0]


def image_area(_pair: Pair, image: Header) -> Window:
    """Return the whole image as the area to cut into tiles."""
    return Window(0, 0, image.height, image.width)


class TileReader:
    """Cuts and reads the tiles of one data set.

    Args:
      count: number of bands of an image file.
      dtype: type of its pixels.
      rule: meaning of the mask values.
      grid: returns the tiles of an area.
      area: returns the part of an image that is cut into tiles; pixels outside it are in no tile.
      channels: positions in the file of the bands of a tile; default all.
    """

    def __init__(
        self,
        *,
        count: int,
        dtype: type,
        rule: Rule,
        grid: Grid = whole,
        area: Area = image_area,
        channels: Sequence[int] | None = None,
    ):
        self._count, self._dtype, self._rule = count, np.dtype(dtype), rule
        self._grid, self._area = grid, area
        self._channels = None if channels is None else tuple(channels)

    def cells(self, pair: Pair) -> tuple[Window, ...]:
        """Return the tiles of a pair, in pixels of its files.

        Raises:
          UserError: a file is unreadable, or image and mask differ in size.
        """
        return self._grid(self._checked_area(pair))

    def read(self, pair: Pair, cell: Window) -> tuple[np.ndarray, np.ndarray]:
        """Read one tile.

        Args:
          pair: the files.
          cell: one of `cells(pair)`.

        Returns:
          Pixels (h, w, C) and training ids (h, w) uint8; 0 and 255 outside the area.

        Raises:
          UserError: a file is unreadable, an image has other bands or another type than published, or a mask
            has a value that the rule does not know.
        """
        area = self._checked_area(pair)
        row, col = max(cell.row, area.row), max(cell.col, area.col)
        bottom = min(cell.row + cell.height, area.row + area.height)
        right = min(cell.col + cell.width, area.col + area.width)
        part = Window(row, col, bottom - row, right - col)
        image = read_pixels(pair.image, part, self._channels).astype(self._dtype, copy=False)
        label = self._rule.read(pair.label, part)
        margins = [
            (row - cell.row, cell.row + cell.height - bottom),
            (col - cell.col, cell.col + cell.width - right),
        ]
        if not any(map(any, margins)):
            return image, label
        return np.pad(image, [*margins, (0, 0)]), np.pad(label, margins, constant_values=IGNORE)

    def _checked_area(self, pair: Pair) -> Window:
        image, mask = read_header(pair.image), read_header(pair.label)
        if (image.count, image.dtype) != (self._count, self._dtype):
            raise UserError(
                f"{pair.image}: {image.count} bands of {image.dtype}, published are {self._count} of "
                f"{self._dtype}: restore the published file"
            )
        if (mask.height, mask.width) != (image.height, image.width):
            raise UserError(
                f"{pair.label}: {mask.height} x {mask.width} pixels, its image {pair.image} has "
                f"{image.height} x {image.width}: restore the published files"
            )
        return self._area(pair, image)


class Rule(Protocol):
    """Meaning of the values of a data set's masks."""

    def read(self, path: Path, window: Window | None = None) -> np.ndarray:
        """Read a mask, or a window of it, as training ids (h, w) uint8, 255 for no label.

        Raises:
          UserError: the file is no mask of this kind, or holds a value that the rule does not know.
        """


class IndexRule:
    """Labels stored as numbers in one band.

    Args:
      values: stored number of each class, or several that are merged into it, in class order.
      ignore: stored numbers that mean "no label".
    """

    def __init__(self, values: Sequence[int | Sequence[int]], ignore: Sequence[int] = (0,)):
        self._table = np.full(256, _UNKNOWN, np.uint8)
        self._table[list(ignore)] = IGNORE
        for label, stored in enumerate(values):
            self._table[[stored] if isinstance(stored, int) else list(stored)] = label
        self._known = _ranges(np.flatnonzero(self._table != _UNKNOWN))

    def read(self, path: Path, window: Window | None = None) -> np.ndarray:
        """Read training ids; see `Rule.read`."""
        mask = read_mask(path, window)
        if mask.shape[-1] != 1 or mask.dtype.kind not in "ui":
            raise UserError(
                f"{path}: {mask.shape[-1]} bands of {mask.dtype}, this data set's masks have one band of "
                "whole numbers: use the index masks, not their coloured pictures"
            )
        mask = mask[..., 0]
        possible = (mask >= 0) & (mask <= 255)
        label = self._table[np.where(possible, mask, 0)]
        unknown = (label == _UNKNOWN) | ~possible
        if unknown.any():
            raise UserError(
                f"{path}: {np.count_nonzero(unknown)} pixels hold {mask[unknown][0]}, which is no label of "
                f"this data set (those are {self._known}): restore the published file"
            )
        return label


class ColourRule:
    """Labels stored as colours.

    Args:
      palette: colour of each class.
      ignore: colours that mean "no label".
      snap: a channel at most this far from 0 or 255 counts as 0 or 255, for palettes of pure colours whose
        files were blurred.
    """

    def __init__(
        self, palette: Sequence[Sequence[int]], ignore: Sequence[Sequence[int]] = ((0, 0, 0),), snap: int = 0
    ):
        self._code = ColourCode(palette, ignore)
        levels = np.arange(256, dtype=np.uint8)
        self._snapped = np.where(levels <= snap, 0, np.where(levels >= 255 - snap, 255, levels)).astype(
            np.uint8
        )

    def read(self, path: Path, window: Window | None = None) -> np.ndarray:
        """Read training ids; see `Rule.read`."""
        mask = read_mask(path, window)
        if mask.shape[-1] not in (3, 4) or mask.dtype != np.uint8:
            raise UserError(
                f"{path}: {mask.shape[-1]} bands of {mask.dtype}, this data set's masks are colours in "
                "three bands of 8 bits: restore the published file"
            )
        label, unknown = self._code.from_rgb(self._snapped[mask[..., :3]])
        if unknown:
            colour, count = unknown.most_common(1)[0]
            raise UserError(
                f"{path}: {count} pixels have the colour {colour}, which is no label of this data set: "
                "restore the published file"
            )
        return label


class EitherRule:
    """Labels published in both forms: masks of one band follow `index`, others `colour`."""

    def __init__(self, index: IndexRule, colour: ColourRule):
        self._index, self._colour = index, colour

    def read(self, path: Path, window: Window | None = None) -> np.ndarray:
        """Read training ids; see `Rule.read`."""
        return (self._index if read_header(path).count == 1 else self._colour).read(path, window)


def _ranges(values: np.ndarray) -> str:
    """Format ascending whole numbers as in `0..7, 9`."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
