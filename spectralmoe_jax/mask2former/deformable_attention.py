"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, equation 3).

  out(q) = sum_m W_m [ sum_l sum_p A_mlqp W'_m x_l(phi_l(c_q) + offset_mlqp) ]

with heads m, levels l and points p: every position q of a feature pyramid attends to a few points of every
level around its centre c_q; offsets and weights A are linear in its query.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from spectralmoe_jax.layers import Linear, wide_type, xavier_uniform, zeros
from spectralmoe_jax.resampling import corners, with_border

Shapes = Sequence[tuple[int, int]]  # (h, w) of every level


class DeformableAttention(nnx.Module):
    """Deformable self-attention over the levels of a feature pyramid, with its projections.

    Attributes:
      sampling_offsets: from queries to offsets in pixels.
      attention_weights: from queries to the logits of A.
      value_proj: W' of all heads.
      output_proj: W of all heads.
    """

    def __init__(
        self, width: int, heads: int, levels: int, points: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        kwargs = {"param_dtype": param_dtype, "rngs": rngs}
        samples = heads * levels * points

        def directions(_key: Array, _shape: tuple[int, ...], dtype) -> Array:
            return jnp.asarray(_directions(heads, levels, points), dtype)

        self.sampling_offsets = Linear(width, 2 * samples, init=zeros, bias_init=directions, **kwargs)
        self.attention_weights = Linear(width, samples, init=zeros, **kwargs)
        self.value_proj = Linear(width, width, init=xavier_uniform, **kwargs)
        self.output_proj = Linear(width, width, init=xavier_uniform, **kwargs)
        self.split = (heads, levels, points)

    def __call__(self, x: Array, positions: Array, centres: Array, shapes: Shapes) -> Array:
        """Attend within a pyramid whose levels are flattened row by row and joined; T is the sum of h * w.

        Args:
          x: (B, T, D).
          positions: position encoding, (T, D) or (B, T, D).
          centres: c, centres of the pixels in [0, 1], (T, 2).
          shapes: (h, w) of every level.

        Returns:
          (B, T, D).
        """
        batch, tokens, width = x.shape
        heads, levels, points = self.split
        # 1. offsets (heads * levels * P * 2, B, T) and logits of A (heads * levels * P, B, T), in one product
        linear = (self.sampling_offsets, self.attention_weights)
        kernel, bias = (
            jnp.concatenate(parts, axis=-1)
            for parts in zip(*((part.kernel[...], part.bias[...]) for part in linear), strict=True)
        )
        samples = _samples_first(x, positions, kernel, bias)
        offsets, logits = jnp.split(samples, [2 * heads * levels * points])
        # 2. samples of the projected value, summed
        value = self.value_proj(x).reshape(batch, tokens, heads, width // heads)
        return self.output_proj(_attend(value, offsets, logits, centres, self.split, tuple(shapes)))


@functools.partial(jax.checkpoint, prevent_cse=False)  # the sum is not kept
def _samples_first(x: Array, positions: Array, kernel: Array, bias: Array) -> Array:
    """Apply a linear map to x + positions, with its features in front: (B, T, D) -> (features, B, T).

    The product comes out in this order; a transposition of the many samples would cost more than it.
    """
    query = (x + positions).reshape(-1, x.shape[-1])
    wide = wide_type(x.dtype)
    # the operands are float32 as well: on a CPU, XLA lacks this product of bfloat16 with a float32 result
    product = jnp.einsum("df,td->ft", kernel.astype(x.dtype).astype(wide), query.astype(wide))
    return (product + bias.astype(wide)[:, None]).reshape(-1, *x.shape[:2])


@functools.partial(jax.checkpoint, static_argnums=(4, 5), prevent_cse=False)  # corners are not kept
def _attend(
    value: Array, offsets: Array, logits: Array, centres: Array, split: tuple[int, int, int], shapes: Shapes
) -> Array:
    """Sample the value where the offsets point: `deformable_attention` of the products of a layer."""
    heads, levels, points = split
    batch, tokens = offsets.shape[1:]
    # 1. sampling locations: centre + offset, (heads, levels, P, B, T) for each of x and y
    offsets = offsets.reshape(heads, levels, points, 2, batch, tokens)
    sizes = jnp.asarray([(w, h) for h, w in shapes], offsets.dtype)[:, None, :, None, None]
    locations = centres.astype(offsets.dtype).T[:, None, :] + offsets / sizes
    # 2. weights A: softmax over the points of all levels
    weights = jax.nn.softmax(logits.reshape(heads, levels * points, batch, tokens), axis=1)
    weights = weights.reshape(heads, levels, points, batch, tokens)
    return deformable_attention(value, shapes, locations[:, :, :, 0], locations[:, :, :, 1], weights)


def deformable_attention(value: Array, shapes: Shapes, x: Array, y: Array, weights: Array) -> Array:
    """Weighted sums of bilinear samples of the value maps; samples outside a map are zero.

    A loop over samples adds one row of the value for each corner, so that the samples, 48 times the size of
    the value, never exist together. On a CPU heads follow one another too, which keeps their maps in its
    cache. Images stay together, so that a batch that is sharded over devices stays sharded.

    Args:
      value: W'_m x, (B, T, heads, d), the maps of all levels flattened row by row and joined.
      shapes: (h, w) of every level; T is the sum of h * w.
      x: (heads, levels, P, B, Q), in [0, 1] of the image, at least float32; in self-attention Q is T.
      y: likewise.
      weights: A, (heads, levels, P, B, Q).

    Returns:
      (B, Q, heads * d) in the dtype of `value`.
    """
    batch, _, heads, dim = value.shape
    # 1. maps of every level with a border, joined; corners of every sample
    cells, index, factors = [], [], []
    offset = start = 0
    for level, (height, width) in enumerate(shapes):
        maps = value[:, start : start + height * width].transpose(2, 0, 1, 3)  # (heads, B, h * w, d)
        cells.append(with_border(maps.reshape(heads, batch, height, width, dim)))
        where = corners(x[:, level], y[:, level], height, width)  # (heads, P, B, Q)
        index.append(jnp.stack(where.places, axis=2) + offset)  # (heads, P, 4, B, Q)
        factors.append(jnp.stack([part * weights[:, level] for part in where.weights], axis=2))
        start += height * width
        offset += (height + 2) * (width + 2)
    # 2. weighted rows: cells (heads, B, cells, d), index and factors (heads, S, 4, B, Q), S = levels * P
    operands = (jnp.concatenate(part, axis=axis) for part, axis in ((cells, 2), (index, 1), (factors, 1)))
    out = weighted_rows(*operands)  # (heads, B, Q, d)
    return out.astype(value.dtype).transpose(1, 2, 0, 3).reshape(batch, -1, heads * dim)


@jax.custom_vjp
def weighted_rows(cells: Array, index: Array, factors: Array) -> Array:
    """Sum rows of `cells` with factors.

    Args:
      cells: (heads, B, cells, d).
      index: (heads, S, 4, B, Q) int32, rows of `cells`.
      factors: (heads, S, 4, B, Q), at least float32.

    Returns:
      (heads, B, Q, d) in the dtype of `factors`.
    """
    return _in_groups(_sum_rows, cells, index, factors)


def _forward(cells: Array, index: Array, factors: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return weighted_rows(cells, index, factors), (cells, index, factors)


def _backward(operands: tuple[Array, Array, Array], cotangent: Array) -> tuple[Array, None, Array]:
    cells, slopes = _in_groups(_sum_rows_backward, *operands, cotangent)
    return cells.astype(operands[0].dtype), None, slopes


weighted_rows.defvjp(_forward, _backward)


def _in_groups(function: Callable, *operands: Array) -> Any:
    """Apply a function of G heads to all of them.

    On a CPU two heads at a time: a scatter runs on one core, so that two of them keep two busy. Elsewhere
    each head apart, all together.

    Args:
      function: from operands (G, ...) to results (G, ...).
      operands: (heads, ...).
    """
    heads = operands[0].shape[0]

    def grouped(apply: Callable, size: int) -> Any:
        """Apply to operands (heads / G, G, ...)."""
        results = apply(*(x.reshape(-1, size, *x.shape[1:]) for x in operands))
        return jax.tree.map(lambda x: x.reshape(heads, *x.shape[2:]), results)

    def in_turn(*groups: Array) -> Any:
        return jax.lax.map(lambda group: function(*group), groups)

    return jax.lax.platform_dependent(
        cpu=lambda: grouped(in_turn, math.gcd(heads, 2)), default=lambda: grouped(jax.vmap(function), 1)
    )


_rows = jax.vmap(lambda cells, index: cells.at[index].get(mode="clip"))  # (B, cells, d), (B, Q) -> (B, Q, d)
_add_rows = jax.vmap(lambda cells, index, rows: cells.at[index].add(rows, mode="drop"))


def _sum_rows(cells: Array, index: Array, factors: Array) -> Array:
    """Sum the rows of some heads, sample by sample: see `weighted_rows`."""

    def add(totals: list[Array], sample: tuple[Array, Array]) -> tuple[list[Array], None]:
        """Add the four corners of one sample of every head: scan body."""
        sums = []
        for cells_of_head, index, factors, total in zip(cells, *sample, totals, strict=True):  # (4, B, Q)
            for corner in range(4):
                total = total + factors[corner][..., None] * _rows(cells_of_head, index[corner])
            sums.append(total)
        return sums, None

    start = jnp.zeros((*factors.shape[3:], cells.shape[-1]), factors.dtype)  # (B, Q, d)
    samples = (index.swapaxes(0, 1), factors.swapaxes(0, 1))  # (S, G, 4, B, Q)
    return jnp.stack(jax.lax.scan(add, [start] * len(cells), samples)[0])


def _sum_rows_backward(cells: Array, index: Array, factors: Array, cotangent: Array) -> tuple[Array, Array]:
    """Return the gradients of the cells and of the factors of some heads, sample by sample."""
    ones = jnp.ones((cells.shape[-1],), factors.dtype)  # a product with ones sums faster than a reduction

    def add(gradients: list[Array], sample: tuple[Array, Array]) -> tuple[list[Array], Array]:
        """Add the four corners of one sample of every head: scan body."""
        sums, slopes = [], []
        for head, (gradient, index, factors) in enumerate(zip(gradients, *sample, strict=True)):  # (4, B, Q)
            of_corners = []
            for corner in range(4):
                rows = factors[corner][..., None] * cotangent[head]
                gradient = _add_rows(gradient, index[corner], rows)
                products = _rows(cells[head], index[corner]) * cotangent[head]
                of_corners.append(jnp.matmul(products, ones, precision=jax.lax.Precision.HIGHEST))
            sums.append(gradient)
            slopes.append(jnp.stack(of_corners))
        return sums, jnp.stack(slopes)

    start = [jnp.zeros(cells.shape[1:], factors.dtype)] * len(cells)
    samples = (index.swapaxes(0, 1), factors.swapaxes(0, 1))  # (S, G, 4, B, Q)
    gradients, slopes = jax.lax.scan(add, start, samples)
    return jnp.stack(gradients), slopes.swapaxes(0, 1)


def pixel_centres(shapes: Shapes, dtype) -> Array:
    """Centres (x, y) in [0, 1] of the pixels of every level, row by row: (T, 2)."""
    centres = []
    for height, width in shapes:
        rows = (jnp.arange(height, dtype=dtype) + 0.5) / height
        columns = (jnp.arange(width, dtype=dtype) + 0.5) / width
        y, x = jnp.meshgrid(rows, columns, indexing="ij")
        centres.append(jnp.stack([x, y], axis=-1).reshape(-1, 2))
    return jnp.concatenate(centres)


def _directions(heads: int, levels: int, points: int) -> np.ndarray:
    """Initial offsets in pixels: head m points along the angle 2 pi m / heads, point p lies at distance p."""
    angle = np.arange(heads) * 2 * np.pi / heads
    unit = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    unit = unit / np.abs(unit).max(axis=-1, keepdims=True)
    steps = np.arange(1, points + 1)[:, None]
    return np.broadcast_to(unit[:, None, None, :] * steps, (heads, levels, points, 2)).reshape(-1)
