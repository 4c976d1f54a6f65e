"""Codes of labels: colours or stored values turned into training ids."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from data_pipelines.records import IGNORE
from spectralmoe_jax.errors import UserError

Colour = tuple[int, int, int]
_UNKNOWN = 254
_WHOLE = 2**53  # floats hold all integers below


class ColourCode:
    """Turns colours into training ids: the index in `palette`, or 255 for `ignore` and unknown colours.

    Args:
      palette: (red, green, blue) of each class.
      ignore: colours that mean "no label".

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

    def from_rgb(self, mask: np.ndarray, missing: np.ndarray | None = None) -> tuple[np.ndarray, Counter]:
        """Return ids (H, W) uint8 of a mask (H, W, 3 or 4) uint8, and the pixel count of each unknown colour.

        Fully transparent pixels are ignored, and those where `missing`, (H, W) bool, is true.
        """
        packed = mask[..., 0].astype(np.uint32) << 16  # (H, W), 0xRRGGBB
        packed |= mask[..., 1].astype(np.uint32) << 8
        packed |= mask[..., 2]
        label = _lookup(self.palette, self.ignore)[packed]
        if mask.shape[-1] == 4:
            label[mask[..., 3] == 0] = IGNORE
        if missing is not None:
            label[missing] = IGNORE
        return _ignore_unknown(label, packed, lambda c: (int(c) >> 16, int(c) >> 8 & 255, int(c) & 255))

    def from_indexed(
        self, mask: np.ndarray, colours: Mapping[int, Sequence[int]], missing: np.ndarray | None = None
    ) -> tuple[np.ndarray, Counter]:
        """Return ids and unknown colours of a mask (H, W) of indices into a colour table.

        Args:
          mask: integers.
          colours: (red, green, blue, alpha) by index. An index that is missing is unknown, and counted by its
            number.
          missing: where there is no label, (H, W) bool; None for nowhere.
        """
        lookup = _lookup(self.palette, self.ignore)
        ids = np.full(max(int(mask.max(initial=0)), *colours) + 1, _UNKNOWN, np.uint8)
        for index, (red, green, blue, *alpha) in colours.items():
            ids[index] = IGNORE if alpha == [0] else lookup[red << 16 | green << 8 | blue]
        label = ids[mask]
        if missing is not None:
            label[missing] = IGNORE
        return _ignore_unknown(label, mask, lambda i: tuple(colours[i][:3]) if i in colours else int(i))

    def from_ids(self, mask: np.ndarray, missing: np.ndarray | None = None) -> tuple[np.ndarray, Counter]:
        """Return ids and unknown values of a mask (H, W) that holds training ids, 255 for no label.

        There is no label where `missing`, (H, W) bool, is true, either.
        """
        known = ((mask >= 0) & (mask < len(self.palette))) | (mask == IGNORE)
        if mask.dtype.kind == "f":
            known &= mask == np.floor(mask)
        label = np.where(known, mask, _UNKNOWN).astype(np.uint8)
        if missing is not None:
            label[missing] = IGNORE
        return _ignore_unknown(label, mask, _number)


def _ignore_unknown(
    label: np.ndarray, values: np.ndarray, name: Callable[[Any], Any]
) -> tuple[np.ndarray, Counter]:
    """Replace unknown ids by `IGNORE`, and count the stored values behind them.

    Args:
      label: ids (H, W), changed in place.
      values: stored values (H, W).
      name: returns the name to count a stored value by.
    """
    unknown = label == _UNKNOWN
    if not unknown.any():
        return label, Counter()
    label[unknown] = IGNORE
    found, counts = np.unique(values[unknown], return_counts=True)
    total: Counter = Counter()
    for value, count in zip(found, counts, strict=True):  # several indices may have one colour
        total[name(value)] += int(count)
    return label, total


def _number(value: Any) -> int | float:
    """Return a stored number, a whole one as int unless it is too large to be meant as one."""
    plain = value.item() if isinstance(value, np.generic) else value
    return int(plain) if isinstance(plain, float) and plain.is_integer() and abs(plain) < _WHOLE else plain


@functools.lru_cache(maxsize=4)
def _lookup(palette: tuple[Colour, ...], ignore: tuple[Colour, ...]) -> np.ndarray:
    """Return the id of every 24-bit colour, (2**24,) uint8: one gather a pixel for any number of classes."""
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


class ValueCode:
    """Turns stored values into training ids.

    Args:
      values: stored value of each class, or several that are merged into it, in class order.
      ignore: stored values that mean "no label".

    Raises:
      UserError: no class or more than 254, or a value given twice.
    """

    def __init__(self, values: Sequence[Any | Sequence[Any]], ignore: Sequence[Any] = ()):
        stored: dict[Any, int] = {}
        for label, of_class in enumerate(values):
            for value in of_class if isinstance(of_class, list | tuple) else (of_class,):
                if value in stored or value in ignore:
                    raise UserError(
                        f"data.label_values and data.ignore_values name {value!r} twice: keep one"
                    )
                stored[value] = label
        if not 1 <= len(values) <= _UNKNOWN:
            raise UserError(f"data.label_values names {len(values)} classes: give 1 to {_UNKNOWN}")
        self.ids: Mapping[Any, int] = {**stored, **dict.fromkeys(ignore, IGNORE)}
        self._table = np.full(256, IGNORE, np.uint8)  # ids of the values that fit into 8 bits
        self._known = np.zeros(256, np.uint8)
        for value, label in self.ids.items():
            if isinstance(value, int | float) and value in range(256):
                self._table[int(value)], self._known[int(value)] = label, 1

    def from_values(self, mask: np.ndarray, missing: np.ndarray | None = None) -> tuple[np.ndarray, Counter]:
        """Return ids (H, W) uint8 of stored numbers, and the pixel count of each unknown number.

        Args:
          mask: stored numbers (H, W), of any type.
          missing: where there is no label, (H, W) bool; None for nowhere.
        """
        if mask.dtype == np.uint8:
            return self._from_bytes(np.ascontiguousarray(mask), missing)
        label = np.full(mask.shape, IGNORE, np.uint8)
        total: Counter = Counter()
        known = self._in_type(mask.dtype)
        found, counts = np.unique(mask if missing is None else mask[~missing], return_counts=True)
        for value, count in zip(found.tolist(), counts.tolist(), strict=True):
            if value in known:
                label[mask == value] = known[value]
            else:
                total[_number(value)] = count
        if missing is not None:
            label[missing] = IGNORE
        return label, total

    def _from_bytes(self, mask: np.ndarray, missing: np.ndarray | None) -> tuple[np.ndarray, Counter]:
        """Return what `from_values` does, of 8-bit values through a table."""
        label = cv2.LUT(mask, self._table)
        if missing is not None:
            label[missing] = IGNORE
        if cv2.countNonZero(cv2.LUT(mask, self._known)) == mask.size:
            return label, Counter()  # counting takes several times as long
        counts = np.bincount((mask if missing is None else mask[~missing]).ravel(), minlength=256)
        unknown = np.flatnonzero((counts > 0) & (self._known == 0))
        return label, Counter({int(v): int(counts[v]) for v in unknown})

    def _in_type(self, dtype: np.dtype) -> Mapping[Any, int]:
        """Return the id of each value, fractions as a type of floats stores them."""
        if dtype.kind != "f":
            return self.ids
        return {
            float(dtype.type(value)) if isinstance(value, float) and not value.is_integer() else value: label
            for value, label in self.ids.items()
        }
