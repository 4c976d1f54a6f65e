"""FADA (NeurIPS 2024): low-rank tokens that refine the Haar bands of the patch tokens.

"Learning Frequency-Adapted Vision Foundation Model for Domain Generalized Semantic Segmentation". The patch
tokens are transformed in two dimensions over the grid of patches, each channel on its own; the change is
transformed back. The released code joins quarters of the channels in the place of the inverse transform.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from einops import rearrange
from jax import Array

from spectralmoe_jax.adapters.base import Grid
from spectralmoe_jax.adapters.rein import ContentAndStyle
from spectralmoe_jax.config.adapters import FADAConfig


class Bands(NamedTuple):
    """Bands of the Haar transform.

    Attributes:
      low: (B, h/2, w/2, D).
      high: the bands of columns, rows and diagonals, one below the other, (B, 3h/2, w/2, D).
    """

    low: Array
    high: Array


class FrequencyAdapted(ContentAndStyle):
    """The low band of the tokens' Haar transform is content, the three high bands are style.

    f <- f + alpha H^-1(change(LL), change(LH, HL, HH)), with instance norm of the similarity of the high
    bands, whose tokens stand side by side and share one table.
    """

    Config: ClassVar[type] = FADAConfig
    normalise: ClassVar[str] = "similarity"

    def change(self, weights: dict[str, Any], visual: Array, grid: Grid) -> Array:
        """Change the low and the high bands."""
        h, w = grid
        # 1. bands; a grid with an odd side is continued by its edge
        image = rearrange(visual, "b (h w) d -> b h w d", h=h, w=w)
        even = jnp.pad(image, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
        bands = haar(even)
        # 2. change of both
        low = self.content.change(weights["content"], rearrange(bands.low, "b h w d -> b (h w) d"))
        high = self.style.change(weights["style"], rearrange(bands.high, "b h w d -> b (h w) d"))
        half = bands.low.shape[2]
        changed = Bands(
            rearrange(low, "b (h w) d -> b h w d", w=half), rearrange(high, "b (h w) d -> b h w d", w=half)
        )
        # 3. back to patches
        return rearrange(inverse_haar(changed)[:, :h, :w], "b h w d -> b (h w) d")


def haar(image: Array) -> Bands:
    """One level of the orthonormal Haar transform of (B, h, w, D), h and w even."""
    a, b = image[:, 0::2, 0::2], image[:, 0::2, 1::2]
    c, d = image[:, 1::2, 0::2], image[:, 1::2, 1::2]
    columns, rows, diagonal = b - a + d - c, c + d - a - b, a - b - c + d
    return Bands((a + b + c + d) / 2, jnp.concatenate([columns, rows, diagonal], axis=1) / 2)


def inverse_haar(bands: Bands) -> Array:
    """The inverse of `haar`, (B, h, w, D)."""
    low = bands.low
    columns, rows, diagonal = jnp.split(bands.high, 3, axis=1)
    a, b = low - columns - rows + diagonal, low + columns - rows - diagonal
    c, d = low - columns + rows - diagonal, low + columns + rows + diagonal
    quads = jnp.stack([jnp.stack([a, b], axis=3), jnp.stack([c, d], axis=3)], axis=2) / 2
    return rearrange(quads, "b h y w x d -> b (h y) (w x) d")
