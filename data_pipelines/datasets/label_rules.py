"""Masks as the benchmarks store them, to training ids. What a rule does not know is an error, no guess."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from data_pipelines.readers.labels import ColourCode
from data_pipelines.readers.raster_file import read_header, read_mask
from data_pipelines.records import IGNORE, Window
from spectralmoe_jax.errors import UserError

_FOREIGN = 254  # marks what a rule does not know, until it is reported


class Rule(Protocol):
    """How a benchmark's masks are read."""

    def read(self, path: Path, window: Window | None = None) -> np.ndarray:
        """Ids (h, w) uint8, 255 for none, of a mask or of its `window`.

        Raises UserError for a file that is not such a mask, and for a value outside the rule.
        """


class IndexRule:
    """Labels stored as numbers in one band.

    Args:
      values: the stored number of each class, or all of them where several are merged, in class order.
      ignore: the stored numbers that mean "no label".
    """

    def __init__(self, values: Sequence[int | Sequence[int]], ignore: Sequence[int] = (0,)):
        self._table = np.full(256, _FOREIGN, np.uint8)
        self._table[list(ignore)] = IGNORE
        for label, stored in enumerate(values):
            self._table[[stored] if isinstance(stored, int) else list(stored)] = label
        self._known = _ranges(np.flatnonzero(self._table != _FOREIGN))

    def read(self, path: Path, window: Window | None = None) -> np.ndarray:
        mask, _ = read_mask(path, window)
        if mask.shape[-1] != 1 or mask.dtype.kind not in "ui":
            raise UserError(
                f"{path}: {mask.shape[-1]} bands of {mask.dtype}, this benchmark's masks have one band of "
                "whole numbers: use the index masks, not their coloured pictures"
            )
        mask = mask[..., 0]
        possible = (mask >= 0) & (mask <= 255)
        label = self._table[np.where(possible, mask, 0)]
        foreign = (label == _FOREIGN) | ~possible
        if foreign.any():
            raise UserError(
                f"{path}: {np.count_nonzero(foreign)} pixels hold {mask[foreign][0]}, which is no label of "
                f"this benchmark (those are {self._known}): restore the published file"
            )
        return label


class ColourRule:
    """Labels stored as colours.

    Args:
      palette: the colour of each class.
      ignore: colours that mean "no label".
      snap: a channel at most this far from 0 or 255 is taken for 0 or 255, for palettes of such colours
        and files in which they were blurred.
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
        mask, _ = read_mask(path, window)
        if mask.shape[-1] not in (3, 4) or mask.dtype != np.uint8:
            raise UserError(
                f"{path}: {mask.shape[-1]} bands of {mask.dtype}, this benchmark's masks are colours in "
                "three bands of 8 bits: restore the published file"
            )
        label, unknown = self._code.from_rgb(self._snapped[mask[..., :3]])
        if unknown:
            colour, count = unknown.most_common(1)[0]
            raise UserError(
                f"{path}: {count} pixels have the colour {colour}, which is no label of this benchmark: "
                "restore the published file"
            )
        return label


class EitherRule:
    """Labels published both ways: masks of one band follow `index`, others `colour`."""

    def __init__(self, index: IndexRule, colour: ColourRule):
        self._index, self._colour = index, colour

    def read(self, path: Path, window: Window | None = None) -> np.ndarray:
        return (self._index if read_header(path).count == 1 else self._colour).read(path, window)


def _ranges(values: np.ndarray) -> str:
    """Ascending whole numbers as `0..7, 9`."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
