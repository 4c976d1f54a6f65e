"""SET (arXiv 2407.18568): low-rank tokens that refine the spectrum of the patch tokens.

The patch tokens are transformed in two dimensions over the grid of patches, each channel for itself; the
change is transformed back. The released code transforms over images and channels instead.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from spectralmoe_jax.adapters.base import Grid
from spectralmoe_jax.adapters.rein import TwoBranches
from spectralmoe_jax.config.adapters import SETConfig

TINY = 1e-10  # squared amplitude below which a frequency is taken for absent


class SpectralTokens(TwoBranches):
    """SET: the phase of the tokens' spectrum is content, its amplitude style.

    f <- f + alpha Re F^-1(change(amplitude) exp(i change(phase))), with instance norm on the amplitude's
    logits. F is unitary, so that amplitudes are of the tokens' size whatever the grid.
    """

    Config: ClassVar[type] = SETConfig
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
