"""From images to patch tokens, and position tables on other grids than their own."""

from __future__ import annotations

import math

from einops import rearrange
from jax import Array

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.resample import resize_bicubic


def patch_grid(image_shape: tuple[int, ...], patch: int) -> tuple[int, int]:
    """Patches along height and width of an image (B, H, W, C). Raises UserError where some are cut."""
    height, width = image_shape[1:3]
    if height % patch or width % patch:
        raise UserError(
            f"an image of {height}x{width} pixels does not divide into patches of {patch}: "
            "choose a crop or window that is a multiple of the patch size"
        )
    return height // patch, width // patch


def embed_patches(image: Array, kernel: Array, bias: Array | None) -> Array:
    """Project each patch of an image (B, H, W, C), in its dtype: kernel (p, p, C, D) -> tokens (B, N, D)."""
    size = {"p": kernel.shape[0], "q": kernel.shape[1]}
    patches = rearrange(image, "b (h p) (w q) c -> b (h w) (p q c)", **size)
    x = patches @ rearrange(kernel, "p q c d -> (p q c) d").astype(image.dtype)  # (B, N, D)
    return x if bias is None else x + bias.astype(image.dtype)


def resample_table(table: Array, h: int, w: int, *, antialias: bool = False) -> Array:
    """A position table (S*S, D) of a square grid -> (h*w, D), bicubically."""
    grid = rearrange(table, "(h w) d -> h w d", h=math.isqrt(table.shape[0]))
    return rearrange(resize_bicubic(grid, h, w, antialias=antialias), "h w d -> (h w) d")
