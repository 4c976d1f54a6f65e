"""SET (arXiv 2407.18568) and FADA (NeurIPS 2024, "Learning Frequency-Adapted Vision Foundation Model for
Domain Generalized Semantic Segmentation"): tokens of low rank that refine frequencies, not positions.

Both transform the tokens as the image they are, in two dimensions over the grid of patches and each channel
for itself, change what the transform gives, and transform the change back. The authors' released code does
neither: it transforms over images and channels (SET), and joins quarters of the channels where the inverse
transform would stand (FADA).
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.link import QueryLink
from spectralmoe_jax.adapters.protocol import Grid, LayerOutput
from spectralmoe_jax.adapters.rein import ReinConfig, TokenBranch, added, query_feature_map

TINY = 1e-10  # squared amplitude below which a frequency is taken for absent


class TwoBranches(nnx.Module):
    """What SET and FADA share: `content` and `style`, two branches of tokens, alpha, and the query link,
    which reads the tokens of content. The layer itself is `change`."""

    normalise = ""

    def __init__(self, config: ReinConfig, *, layers: int, width: int, param_dtype=jnp.float32,
                 rngs: nnx.Rngs):  # fmt: skip
        kwargs: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        self.content = TokenBranch(config, layers=layers, width=width, **kwargs)
        self.style = TokenBranch(config, layers=layers, width=width, normalise=self.normalise, **kwargs)
        self.scale = nnx.Param(jnp.asarray(config.scale_init, param_dtype))
        self.link = QueryLink(width, config.query_dim, **kwargs)
        self.to_features = query_feature_map(config, **kwargs)

    def stacked(self) -> dict[str, dict[str, Array]]:
        return {"content": self.content.stacked(), "style": self.style.stacked()}

    def layer(self, weights: dict[str, Any], visual: Array, depth: Array | None, noise: Array | None,
              grid: Grid) -> LayerOutput:  # fmt: skip
        return added(visual, self.scale[...], self.change(weights, visual, grid))

    def change(self, weights: dict[str, Any], visual: Array, grid: Grid) -> Array:
        raise NotImplementedError

    def queries(self) -> Array:
        return self.link(self.content.tokens())

    def query_features(self, queries: Array) -> Array | None:
        return None if self.to_features is None else self.to_features(queries)


class SpectralTokens(TwoBranches):
    """SET: the phase of the tokens' spectrum is content, its amplitude style.

    f <- f + alpha Re F^-1(change(amplitude) exp(i change(phase))), with instance norm on the amplitude's
    logits. F is unitary, so that amplitudes are of the tokens' size whatever the grid.
    """

    Config: ClassVar[type] = ReinConfig
    normalise = "logits"

    def change(self, weights: dict[str, Any], visual: Array, grid: Grid) -> Array:
        h, w = grid
        phase, amplitude = polar(rearrange(visual, "b (h w) d -> b h w d", h=h, w=w))
        flat = [rearrange(x, "b h w d -> b (h w) d").astype(visual.dtype) for x in (phase, amplitude)]
        phase = self.content.change(weights["content"], flat[0])
        amplitude = self.style.change(weights["style"], flat[1])
        real, imaginary = amplitude * jnp.cos(phase), amplitude * jnp.sin(phase)
        grids = [rearrange(x, "b (h w) d -> b h w d", h=h) for x in (real, imaginary)]
        return rearrange(inverse_fourier(*grids), "b h w d -> b (h w) d")


def polar(image: Array) -> tuple[Array, Array]:
    """Phase and amplitude of the unitary Fourier transform of (B, h, w, D), in at least float32.

    Both are 0, with gradient 0, where a frequency is absent: the phase of nothing has no gradient. A
    frequency that is its own conjugate is real: its phase is 0 or pi, whichever way rounding goes.
    """
    wide = image.astype(jnp.promote_types(jnp.float32, image.dtype))
    real, imaginary = fourier(wide)
    imaginary = jnp.where(_is_real(*image.shape[1:3]), 0.0, imaginary)
    there = real**2 + imaginary**2 > TINY
    real, imaginary = jnp.where(there, real, 1.0), jnp.where(there, imaginary, 0.0)
    return jnp.arctan2(imaginary, real), jnp.where(there, jnp.sqrt(real**2 + imaginary**2), 0.0)


def fourier(image: Array) -> tuple[Array, Array]:
    """Real and imaginary part of the unitary Fourier transform of real (B, h, w, D).

    By matrices: grids of patches are small, and products of real numbers are spread over devices by rows and
    kept or recomputed for the way back like all others, which complex numbers are not.
    """
    (ch, sh), (cw, sw) = (_waves(n, image.dtype) for n in image.shape[1:3])
    return _both(ch, image, cw) - _both(sh, image, sw), -_both(ch, image, sw) - _both(sh, image, cw)


def inverse_fourier(real: Array, imaginary: Array) -> Array:
    """The real part of the inverse of the unitary Fourier transform."""
    (ch, sh), (cw, sw) = (_waves(n, real.dtype) for n in real.shape[1:3])
    return _both(ch, real, cw) - _both(sh, imaginary, cw) - _both(ch, imaginary, sw) - _both(sh, real, sw)


def _waves(n: int, dtype) -> tuple[Array, Array]:
    """Cosines and sines of all frequencies at n places, (n, n)."""
    angles = 2 * np.pi * (np.outer(np.arange(n), np.arange(n)) % n) / n
    return jnp.asarray(np.cos(angles) / n**0.5, dtype), jnp.asarray(np.sin(angles) / n**0.5, dtype)


def _both(rows: Array, image: Array, columns: Array) -> Array:
    """(u, h) and (v, w) on (B, h, w, D) -> (B, u, v, D), in full precision."""
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("uh,bhwd,vw->buvd", rows, image, columns, precision=highest)


def _is_real(h: int, w: int) -> np.ndarray:
    """Which frequencies of real images are their own conjugates: (h, w, 1)."""
    rows, columns = 2 * np.arange(h) % h == 0, 2 * np.arange(w) % w == 0
    return (rows[:, None] & columns)[..., None]


class Bands(NamedTuple):
    """Of the Haar transform: low (B, h/2, w/2, D), and high, those of columns, rows and diagonals one under
    the other, (B, 3h/2, w/2, D)."""

    low: Array
    high: Array


class FrequencyAdapted(TwoBranches):
    """FADA: the low band of the tokens' Haar transform is content, the three high bands are style.

    f <- f + alpha H^-1(change(LL), change(LH, HL, HH)), with instance norm on the similarity of the high
    bands, whose tokens stand side by side and share one table.
    """

    Config: ClassVar[type] = ReinConfig
    normalise = "similarity"

    def change(self, weights: dict[str, Any], visual: Array, grid: Grid) -> Array:
        h, w = grid
        image = rearrange(visual, "b (h w) d -> b h w d", h=h, w=w)
        even = jnp.pad(image, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
        bands = haar(even)
        low = self.content.change(weights["content"], rearrange(bands.low, "b h w d -> b (h w) d"))
        high = self.style.change(weights["style"], rearrange(bands.high, "b h w d -> b (h w) d"))
        half = bands.low.shape[2]
        changed = Bands(
            rearrange(low, "b (h w) d -> b h w d", w=half), rearrange(high, "b (h w) d -> b h w d", w=half)
        )
        return rearrange(inverse_haar(changed)[:, :h, :w], "b h w d -> b (h w) d")


def haar(image: Array) -> Bands:
    """One level of the orthonormal Haar transform of (B, h, w, D), h and w even."""
    a, b = image[:, 0::2, 0::2], image[:, 0::2, 1::2]
    c, d = image[:, 1::2, 0::2], image[:, 1::2, 1::2]
    columns, rows, diagonal = b - a + d - c, c + d - a - b, a - b - c + d
    return Bands((a + b + c + d) / 2, jnp.concatenate([columns, rows, diagonal], axis=1) / 2)


def inverse_haar(bands: Bands) -> Array:
    """What `haar` gave, undone."""
    low = bands.low
    columns, rows, diagonal = jnp.split(bands.high, 3, axis=1)
    a, b = low - columns - rows + diagonal, low + columns - rows - diagonal
    c, d = low - columns + rows - diagonal, low + columns + rows + diagonal
    quads = jnp.stack([jnp.stack([a, b], axis=3), jnp.stack([c, d], axis=3)], axis=2) / 2
    return rearrange(quads, "b h y w x d -> b (h y) (w x) d")
