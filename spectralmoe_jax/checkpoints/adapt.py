"""Published weights made to fit another patch size, position grid or number of bands."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import numpy as np

from spectralmoe_jax.checkpoints.rules import Path, Shape
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.encoder import EncoderConfig
from spectralmoe_jax.models.resample import antialias_matrix, bicubic_matrix, linear_matrix

RGB = ("red", "green", "blue")  # the order of the channels of weights made for colour images
log = logging.getLogger(__name__)


class EncoderAdapt:
    """Resamples patch kernels and position tables bicubically, as torch's `interpolate(align_corners=False)`,
    relative positions linearly, and gives further bands a kernel; see `EncoderConfig.extra_bands`.

    Each adaptation is logged in a line.
    """

    def __init__(self, config: EncoderConfig, source: str):
        self.config, self.source = config, source
        self._logged: set[Path] = set()

    def fits(self, path: Path, shape: Shape, wanted: Shape) -> bool:
        how = self._how(path, shape, wanted)
        if how == self._kernel and wanted[2] < shape[2]:
            self._chosen(shape[2])  # refused before anything is read
        return how is not None

    def __call__(self, path: Path, value: np.ndarray, wanted: Shape) -> np.ndarray:
        how = self._how(path, value.shape, wanted)
        assert how is not None
        if path not in self._logged:
            log.info("%s: %s %s adapted to %s", self.source, "/".join(path), value.shape, wanted)
            self._logged.add(path)
        return how(value, wanted).astype(value.dtype)

    def _how(self, path: Path, shape: Shape, wanted: Shape) -> Callable | None:
        if len(shape) != len(wanted) or shape[-1] != wanted[-1]:
            return None
        if path == ("patch_kernel",):
            return self._kernel if shape[0] == shape[1] else None
        if path == ("position_table",):
            classes = 0 if self.config.kind == "sam" else 1
            square = all(math.isqrt(rows - classes) ** 2 == rows - classes for rows in (shape[0], wanted[0]))
            return self._table if square and shape[0] > classes else None
        return _linear if path[0].startswith(("window_rel_", "global_rel_")) else None

    def _kernel(self, kernel: np.ndarray, wanted: Shape) -> np.ndarray:
        """(p, p, C, D) -> (P, P, bands, D)."""
        if kernel.shape[0] != wanted[0]:
            flat = kernel.reshape(*kernel.shape[:2], -1)
            kernel = _bicubic(flat, wanted[0]).reshape(*wanted[:2], *kernel.shape[2:])
        channels, bands = kernel.shape[2], wanted[2]
        if bands == channels:
            return kernel
        if bands < channels:
            return kernel[:, :, self._chosen(channels)]
        if self.config.extra_bands == "modulo":
            return kernel[:, :, np.arange(bands) % channels]
        extra = np.zeros_like(kernel[:, :, :1])
        if self.config.extra_bands == "mean":
            extra = kernel.mean(axis=2, keepdims=True)
        return np.concatenate([kernel, np.repeat(extra, bands - channels, axis=2)], axis=2)

    def _chosen(self, channels: int) -> list[int]:
        """Which of the weights' channels the bands are, where there are fewer of them.

        Raises UserError where that cannot be told: channels must not be dropped by their order.
        """
        names = self.config.band_names
        if channels == len(RGB) and names and set(names) <= set(RGB):
            return [RGB.index(name) for name in names]
        listed = ", ".join(names) or f"{self.config.in_channels} without names"
        raise UserError(
            f"{self.source}: the weights have {channels} channels, and config.model.{self.config.name} reads "
            f"fewer bands ({listed}), so channels would be dropped unseen; give the bands of the weights, or "
            f"where they are made for RGB, bands named {', '.join(RGB)}"
        )

    def _table(self, table: np.ndarray, wanted: Shape) -> np.ndarray:
        """([1 +] s * s, D) -> ([1 +] S * S, D); the class row stays."""
        classes = 0 if self.config.kind == "sam" else 1
        side, target = (math.isqrt(rows - classes) for rows in (len(table), wanted[0]))
        grid = table[classes:].reshape(side, side, -1)
        resized = _bicubic(grid, target, self.config.table_antialias)
        return np.concatenate([table[:classes], resized.reshape(target**2, -1)])


def _bicubic(grid: np.ndarray, size: int, antialias: bool = False) -> np.ndarray:
    """(s, s, D) -> (size, size, D), through float64."""
    matrix = (antialias_matrix if antialias else bicubic_matrix)(grid.shape[0], size)
    return np.einsum("ih,jw,hwd->ijd", matrix, matrix, grid, optimize=True)


def _linear(table: np.ndarray, wanted: Shape) -> np.ndarray:
    """(n, D) -> (m, D)."""
    return linear_matrix(len(table), wanted[0]) @ table
