"""Where the tiles of an image lie, and how they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import numpy as np

from data_pipelines.datasets.dataset import Pair
from data_pipelines.datasets.label_rules import Rule
from data_pipelines.readers.raster_file import Header, read_header, read_pixels
from data_pipelines.records import IGNORE, Window
from spectralmoe_jax.errors import UserError

Grid = Callable[[Window], tuple[Window, ...]]
Area = Callable[[Pair, Header], Window]


def whole(area: Window) -> tuple[Window, ...]:
    """`area` as one tile."""
    return (area,)


def padded(area: Window) -> tuple[Window, ...]:
    """Tiles of 512 side by side from the upper left corner of `area`, row by row, as many as cover it.

    The last row and column run over the edge of an `area` whose sides are no multiples of 512.
    """
    return tuple(
        Window(area.row + 512 * row, area.col + 512 * col, 512, 512)
        for row in range(ceil(area.height / 512))
        for col in range(ceil(area.width / 512))
    )


def flush(area: Window) -> tuple[Window, ...]:
    """As `padded`, but the last row and column are moved back to the edge and overlap their neighbours.

    Only an `area` that is smaller than a tile is run over.
    """
    bottom, right = area.row + max(area.height - 512, 0), area.col + max(area.width - 512, 0)
    return tuple(
        Window(min(row, bottom), min(col, right), height, width) for row, col, height, width in padded(area)
    )


def image_area(_pair: Pair, image: Header) -> Window:
    """The whole image."""
    return Window(0, 0, image.height, image.width)


class Tiles:
    """Cuts and reads the tiles of one benchmark.

    Args:
      count: bands of an image file.
      dtype: of their pixels.
      rule: what the masks' values mean.
      grid: the tiles of an area.
      area: the part of an image that is cut into tiles; pixels outside of it do not reach a tile.
      channels: the bands that a tile carries, by position; default all.
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
        """The tiles of a pair, in file coordinates.

        Raises UserError for files that cannot be read or whose sizes differ.
        """
        return self._grid(self._checked_area(pair))

    def read(self, pair: Pair, cell: Window) -> tuple[np.ndarray, np.ndarray]:
        """Pixels (h, w, C) and ids (h, w) uint8 of a cell; 0 and 255 where it leaves the area.

        Raises UserError naming a file that cannot be read, an image without the published bands or type, or a
        mask with a value outside the rule.
        """
        area = self._checked_area(pair)
        row, col = max(cell.row, area.row), max(cell.col, area.col)
        bottom = min(cell.row + cell.height, area.row + area.height)
        right = min(cell.col + cell.width, area.col + area.width)
        part = Window(row, col, bottom - row, right - col)
        image = read_pixels(pair.image, part, self._channels)[0].astype(self._dtype, copy=False)
        label = self._rule.read(pair.label, part)
        around = [
            (row - cell.row, cell.row + cell.height - bottom),
            (col - cell.col, cell.col + cell.width - right),
        ]
        if not any(map(any, around)):
            return image, label
        return np.pad(image, [*around, (0, 0)]), np.pad(label, around, constant_values=IGNORE)

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
