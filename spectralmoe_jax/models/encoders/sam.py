"""The image encoder of SAM (arXiv 2304.02643), a ViTDet (arXiv 2203.16527).

Most layers attend within windows, every `global_every`-th to the whole image; all add decomposed relative
positions (arXiv 2112.01526) to the logits. Blocks are stacked on a leading layer axis and applied by a scan.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.layers import (
    Frozen,
    LayerNorm,
    Linear,
    VariableType,
    attend,
    trunc_normal,
    wide_type,
    zeros,
)
from spectralmoe_jax.models.encoders.encoder import Beside, Edit, Layers
from spectralmoe_jax.models.encoders.vit import FeedForward, embed_patches, patch_grid, resample_table
from spectralmoe_jax.models.positions import resize_linear
from spectralmoe_jax.parameters import edited


class Relative(NamedTuple):
    """Relative positions of one layer, or of all with a leading axis of L.

    rows, columns: (P, C), a vector for every distance between query and key, from the most negative up; a
    layer reads as many as its extent needs. everywhere: () bool, whether the layer attends to the whole
    image.
    """

    rows: Array
    columns: Array
    everywhere: Array


class LayerInputs(NamedTuple):
    """block: weights of one block. relative: its relative positions."""

    block: Any
    relative: Relative


class RelativeAttention(nnx.Module):
    """Multi-head self-attention over a grid, with relative positions added to the logits."""

    def __init__(self, config: EncoderConfig, kind: VariableType, param_dtype, rngs: nnx.Rngs):
        width = config.width
        self.heads = config.heads
        kwargs = {"init": trunc_normal, "kind": kind, "param_dtype": param_dtype, "rngs": rngs}
        self.qkv = Linear(width, 3 * width, bias_init=zeros if config.qkv_bias else None, **kwargs)
        self.out = Linear(width, width, **kwargs)

    def __call__(self, x: Array, relative: Relative) -> Array:
        """x (B, h, w, D) -> (B, h, w, D)."""
        h, w = x.shape[1:3]
        q, k, v = rearrange(self.qkv(x), "b y x (s n c) -> s b (y x) n c", s=3, n=self.heads)
        y = attend(q, k, v, relative_logits(q, relative, h, w))  # (B, h * w, H, C)
        return self.out(rearrange(y, "b (y x) n c -> b y x (n c)", y=h))


def relative_logits(q: Array, relative: Relative, h: int, w: int) -> Array:
    """Logits (B, H, h * w, h * w) of how far apart the rows and the columns of query and key are.

    q (B, h * w, H, C) is the query before it is scaled.
    """
    grid = rearrange(q, "b (y x) n c -> b n y x c", y=h)
    between_rows = _by_distance(relative.rows, h).astype(q.dtype)  # (h, h, C)
    between_columns = _by_distance(relative.columns, w).astype(q.dtype)  # (w, w, C)
    wide = wide_type(q.dtype)
    rows = jnp.einsum("bnyxc,ykc->bnyxk", grid, between_rows, preferred_element_type=wide)
    columns = jnp.einsum("bnyxc,xkc->bnyxk", grid, between_columns, preferred_element_type=wide)
    logits = rows[..., :, None] + columns[..., None, :]  # (B, H, h, w, h, w)
    return logits.reshape(*logits.shape[:2], h * w, h * w)


def _by_distance(table: Array, size: int) -> Array:
    """(P, C) -> (size, size, C): the vector of the distance of each query (first) to each key (second)."""
    return table[np.arange(size)[:, None] - np.arange(size) + size - 1]


def in_windows(function: Callable[[Array], Array], x: Array, *, window: int) -> Array:
    """Apply `function` to windows (B * windows, window, window, D) of x (B, h, w, D).

    The grid is filled up with zeros below and to the right; these are tokens like others to `function`.
    """
    batch, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % window), (0, -w % window), (0, 0)))
    rows = x.shape[1] // window
    windows = rearrange(x, "b (r y) (c x) d -> (b r c) y x d", y=window, x=window)
    y = rearrange(function(windows), "(b r c) y x d -> b (r y) (c x) d", b=batch, r=rows)
    return y[:, :h, :w]


class SamBlock(nnx.Module):
    """Pre-norm transformer block whose attention sees a window or the whole image."""

    def __init__(self, config: EncoderConfig, kind: VariableType, param_dtype, rngs: nnx.Rngs):
        self.window = config.window
        self.norm1 = LayerNorm(config.width, config.norm_eps, kind=kind, param_dtype=param_dtype)
        self.attention = RelativeAttention(config, kind, param_dtype, rngs)
        self.norm2 = LayerNorm(config.width, config.norm_eps, kind=kind, param_dtype=param_dtype)
        self.mlp = FeedForward(config, kind, param_dtype, rngs)

    def __call__(self, x: Array, relative: Relative, h: int, beside: Beside | None = None) -> Array:
        """x (B, h * w, D) -> (B, h * w, D); `beside` is a branch beside the feed-forward block."""
        attention = functools.partial(self.attention, relative=relative)
        windowed = functools.partial(in_windows, attention, window=self.window)
        grid = rearrange(self.norm1(x), "b (y x) d -> b y x d", y=h)
        y = jax.lax.cond(relative.everywhere, attention, windowed, grid)
        x = x + rearrange(y, "b y x d -> b (y x) d")
        normed = self.norm2(x)
        y = x + self.mlp(normed)
        return y if beside is None else y + beside(normed)


class SamEncoder(nnx.Module):
    """Patch embedding, position table and a stack of blocks; there are no prefix tokens.

    `blocks` holds all layers, stacked on axis 0. `window_rel_h`, `window_rel_w` (L_window, 2 * window - 1, C)
    and `global_rel_h`, `global_rel_w` (L_global, 2 * table_size - 1, C) are the relative positions of the
    windowed and of the global layers, in order. On a grid of another size than `table_size` those of global
    layers are resampled linearly. The neck comes with published weights and is kept so that they go back
    whole; the features do not use it.
    """

    def __init__(self, config: EncoderConfig, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        kind = nnx.Param if config.trainable else Frozen
        self.config = config

        def weights(*shape: int) -> nnx.Variable:
            return kind(trunc_normal(rngs.params(), shape, param_dtype))

        self.patch_kernel = weights(config.patch_size, config.patch_size, config.in_channels, config.width)
        self.patch_bias = kind(jnp.zeros((config.width,), param_dtype))
        self.position_table = weights(config.table_size**2, config.width)
        everywhere = config.layers // config.global_every
        windowed = config.layers - everywhere
        self.window_rel_h = weights(windowed, 2 * config.window - 1, config.head_dim)
        self.window_rel_w = weights(windowed, 2 * config.window - 1, config.head_dim)
        self.global_rel_h = weights(everywhere, 2 * config.table_size - 1, config.head_dim)
        self.global_rel_w = weights(everywhere, 2 * config.table_size - 1, config.head_dim)
        neck = config.neck_width
        self.neck_first = Frozen(jnp.zeros((config.width, neck), param_dtype))
        self.neck_second = Frozen(jnp.zeros((3, 3, neck, neck), param_dtype))
        for name in ("neck_norm1", "neck_norm2"):
            setattr(self, name, LayerNorm(neck, config.norm_eps, kind=Frozen, param_dtype=param_dtype))
        self.blocks = nnx.vmap(lambda r: SamBlock(config, kind, param_dtype, r), in_axes=0, out_axes=0)(
            rngs.split(config.layers)
        )

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """Patches along height and width of an image (B, H, W, C)."""
        return patch_grid(image_shape, self.config.patch_size)

    def embed(self, image: Array) -> Array:
        """(B, H, W, C), normalised, in the compute dtype -> tokens (B, N, D)."""
        h, w = self.grid(image.shape)
        x = embed_patches(image, self.patch_kernel[...], self.patch_bias[...])
        table = resample_table(self.position_table[...], h, w, antialias=self.config.table_antialias)
        return x + table.astype(x.dtype)

    def stacked(self, h: int, w: int) -> Layers:
        """The blocks, ready to be scanned over a grid of h x w patches."""
        graph, weights = nnx.split(self.blocks)

        def apply(
            x: Array, layer: LayerInputs, edit: Edit | None = None, beside: Beside | None = None
        ) -> Array:
            return nnx.merge(graph, edited(layer.block, edit))(x, layer.relative, h, beside)

        return Layers(LayerInputs(weights, self._relative(h, w)), apply)

    def _relative(self, h: int, w: int) -> Relative:
        """Relative positions of all layers, in one array although windows and the image differ in extent."""
        config = self.config
        everywhere = np.arange(1, config.layers + 1) % config.global_every == 0  # (L,)
        # windowed layers come first in the joined tables
        order = np.where(
            everywhere, np.cumsum(everywhere) - 1 + np.sum(~everywhere), np.cumsum(~everywhere) - 1
        )

        def joined(window_table: nnx.Variable, global_table: nnx.Variable, extent: int) -> Array:
            tables = [window_table[...], resize_linear(global_table[...], 2 * extent - 1)]
            length = max(table.shape[1] for table in tables)
            filled = [jnp.pad(table, ((0, 0), (0, length - table.shape[1]), (0, 0))) for table in tables]
            return jnp.concatenate(filled)[order]  # (L, P, C)

        return Relative(
            joined(self.window_rel_h, self.global_rel_h, h),
            joined(self.window_rel_w, self.global_rel_w, w),
            jnp.asarray(everywhere),
        )
