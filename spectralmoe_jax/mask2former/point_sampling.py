"""Masks and labels sampled at points, and the choice of the points.

Points are (x, y) in [0, 1] of the image. Labels are compared at the four pixels around a point, so that a
stack with one mask for each class is never built. Cells are the squares between four neighbouring pixels, see
`resampling.pack_corners`.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.resampling import locate, pack_corners


class LabelMap(NamedTuple):
    """Labels of B images, ready for sampling.

    Attributes:
      cells: (B, cells, 4), cells = (H + 1) * (W + 1): label + 1 of the pixels around every cell, 0 for pixels
        that are ignored or outside.
      present: (B, C) bool, the classes that any pixel of the image has.
      size: (H, W).
    """

    cells: Array
    present: Array
    size: tuple[int, int]


def label_map(labels: Array, num_classes: int) -> LabelMap:
    """Pack labels (B, H, W) of any integer type; values outside 0..C-1, such as 255, are ignored."""
    labels = labels.astype(jnp.int32)
    known = (labels >= 0) & (labels < num_classes)
    codes = jnp.where(known, labels + 1, 0).astype(jnp.uint8 if num_classes < 255 else jnp.int32)
    present = jax.vmap(lambda code: (codes == code).any(axis=(1, 2)), out_axes=1)(
        jnp.arange(1, num_classes + 1, dtype=codes.dtype)
    )
    return LabelMap(pack_corners(codes[..., None]), present, (labels.shape[1], labels.shape[2]))


def sample_classes(cells: Array, size: tuple[int, int], points: Array, num_classes: int) -> Array:
    """Sample one image's masks of all classes at the same points: (cells, 4), points (P, 2) -> (C, P)."""
    index, weights = locate(points, *size)
    codes = cells[index]  # (P, 4)
    one_class = jax.vmap(lambda code: jnp.sum(jnp.where(codes == code, weights, 0), axis=-1))
    return one_class(jnp.arange(1, num_classes + 1, dtype=cells.dtype))


def sample_own_class(cells: Array, size: tuple[int, int], points: Array) -> Array:
    """Sample one image's masks, each at its own points: (cells, 4), points (C, P, 2) -> (C, P)."""
    index, weights = locate(points, *size)
    codes = jnp.arange(1, points.shape[0] + 1, dtype=cells.dtype)[:, None, None]
    return jnp.sum(jnp.where(cells[index] == codes, weights, 0), axis=-1)


def sample_shared(masks: Array, points: Array) -> Array:
    """Sample mask logits at the same points: masks (Q, h, w), points (P, 2) -> (Q, P)."""
    queries, height, width = masks.shape
    cells = pack_corners(masks.transpose(1, 2, 0))  # (cells, 4Q)
    index, weights = locate(points, height, width)
    corners = cells[index].reshape(-1, 4, queries)
    return jnp.sum(corners * weights[..., None].astype(masks.dtype), axis=1).T


def sample_own(masks: Array, points: Array) -> Array:
    """Sample mask logits, each at its own points: masks (C, h, w), points (C, P, 2) -> (C, P)."""
    index, weights = locate(points, *masks.shape[1:])
    corners = jax.vmap(lambda cells, index: cells[index])(pack_corners(masks[..., None]), index)
    return jnp.sum(corners * weights.astype(masks.dtype), axis=-1)


def uncertain_points(key: Array, masks: Array, config: LossConfig) -> Array:
    """Draw the loss points of each mask: masks (C, h, w) -> (C, P, 2).

    Of `config.candidates` uniform draws those are kept at which the logit is nearest to zero; further uniform
    draws complete them (PointRend, arXiv 1912.08193, as Mask2Former uses it).
    """
    masks = jax.lax.stop_gradient(masks)
    draw, fill = jax.random.split(key)
    count, dtype = masks.shape[0], masks.dtype
    candidates = jax.random.uniform(draw, (count, config.candidates, 2), dtype)
    rest = jax.random.uniform(fill, (count, config.num_points - config.uncertain_points, 2), dtype)
    if not config.uncertain_points:
        return rest
    _, best = jax.lax.top_k(-jnp.abs(sample_own(masks, candidates)), config.uncertain_points)
    return jnp.concatenate([jnp.take_along_axis(candidates, best[..., None], axis=1), rest], axis=1)
