"""Rotary positions of DINOv3 (arXiv 2508.10104) and EVA-02 (arXiv 2303.11331)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
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
