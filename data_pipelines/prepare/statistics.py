"""Exact statistics of whole-number pixels, from the count of every value of every band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

PERCENTILES = (1, 2, 25, 50, 75, 98, 99)


class Histograms:
    """How often each value occurs in each band: mean, deviation and percentiles without rounding.

    Pixels that are zero in every band (padding at an image's edge, no data) do not count.

    Args:
      bands: number of bands.
      dtype: of the pixels, 8- or 16-bit integers.

    Attributes:
      values: every value of the type, ascending, (V,) int64.
      counts: their numbers, (bands, V) int64.
    """

    def __init__(self, bands: int, dtype: Any):
        self._dtype = np.dtype(dtype)
        if self._dtype.kind not in "ui" or self._dtype.itemsize > 2:
            raise ValueError(f"pixels of type {self._dtype}: store 8- or 16-bit integers")
        limits = np.iinfo(self._dtype)
        self.values = np.arange(limits.min, limits.max + 1)
        self.counts = np.zeros((bands, len(self.values)), np.int64)

    def add(self, image: np.ndarray) -> int:
        """Counts the pixels of `image` (H, W, bands); returns how many are not zero in every band."""
        unsigned = np.dtype(f"u{self._dtype.itemsize}")
        columns = np.ascontiguousarray(image.reshape(-1, image.shape[-1]).T)  # (bands, pixels)
        valid = int(np.count_nonzero(columns.any(axis=0)))
        first = -int(self.values[0])  # place of zero: values lie in ascending order, unsigned ones wrap
        for counts, column in zip(self.counts, columns.view(unsigned), strict=True):
            counts += np.roll(np.bincount(column, minlength=len(self.values)), first)
            counts[first] -= columns.shape[1] - valid
        return valid

    def merge(self, sparse: Mapping[str, np.ndarray]) -> None:
        """Adds what `sparse` of another one returned."""
        np.add.at(self.counts, (sparse["band"], sparse["value"]), sparse["count"])

    def sparse(self) -> dict[str, np.ndarray]:
        """The counts that are not zero: `band`, `value` (place in `values`) and `count`, (N,) each."""
        band, value = np.nonzero(self.counts)
        return {
            "band": band.astype(np.uint16),
            "value": value.astype(np.uint16),
            "count": self.counts[band, value],
        }

    def summary(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Of each band: mean, std (of the population), min, max, percentiles; None without any pixel."""
        return {name: self._band(counts) for name, counts in zip(names, self.counts, strict=True)}

    def _band(self, counts: np.ndarray) -> dict[str, Any]:
        total = int(counts.sum())
        if not total:
            return dict.fromkeys(("mean", "std", "min", "max", "percentiles"))
        mean = float(counts @ self.values / total)
        present = self.values[counts > 0]
        return {
            "mean": mean,
            "std": float(np.sqrt(counts @ (self.values - mean) ** 2 / total)),
            "min": int(present[0]),
            "max": int(present[-1]),
            "percentiles": {str(p): self._percentile(counts, total, p) for p in PERCENTILES},
        }

    def _percentile(self, counts: np.ndarray, total: int, percent: int) -> float:
        """Linear between the two order statistics around it, as `numpy.percentile` by default."""
        place, rest = divmod(percent * (total - 1), 100)
        ranks = np.searchsorted(np.cumsum(counts), [place, min(place + 1, total - 1)], side="right")
        low, high = (int(value) for value in self.values[ranks])
        return low + (high - low) * rest / 100
