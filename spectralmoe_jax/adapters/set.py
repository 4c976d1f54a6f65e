"""SET (arXiv 2407.18568): low-rank tokens that refine the spectrum of the patch tokens.

The patch tokens are Fourier-transformed in two dimensions over the grid of patches, each channel on its own;
the change is transformed back. The released code transforms over images and channels instead.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from spectralmoe_jax.adapters.base import Grid
from spectralmoe_jax.adapters.rein import ContentAndStyle
from spectralmoe_jax.config.adapters import SETConfig
from spectralmoe_jax.layers import wide_type

TINY = 1e-10  # squared amplitude below which a frequency counts as absent


class SpectralTokens(ContentAndStyle):
    """The phase of the tokens' spectrum is content, its amplitude style.

    f <- f + alpha Re F^-1(change(amplitude) exp(i change(phase))), with instance norm of the amplitude's
    logits. F is unitary, so that amplitudes have the size of the tokens on every grid.
    """

    Config: ClassVar[type] = SETConfig
    normalise: ClassVar[str] = "logits"

    def change(self, weights: dict[str, Any], visual: Array, grid: Grid) -> Array:
        """Change phase and amplitude of the spectrum."""
        h, w = grid
        # 1. spectrum
        phase, amplitude = polar(rearrange(visual, "b (h w) d -> b h w d", h=h, w=w))
        # 2. change of both, frequencies in the place of patches
        flat = [rearrange(x, "b h w d -> b (h w) d").astype(visual.dtype) for x in (phase, amplitude)]
        phase = self.content.change(weights["content"], flat[0])
        amplitude = self.style.change(weights["style"], flat[1])
        # 3. back to patches
        real, imaginary = amplitude * jnp.cos(phase), amplitude * jnp.sin(phase)
        grids = [rearrange(x, "b (h w) d -> b h w d", h=h) for x in (real, imaginary)]
        return rearrange(inverse_fourier(*grids), "b h w d -> b (h w) d")


def polar(image: Array) -> tuple[Array, Array]:
    """Phase and amplitude of the unitary Fourier transform of (B, h, w, D), in at least float32.

    Both are 0, with gradient 0, where a frequency is absent: the phase of zero has no gradient. A frequency
    that is its own conjugate is real: its phase is 0 or pi, however rounding goes.
    """
    real, imaginary = fourier(image.astype(wide_type(image.dtype)))
    imaginary = jnp.where(_is_real(*image.shape[1:3]), 0.0, imaginary)
    present = real**2 + imaginary**2 > TINY
    real, imaginary = jnp.where(present, real, 1.0), jnp.where(present, imaginary, 0.0)
    return jnp.arctan2(imaginary, real), jnp.where(present, jnp.sqrt(real**2 + imaginary**2), 0.0)


def fourier(image: Array) -> tuple[Array, Array]:
    """Real and imaginary part of the unitary Fourier transform of real (B, h, w, D).

    Computed by matrices: grids of patches are small, and products of real numbers, unlike complex ones, are
    sharded by images and kept or rematerialised for the backward pass like all others.
    """
    (ch, sh), (cw, sw) = (_waves(n, image.dtype) for n in image.shape[1:3])
    return (
        _transform(ch, image, cw) - _transform(sh, image, sw),
        -_transform(ch, image, sw) - _transform(sh, image, cw),
    )


def inverse_fourier(real: Array, imaginary: Array) -> Array:
    """Real part of the inverse of the unitary Fourier transform, (B, h, w, D)."""
    (ch, sh), (cw, sw) = (_waves(n, real.dtype) for n in real.shape[1:3])
    return (
        _transform(ch, real, cw)
        - _transform(sh, imaginary, cw)
        - _transform(ch, imaginary, sw)
        - _transform(sh, real, sw)
    )


def _waves(n: int, dtype) -> tuple[Array, Array]:
    """Cosines and sines of all n frequencies at n positions, (n, n) each."""
    angles = 2 * np.pi * (np.outer(np.arange(n), np.arange(n)) % n) / n
    return jnp.asarray(np.cos(angles) / n**0.5, dtype), jnp.asarray(np.sin(angles) / n**0.5, dtype)


def _transform(rows: Array, image: Array, columns: Array) -> Array:
    """Apply (u, h) and (v, w) to (B, h, w, D) in full precision: (B, u, v, D)."""
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("uh,bhwd,vw->buvd", rows, image, columns, precision=highest)


def _is_real(h: int, w: int) -> np.ndarray:
    """Mask of the frequencies that are real for a real image, being their own conjugates: (h, w, 1)."""
    rows, columns = 2 * np.arange(h) % h == 0, 2 * np.arange(w) % w == 0
    return (rows[:, None] & columns)[..., None]
