"""Masks as people paint them, to training ids."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.sources.records import IGNORE
from spectralmoe_jax.errors import UserError

Colour = tuple[int, int, int]
_UNKNOWN = 254


class ColourCode:
    """Turns colours into training ids: the index in `palette`, or 255 for `ignore` and for unknown ones.

    Raises:
      UserError: more than 254 classes, a colour given twice, or one that is not three numbers 0..255.
    """

    def __init__(self, palette: Sequence[Sequence[int]], ignore: Sequence[Sequence[int]] = ()):
        self.palette = tuple(_colour(c, "classes.palette") for c in palette)
        self.ignore = tuple(_colour(c, "data.ignore_colours") for c in ignore)
        if not 1 <= len(self.palette) <= _UNKNOWN:
            raise UserError(f"classes.palette has {len(self.palette)} colours: give 1 to {_UNKNOWN}")
        repeated = [c for c, n in Counter(self.palette + tuple(set(self.ignore))).items() if n > 1]
        if repeated:
            raise UserError(f"classes.palette and data.ignore_colours name {repeated[0]} twice: keep one")

    def from_rgb(self, mask: np.ndarray) -> tuple[np.ndarray, Counter]:
        """Ids (H, W) uint8 of a mask (H, W, 3 or 4) uint8, and the pixel count of each unknown colour.

        Wholly transparent pixels are ignored.
        """
        packed = mask[..., 0].astype(np.uint32) << 16  # (H, W), 0xRRGGBB
        packed |= mask[..., 1].astype(np.uint32) << 8
        packed |= mask[..., 2]
        label = _lookup(self.palette, self.ignore)[packed]
        if mask.shape[-1] == 4:
            label[mask[..., 3] == 0] = IGNORE
        return self._settle(label, packed, lambda c: (int(c) >> 16, int(c) >> 8 & 255, int(c) & 255))

    def from_indexed(
        self, mask: np.ndarray, colours: Mapping[int, Sequence[int]]
    ) -> tuple[np.ndarray, Counter]:
        """As `from_rgb`, for a mask (H, W) of integer indices into a colour table index -> (r, g, b, a).

        An index that the table does not have is unknown, and counted by its number.
        """
        lookup = _lookup(self.palette, self.ignore)
        ids = np.full(max(int(mask.max(initial=0)), *colours) + 1, _UNKNOWN, np.uint8)
        for index, (red, green, blue, *alpha) in colours.items():
            ids[index] = IGNORE if alpha == [0] else lookup[red << 16 | green << 8 | blue]
        return self._settle(ids[mask], mask, lambda i: tuple(colours[i][:3]) if i in colours else int(i))

    def from_ids(self, mask: np.ndarray) -> tuple[np.ndarray, Counter]:
        """As `from_rgb`, for a mask (H, W) that holds training ids already, 255 for none."""
        known = ((mask >= 0) & (mask < len(self.palette))) | (mask == IGNORE)
        return self._settle(np.where(known, mask, _UNKNOWN).astype(np.uint8), mask, int)

    @staticmethod
    def _settle(label, values, name) -> tuple[np.ndarray, Counter]:
        unknown = label == _UNKNOWN
        if not unknown.any():
            return label, Counter()
        label[unknown] = IGNORE
        found, counts = np.unique(values[unknown], return_counts=True)
        total: Counter = Counter()
        for value, count in zip(found, counts, strict=True):  # several indices may have one colour
            total[name(value)] += int(count)
        return label, total


@functools.lru_cache(maxsize=4)
def _lookup(palette: tuple[Colour, ...], ignore: tuple[Colour, ...]) -> np.ndarray:
    """The id of every 24-bit colour, (2**24,) uint8. One gather a pixel, however many the classes."""
    table = np.full(1 << 24, _UNKNOWN, np.uint8)
    for label, (r, g, b) in enumerate(palette):
        table[r << 16 | g << 8 | b] = label
    for r, g, b in ignore:
        table[r << 16 | g << 8 | b] = IGNORE
    return table


def _colour(colour: Sequence[int], key: str) -> Colour:
    values = tuple(int(v) for v in colour)
    if len(values) != 3 or not all(0 <= v <= 255 for v in values):
        raise UserError(f"{key}: {tuple(colour)} is no colour, give (red, green, blue) from 0 to 255")
    return values[0], values[1], values[2]
