"""Which values of an open raster are data: nodata values, masks and alpha bands, as GDAL has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rasterio.enums import MaskFlags
from rasterio.windows import Window as RasterWindow

_EPSILON = np.finfo(np.float32).eps  # in GDAL's test of float64 as well
_BY_GDAL = ("int64", "uint64")  # their nodata values are no floats


@dataclass(frozen=True)
class Validity:
    """How an open file states which values of some bands are data.

    Attributes:
      bands: numbers of the bands in the file, from 1.
      alpha: numbers of the alpha bands beside them: a pixel is missing where one of them is 0.
      mask: number of a band whose mask is that of all bands; 0 if the file has no such mask.
      own: for each of `bands`, whether it has a mask of its own in the file.
      values: for each of `bands`, its nodata value, or None.
    """

    bands: tuple[int, ...]
    alpha: tuple[int, ...]
    mask: int
    own: tuple[bool, ...]
    values: tuple[float | None, ...]

    def masked(self, dataset: Any, window: RasterWindow | None) -> np.ndarray | None:
        """Read where the mask or an alpha band of the file is 0, (H, W) bool; None if it has neither."""
        found = None if not self.mask else dataset.read_masks(self.mask, window=window) == 0
        for band in self.alpha:
            clear = dataset.read(band, window=window) == 0
            found = clear if found is None else found | clear
        return found

    def absent(self, dataset: Any, window: RasterWindow | None, pixels: np.ndarray) -> np.ndarray | None:
        """Return which values of single bands are not data, (H, W, C) bool; None if no band can lack any.

        Args:
          dataset: the file.
          window: part of the file that `pixels` are of; None for all.
          pixels: its values as stored, (H, W, C).
        """
        if not any(self.own) and len(set(map(repr, self.values))) == 1:
            return None if self.values[0] is None else is_nodata(pixels, self.values[0])
        found = np.zeros(pixels.shape, bool)
        for place in range(len(self.bands)):
            self._absent_of(dataset, window, place, pixels[..., place], found[..., place])
        return found

    def all_absent(self, dataset: Any, window: RasterWindow | None) -> np.ndarray | None:
        """Return where no band has data, (H, W) bool, without masks of all bands; None if that is nowhere.

        Bands are read one after the other, until there is no such pixel.
        """
        if any(value is None and not own for value, own in zip(self.values, self.own, strict=True)):
            return None
        everywhere: np.ndarray | None = None
        for place, band in enumerate(self.bands):
            values = dataset.read(band, window=window)
            here = np.zeros(values.shape, bool)
            self._absent_of(dataset, window, place, values, here)
            everywhere = here if everywhere is None else everywhere & here
            if not everywhere.any():
                return None
        return everywhere

    def _absent_of(
        self, dataset: Any, window: RasterWindow | None, place: int, values: np.ndarray, found: np.ndarray
    ) -> None:
        """Set in `found` which values of one band are not data."""
        nodata = self.values[place]
        if self.own[place]:
            found |= dataset.read_masks(self.bands[place], window=window) == 0
        if nodata is not None:
            found |= is_nodata(values, nodata)


def validity_of(
    dataset: Any,
    bands: Sequence[int] | None = None,
    nodata: float | None = None,
    alpha: Sequence[int] = (),
) -> Validity:
    """Find out how a file states which values are data; reads no pixel.

    Each band has what GDAL takes for its mask: the file's mask, inside it or beside it, goes before nodata
    values, which may differ from band to band. Only NaN as nodata value holds beside a mask, since it cannot
    be data.

    Args:
      dataset: the open file.
      bands: positions of the bands in the file, from 0; default all.
      nodata: value of all bands where the file states nothing for any of them.
      alpha: positions of alpha bands.
    """
    numbers = tuple(range(1, dataset.count + 1)) if bands is None else tuple(band + 1 for band in bands)
    flags, stated = dataset.mask_flag_enums, dataset.nodatavals
    mask, own, values = 0, [], []
    for band in numbers:
        kinds, value = flags[band - 1], stated[band - 1]
        whole = MaskFlags.per_dataset in kinds and MaskFlags.alpha not in kinds
        by_value = MaskFlags.nodata in kinds and not whole
        by_gdal = not kinds or (by_value and dataset.dtypes[band - 1] in _BY_GDAL)
        mask = mask or band * whole
        own.append(by_gdal)
        is_nan = value is not None and bool(np.isnan(value))
        values.append(value if (by_value and not by_gdal) or is_nan else None)
    if not (alpha or mask or any(own)) and all(value is None for value in values):
        values = [nodata] * len(numbers)
    return Validity(numbers, tuple(band + 1 for band in alpha), mask, tuple(own), tuple(values))


def states_missing(dataset: Any) -> bool:
    """Return whether a file has nodata values or masks, apart from alpha bands."""
    return any(kinds != [MaskFlags.all_valid] and MaskFlags.alpha not in kinds for kinds in _flags(dataset))


def has_mask(dataset: Any) -> bool:
    """Return whether a file has a mask; an alpha band counts as a band, a nodata value is none."""
    return any(
        not kinds or (MaskFlags.per_dataset in kinds and MaskFlags.alpha not in kinds)
        for kinds in _flags(dataset)
    )


def _flags(dataset: Any) -> list[list[MaskFlags]]:
    found: list[list[MaskFlags]] = dataset.mask_flag_enums
    return found


def is_nodata(values: np.ndarray, nodata: float) -> np.ndarray:
    """Return which values GDAL takes for the nodata value, as bool of their shape.

    For whole numbers, that is the value without its fraction. Floats may differ in their last digits.
    """
    if values.dtype.kind in "ui":
        limits = np.iinfo(values.dtype)
        if np.isnan(nodata) or not limits.min <= nodata <= limits.max:
            return np.zeros(values.shape, bool)
        return np.asarray(values == values.dtype.type(int(nodata)))
    if np.isnan(nodata):
        return np.isnan(values)
    with np.errstate(over="ignore", invalid="ignore"):
        return _is_near(values, values.dtype.type(nodata))


def _is_near(values: np.ndarray, value: Any) -> np.ndarray:
    """Return which floats equal a value by GDAL's test: to two units in the last digit of float32.

    The test compares with the sum of both, which overflows for very large values of one sign: all are equal.
    """
    size, largest = abs(value), np.finfo(values.dtype).max
    if size == 0 or np.isinf(size):
        return np.asarray(values == value)
    # 1. what may be equal: beyond the bound that is nearer to zero there mostly is nothing
    least, most = size * (1 - 5 * _EPSILON), size * (1 + 5 * _EPSILON)
    if size > largest * _EPSILON / 4:
        least, most = min(least, (largest - size) * (1 - 5 * _EPSILON)), np.inf
    found = np.asarray(values >= least if value > 0 else values <= -least)
    if value < 0 and found.any():
        found &= values >= -most
    elif found.any():
        found &= values <= most
    # 2. what is
    if found.any():
        some = values[found]
        found[found] = (some == value) | (np.abs(some - value) < _EPSILON * np.abs(some + value) * 2)
    return found
