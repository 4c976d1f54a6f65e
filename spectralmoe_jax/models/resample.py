"""Resampling of position tables, equal to torch's `interpolate(align_corners=False)`."""

from __future__ import annotations

import numpy as np
from jax import Array
from jax import numpy as jnp

# Keys' cubic convolution kernel; torch takes a = -0.75, and with antialiasing the -0.5 of image libraries
CUBIC_A = -0.75
CUBIC_A_ANTIALIAS = -0.5


def antialias_matrix(size_in: int, size_out: int) -> np.ndarray:
    """As `bicubic_matrix`, with the kernel as wide as an output pixel where the grid shrinks, cut off at the
    edges and normalised: torch's `antialias=True`."""
    scale = size_in / size_out
    centre = (np.arange(size_out) + 0.5) * scale
    distance = (np.arange(size_in) + 0.5 - centre[:, None]) / max(scale, 1.0)
    matrix = _cubic(distance, CUBIC_A_ANTIALIAS)
    return matrix / matrix.sum(axis=1, keepdims=True)


def bicubic_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Weights (size_out, size_in) of a one-dimensional half-pixel bicubic resize, edges repeated."""
    scale = size_in / size_out
    centre = (np.arange(size_out) + 0.5) * scale - 0.5
    first = np.floor(centre).astype(int)
    matrix = np.zeros((size_out, size_in))
    for tap in range(-1, 3):
        weight = _cubic(centre - (first + tap))
        column = np.clip(first + tap, 0, size_in - 1)
        np.add.at(matrix, (np.arange(size_out), column), weight)
    return matrix


def _cubic(distance: np.ndarray, a: float = CUBIC_A) -> np.ndarray:
    t = np.abs(distance)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def resize_bicubic(grid: Array, height: int, width: int, *, antialias: bool = False) -> Array:
    """Resize (H, W, D) to (height, width, D); returns the input itself where the size is the same."""
    if grid.shape[:2] == (height, width):
        return grid
    matrix = antialias_matrix if antialias else bicubic_matrix
    rows = jnp.asarray(matrix(grid.shape[0], height), grid.dtype)
    columns = jnp.asarray(matrix(grid.shape[1], width), grid.dtype)
    return jnp.einsum("ih,jw,hwd->ijd", rows, columns, grid)


def linear_matrix(size_in: int, size_out: int) -> np.ndarray:
    """As `bicubic_matrix`, linear between the two nearest."""
    centre = (np.arange(size_out) + 0.5) * size_in / size_out - 0.5
    distance = np.clip(centre, 0, size_in - 1)[:, None] - np.arange(size_in)
    return np.maximum(1 - np.abs(distance), 0)


def resize_linear(tables: Array, size: int) -> Array:
    """Resize (L, P, C) to (L, size, C) linearly; returns the input itself where the size is the same."""
    if tables.shape[1] == size:
        return tables
    matrix = jnp.asarray(linear_matrix(tables.shape[1], size), tables.dtype)
    return jnp.einsum("ip,lpc->lic", matrix, tables)
