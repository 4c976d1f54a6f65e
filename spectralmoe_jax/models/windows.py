"""Overlapping windows of an image, each encoded on its own, and the mean of their features.

For encoders whose positions count from the corner of a window: features of a place depend on where in the
window it is, and the mean over windows depends on it less.

Letters of shapes here: B images, n windows of an image, row by row; h, w grid of patches of the image; r, c
height and width of a window in patches; p side of a patch in pixels.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from spectralmoe_jax.layers import wide_type


def window_starts(length: int, window: int, overlap: int) -> list[int]:
    """Return where windows that cover an axis start, in pixels or patches.

    Windows are `window - overlap` apart; the last one is moved to end with the axis. An axis shorter than a
    window gets one window, at 0.
    """
    last = max(length - window, 0)
    return [*range(0, last, window - overlap), last]


class OverlappingWindows:
    """Windows that cover a grid of patches; the last of a row or column is moved to end with the grid.

    Args:
      grid: height and width of the image in patches.
      side: of a window, in patches; along a shorter axis of the grid there is one window.
      overlap: of a window with the next, in patches.
      patch: side of a patch in pixels.
    """

    def __init__(self, grid: tuple[int, int], side: int, overlap: int, patch: int):
        self.grid, self.patch = grid, patch
        self.shape = (min(side, grid[0]), min(side, grid[1]))
        self.starts = tuple(window_starts(length, side, overlap) for length in grid)

    @property
    def count(self) -> int:
        """Number n of windows of an image."""
        return len(self.starts[0]) * len(self.starts[1])

    def cut(self, image: Array) -> Array:
        """Cut images (B, H, W, C) into windows, (B n, r p, c p, C)."""
        for axis in (0, 1):  # a new axis of windows before each axis of pixels
            place, length = 1 + 2 * axis, self.shape[axis] * self.patch
            before = (slice(None),) * place
            starts = [start * self.patch for start in self.starts[axis]]
            image = jnp.stack([image[*before, start : start + length] for start in starts], axis=place)
        return rearrange(image, "b i y j x c -> (b i j) y x c")

    def mean(self, maps: Array) -> Array:
        """Average maps of the windows, (B n, r, c, D), at every place of the image: (B, h, w, D)."""
        rows = len(self.starts[0])
        wide = maps.astype(wide_type(maps.dtype))
        total = rearrange(wide, "(b i j) y x d -> b i y j x d", i=rows, j=len(self.starts[1]))
        for axis in (1, 0):  # columns, then rows: sum over the windows, and divide by their number
            place, length = 1 + 2 * axis, self.shape[axis]
            shape = (*total.shape[:place], self.grid[axis], *total.shape[place + 2 :])
            merged, before = jnp.zeros(shape, total.dtype), (slice(None),) * place
            for window, start in enumerate(self.starts[axis]):
                merged = merged.at[*before, start : start + length].add(total[*before, window])
            count = np.bincount(np.add.outer(self.starts[axis], np.arange(length)).ravel())
            total = merged / count.reshape(-1, *(1,) * (merged.ndim - place - 1))
        return total.astype(maps.dtype)

    def pick(self, values: Array) -> Array:
        """Take each place's value from the first window that holds it: (..., B n, r c) -> (..., B, h w)."""
        size = self.shape[0] * self.shape[1]
        # windows and places inside them, axis by axis
        (rows, y), (columns, x) = (self._first(axis) for axis in (0, 1))
        window = np.add.outer(rows * len(self.starts[1]), columns)
        source = window * size + np.add.outer(y * self.shape[1], x)  # (h, w)
        flat = values.reshape(*values.shape[:-2], values.shape[-2] // self.count, self.count * size)
        return flat[..., source.ravel()]

    def _first(self, axis: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first window along an axis that holds each place, and the place inside it."""
        places, starts = np.arange(self.grid[axis]), np.array(self.starts[axis])
        window = np.searchsorted(starts + self.shape[axis], places, side="right")
        return window, places - starts[window]
