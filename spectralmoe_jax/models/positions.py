"""Positions of patch tokens on any grid: rotary angles, and learned tables resampled to the grid.

Rotary positions are those of DINOv3 (arXiv 2508.10104) and EVA-02 (arXiv 2303.11331). Resampling of tables
equals torch's `interpolate(align_corners=False)`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from spectralmoe_jax.layers import contract, wide_type

EVA_SIDE = 16  # patches along one edge of EVA-02's pretraining grid, to which every grid is stretched
EVA_BASE = 10000.0
# Parameter a of Keys' cubic convolution kernel: torch's, and with antialiasing that of image libraries.
CUBIC_A = -0.75
CUBIC_A_ANTIALIAS = -0.5


class Rope(NamedTuple):
    """Rotary positions of the patches of a grid.

    Attributes:
      sin: (N, D / heads), at least float32.
      cos: likewise.
      interleaved: True where channels 2i and 2i + 1 turn together (EVA-02), False where channels i and
        i + D / heads / 2 do (DINOv3).
    """

    sin: Array
    cos: Array
    interleaved: bool


def centred_periods(head_dim: int, base: float, dtype=jnp.float32) -> Array:
    """Periods of DINOv3's positions: (head_dim / 4,)."""
    return (base ** (jnp.arange(head_dim // 4) / (head_dim // 4))).astype(dtype)


def centred_rope(periods: Array, h: int, w: int) -> Rope:
    """Rotary positions of DINOv3: patch centres in [-1, 1], whatever the grid."""
    dtype = wide_type(periods.dtype)
    rows = (jnp.arange(h, dtype=dtype) + 0.5) / h * 2 - 1
    columns = (jnp.arange(w, dtype=dtype) + 0.5) / w * 2 - 1
    coordinates = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)  # (h, w, 2)
    angles = 2 * jnp.pi * coordinates[..., None] / periods.astype(dtype)  # (h, w, 2, head_dim / 4)
    angles = angles.reshape(h * w, -1)  # (N, head_dim / 2)
    angles = jnp.concatenate([angles, angles], axis=-1)  # (N, head_dim)
    return Rope(jnp.sin(angles), jnp.cos(angles), interleaved=False)


def stretched_rope(head_dim: int, h: int, w: int, dtype=jnp.float32) -> Rope:
    """Rotary positions of EVA-02: row and column numbers, the grid stretched to that of the pretraining."""
    quarter = head_dim // 4
    frequencies = 1 / EVA_BASE ** (jnp.arange(quarter, dtype=dtype) / quarter)
    rows = jnp.arange(h, dtype=dtype) / h * EVA_SIDE
    columns = jnp.arange(w, dtype=dtype) / w * EVA_SIDE
    coordinates = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)  # (h, w, 2)
    angles = (coordinates[..., None] * frequencies).reshape(h * w, -1)  # (N, head_dim / 2)
    angles = jnp.repeat(angles, 2, axis=-1)  # (N, head_dim)
    return Rope(jnp.sin(angles), jnp.cos(angles), interleaved=True)


def rotate(x: Array, rope: Rope) -> Array:
    """Rotate the patch tokens of queries or keys; the tokens before them pass unchanged.

    Args:
      x: (B, T, heads, D / heads), the patch tokens last.
      rope: rotary positions; the rotation has their dtype.
    """
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


def resample_table(table: Array, h: int, w: int, *, antialias: bool = False, offset: float = 0.0) -> Array:
    """Resample a position table (S*S, D) of a square grid bicubically: (h * w, D)."""
    grid = rearrange(table, "(h w) d -> h w d", h=math.isqrt(table.shape[0]))
    return rearrange(resize_bicubic(grid, h, w, antialias=antialias, offset=offset), "h w d -> (h w) d")


def resize_bicubic(
    grid: Array, height: int, width: int, *, antialias: bool = False, offset: float = 0.0
) -> Array:
    """Resize (h, w, D) to (height, width, D); a grid that has this size is returned as it is."""
    if grid.shape[:2] == (height, width):
        return grid
    matrices = (
        bicubic_matrix(before, after, antialias=antialias, offset=offset)
        for before, after in zip(grid.shape[:2], (height, width), strict=True)
    )
    rows, columns = (jnp.asarray(matrix, grid.dtype) for matrix in matrices)
    return jnp.einsum("ih,jw,hwd->ijd", rows, columns, grid)


def resize_linear(tables: Array, size: int) -> Array:
    """Resize (L, P, C) to (L, size, C) linearly; tables that have this size are returned as they are."""
    if tables.shape[1] == size:
        return tables
    matrix = jnp.asarray(linear_matrix(tables.shape[1], size), tables.dtype)
    return jnp.einsum("ip,lpc->lic", matrix, tables)


def bicubic_matrix(
    size_in: int, size_out: int, *, antialias: bool = False, offset: float = 0.0
) -> np.ndarray:
    """Weights (size_out, size_in) of a half-pixel bicubic resize along one axis.

    Edges are repeated. With `antialias` the kernel is as wide as an output pixel where the grid shrinks, cut
    off at the edges and normalised, as by torch's `antialias=True`.

    Args:
      size_in: length before.
      size_out: length after.
      antialias: see above.
      offset: the step between output pixels is that of `size_out + offset` pixels. SoftCon has 0.1, like the
        code of DINOv2, where it guards against rounding.
    """
    scale = size_in / (size_out + offset)
    centre = (np.arange(size_out) + 0.5) * scale
    if antialias:
        distance = (np.arange(size_in) + 0.5 - centre[:, None]) / max(scale, 1.0)
        matrix = _cubic(distance, CUBIC_A_ANTIALIAS)
        return matrix / matrix.sum(axis=1, keepdims=True)
    centre = centre - 0.5
    first = np.floor(centre).astype(int)
    matrix = np.zeros((size_out, size_in))
    for tap in range(-1, 3):
        weight = _cubic(centre - (first + tap), CUBIC_A)
        column = np.clip(first + tap, 0, size_in - 1)
        np.add.at(matrix, (np.arange(size_out), column), weight)
    return matrix


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    t = np.abs(distance)
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * (t**3 - 5 * t**2 + 8 * t - 4)
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def patch_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Matrix (size_out, size_in) that resizes one axis of a patch kernel, in float64.

    It is the pseudo-inverse of the transposed antialiased resize from `size_in` to `size_out`: of all kernels
    of the new size, the resized one gives products with resized patches that are nearest to those before
    (FlexiViT, arXiv 2212.08013, section 3.4). For both axes of a kernel the pseudo-inverse separates.
    """
    return np.linalg.pinv(bicubic_matrix(size_in, size_out, antialias=True).T)


def resize_kernel(kernel: Array, size: int) -> Array:
    """Resize a patch kernel (p, p, C, D) to (size, size, C, D) by `patch_matrix`, for rows and columns alike.

    A kernel that has this size is returned as it is.
    """
    if kernel.shape[0] == size:
        return kernel
    matrix = jnp.asarray(patch_matrix(kernel.shape[0], size), kernel.dtype)  # (size, p)
    return contract("qj,pjcd->pqcd", matrix, contract("pi,ijcd->pjcd", matrix, kernel))


def linear_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Weights (size_out, size_in) of a half-pixel linear resize along one axis, edges repeated."""
    centre = (np.arange(size_out) + 0.5) * size_in / size_out - 0.5
    distance = np.clip(centre, 0, size_in - 1)[:, None] - np.arange(size_in)
    return np.maximum(1 - np.abs(distance), 0)
