"""Resampling of position tables, equal to torch's `interpolate(align_corners=False)`.

Rotary positions of DINOv3 (arXiv 2508.10104) and EVA-02 (arXiv 2303.11331).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

EVA_SIDE = 16  # patches along one edge of EVA-02's pretraining grid: any grid is stretched to this one
EVA_BASE = 10000.0


class Rope(NamedTuple):
    """sin, cos: (N, head_dim), at least float32. interleaved: channels 2i and 2i+1 turn together (EVA-02);
    otherwise channels i and i + head_dim / 2 do (DINOv3)."""

    sin: Array
    cos: Array
    interleaved: bool


def centred_periods(head_dim: int, base: float, dtype=jnp.float32) -> Array:
    """Periods of DINOv3's positions: (head_dim / 4,)."""
    return (base ** (jnp.arange(head_dim // 4) / (head_dim // 4))).astype(dtype)


def centred_rope(periods: Array, h: int, w: int) -> Rope:
    """Patch centres in [-1, 1], whatever the grid."""
    dtype = jnp.promote_types(jnp.float32, periods.dtype)
    rows = (jnp.arange(h, dtype=dtype) + 0.5) / h * 2 - 1
    columns = (jnp.arange(w, dtype=dtype) + 0.5) / w * 2 - 1
    coordinates = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)  # (h, w, 2)
    angles = 2 * jnp.pi * coordinates[..., None] / periods.astype(dtype)  # (h, w, 2, C/4)
    angles = angles.reshape(h * w, -1)
    angles = jnp.concatenate([angles, angles], axis=-1)  # (N, C)
    return Rope(jnp.sin(angles), jnp.cos(angles), interleaved=False)


def stretched_rope(head_dim: int, h: int, w: int, dtype=jnp.float32) -> Rope:
    """Row and column numbers, the grid stretched to that of EVA-02's pretraining."""
    quarter = head_dim // 4
    frequencies = 1 / EVA_BASE ** (jnp.arange(quarter, dtype=dtype) / quarter)
    rows = jnp.arange(h, dtype=dtype) / h * EVA_SIDE
    columns = jnp.arange(w, dtype=dtype) / w * EVA_SIDE
    coordinates = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)  # (h, w, 2)
    angles = (coordinates[..., None] * frequencies).reshape(h * w, -1)  # (N, C/2)
    angles = jnp.repeat(angles, 2, axis=-1)  # (N, C)
    return Rope(jnp.sin(angles), jnp.cos(angles), interleaved=True)


def rotate(x: Array, rope: Rope) -> Array:
    """Rotate the patch tokens of x (B, T, H, C), the last N of T, in float32; others pass."""
    prefix = x.shape[1] - rope.sin.shape[0]
    patches = x[:, prefix:].astype(rope.sin.dtype)
    if rope.interleaved:
        pairs = patches.reshape(*patches.shape[:-1], -1, 2)
        partner = jnp.stack([-pairs[..., 1], pairs[..., 0]], axis=-1).reshape(patches.shape)
    else:
        left, right = jnp.split(patches, 2, axis=-1)
        partner = jnp.concatenate([-right, left], axis=-1)
    turned = patches * rope.cos[:, None] + partner * rope.sin[:, None]
    return jnp.concatenate([x[:, :prefix], turned.astype(x.dtype)], axis=1)


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
