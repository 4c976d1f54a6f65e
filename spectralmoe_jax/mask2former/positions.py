"""Sine position encoding of a feature map (DETR, arXiv 2005.12872, as Mask2Former uses it)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

TEMPERATURE = 10000.0
EPS = 1e-6


def sine_positions(height: int, width: int, features: int, dtype=jnp.float32) -> Array:
    """(height*width, features): the first half encodes y, the second x, sines and cosines alternating.

    Positions count from 1 and are normalised to (0, 2 pi]. `features` must be a multiple of 4.
    """
    rows = jnp.asarray(_encode(height, features // 2), dtype)[:, None, :]
    columns = jnp.asarray(_encode(width, features // 2), dtype)[None, :, :]
    half = (height, width, features // 2)
    both = [jnp.broadcast_to(rows, half), jnp.broadcast_to(columns, half)]
    return jnp.concatenate(both, axis=-1).reshape(height * width, features)


def _encode(size: int, features: int) -> np.ndarray:
    """(size, features): one axis."""
    position = np.arange(1, size + 1) / (size + EPS) * 2 * np.pi
    frequency = TEMPERATURE ** (np.arange(0, features, 2) / features)
    angle = position[:, None] / frequency
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(size, features)
