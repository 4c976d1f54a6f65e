"""Bilinear resampling of feature maps: at the pixels of another size, and at any points.

Resizing equals torch's `interpolate(mode="bilinear")`, sampling torch's `grid_sample(align_corners=False)`
with zeros outside.
"""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def resize_bilinear(x: Array, size: tuple[int, ...], scale: float | None = None) -> Array:
    """Resize (B, h, w, C) to (B, *size, C): half-pixel centres, edges repeated, no antialiasing.

    The forward pass reads two neighbours along each axis; the backward pass is two small matrix products,
    several times faster than the scattered additions that the derivative of a read would be.

    Args:
      x: feature maps; the result has their dtype, the arithmetic at least float32.
      size: height and width of the result.
      scale: the factor that the size was computed from, if it was. It matters only where the factor does not
        lead to a whole size: torch then keeps the factor, not the ratio of sizes. None takes the ratio.
    """
    if x.shape[1:3] == tuple(size):
        return x
    return _resize(x, (x.shape[1], x.shape[2]), (size[0], size[1]), scale)


def resize_by_scale(x: Array, scale: float) -> Array:
    """Resize (B, h, w, C) to (B, floor(h * scale), floor(w * scale), C), as `resize_bilinear`."""
    height, width = x.shape[1:3]
    return resize_bilinear(x, (int(height * scale), int(width * scale)), scale)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _resize(x: Array, size_in: tuple[int, int], size: tuple[int, int], scale: float | None) -> Array:
    wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    for axis in (1, 2):
        lower, upper, fraction = _neighbours(size_in[axis - 1], size[axis - 1], scale)
        weight = jnp.asarray(fraction, wide.dtype).reshape(-1, *(1,) * (x.ndim - 1 - axis))
        wide = jnp.take(wide, lower, axis=axis) * (1 - weight) + jnp.take(wide, upper, axis=axis) * weight
    return wide.astype(x.dtype)


def _resize_forward(x, size_in, size, scale):
    return _resize(x, size_in, size, scale), None


def _resize_backward(size_in, size, scale, _, cotangent):
    wide = cotangent.astype(jnp.promote_types(jnp.float32, cotangent.dtype))
    rows = jnp.asarray(_matrix(size_in[0], size[0], scale), wide.dtype)
    columns = jnp.asarray(_matrix(size_in[1], size[1], scale), wide.dtype)
    highest = jax.lax.Precision.HIGHEST
    wide = jnp.einsum("Hh,bHWc->bhWc", rows, wide, precision=highest)
    wide = jnp.einsum("Ww,bhWc->bhwc", columns, wide, precision=highest)
    return (wide.astype(cotangent.dtype),)


_resize.defvjp(_resize_forward, _resize_backward)


def _neighbours(size_in: int, size_out: int, scale: float | None) -> tuple[np.ndarray, ...]:
    """The two input positions of every output position, and the weight of the second."""
    step = 1 / scale if scale else size_in / size_out
    centre = np.clip((np.arange(size_out) + 0.5) * step - 0.5, 0, size_in - 1)
    lower = np.floor(centre).astype(np.int32)
    return lower, np.minimum(lower + 1, size_in - 1), centre - lower


def _matrix(size_in: int, size_out: int, scale: float | None) -> np.ndarray:
    """The resize along one axis as a matrix (size_out, size_in)."""
    lower, upper, fraction = _neighbours(size_in, size_out, scale)
    matrix = np.zeros((size_out, size_in))
    np.add.at(matrix, (np.arange(size_out), lower), 1 - fraction)
    np.add.at(matrix, (np.arange(size_out), upper), fraction)
    return matrix


class Corners(NamedTuple):
    """The four pixels around each of many points, for bilinear sampling of a map with a border.

    Attributes:
      places: four of (...) int32, indices into a map that `with_border` made: upper left, upper right, lower
        left, lower right.
      weights: four of (...), all zero for a point that touches no pixel. Gradients reach the points through
        them.
    """

    places: tuple[Array, Array, Array, Array]
    weights: tuple[Array, Array, Array, Array]


def with_border(x: Array) -> Array:
    """Surround a map with zeros and join its rows: (..., h, w, C) -> (..., (h + 2) * (w + 2), C)."""
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(1, 1), (1, 1), (0, 0)])
    return padded.reshape(*x.shape[:-3], -1, x.shape[-1])


def corners(x: Array, y: Array, height: int, width: int) -> Corners:
    """Find the pixels around points (x, y) in [0, 1] of the image, each (...), in a map of h by w pixels."""
    x, y = x * width - 0.5, y * height - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    inside = ((x >= -1) & (x < width) & (y >= -1) & (y < height)).astype(x.dtype)
    column = jnp.clip(left, -1, width - 1).astype(jnp.int32) + 1
    row = jnp.clip(top, -1, height - 1).astype(jnp.int32) + 1
    first, row_length = row * (width + 2) + column, width + 2
    right, below = x - left, (y - top) * inside
    above = inside - below
    return Corners(
        (first, first + 1, first + row_length, first + row_length + 1),
        (above * (1 - right), above * right, below * (1 - right), below * right),
    )


def sample(cells: Array, where: Corners) -> Array:
    """Sample one map (cells, C), or (cells,), that has a border: (..., C), or (...).

    One read for each corner, weighted as it is read: compilers fuse the four into one loop.
    """
    vectors = (...,) + (None,) * (cells.ndim - 1)
    parts = (
        weight[vectors] * cells.at[place].get(mode="clip")
        for place, weight in zip(where.places, where.weights, strict=True)
    )
    return functools.reduce(operator.add, parts)
