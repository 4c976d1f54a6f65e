"""The image encoder of SAM (arXiv 2304.02643), a ViTDet (arXiv 2203.16527).

Most layers attend within windows, every `global_every`-th to the whole image; all add decomposed relative
positions (arXiv 2112.01526) to the logits. Blocks are stacked on a leading layer axis, over which the
backbone scans.
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

from spectralmoe_jax.adapters.base import Beside, Edit
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
from spectralmoe_jax.models.encoders.encoder import Encoder, FeedForward, Layers, embed_patches
from spectralmoe_jax.models.positions import resample_table, resize_linear
from spectralmoe_jax.parameters import edited


class Relative(NamedTuple):
    """Relative positions of one layer, or of all with a leading axis of L.

    Attributes:
      rows: (distances, D / heads), a vector for every distance between query and key, from the most negative
        up; a layer reads as many as its extent needs.
      columns: likewise.
      is_global: () bool, True where the layer attends to the whole image.
    """

    rows: Array
    columns: Array
    is_global: Array


class LayerInputs(NamedTuple):
    """Inputs of one layer, or of all with a leading axis of L.

    Attributes:
      block: weights of the block.
      relative: its relative positions.
    """

    block: Any
    relative: Relative


class SamEncoder(Encoder):
    """Patch embedding, position table and a stack of blocks; there are no prefix tokens.

    On a grid of another size than `table_size` the relative positions of global layers are resampled
    linearly. The neck comes with published weights and is kept so that a checkpoint can be written back
    whole; the features do not use it.

    Attributes:
      patch_kernel, patch_bias: of the patch embedding.
      position_table: (table_size**2, D).
      window_rel_h, window_rel_w: relative positions of the windowed layers, in order, (windowed layers,
        2 * window - 1, D / heads).
      global_rel_h, global_rel_w: those of the global layers, (global layers, 2 * table_size - 1, D / heads).
      blocks: all layers, stacked on axis 0.
      neck_first, neck_second, neck_norm1, neck_norm2: not used.
    """

    def __init__(self, config: EncoderConfig, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        kind = nnx.Param if config.trainable else Frozen
        self.config = config

        def weights(*shape: int) -> nnx.Variable:
            return kind(trunc_normal(rngs.params(), shape, param_dtype))

        self.patch_kernel = weights(config.patch_size, config.patch_size, config.in_channels, config.width)
        self.patch_bias = kind(jnp.zeros((config.width,), param_dtype))
        self.position_table = weights(config.table_size**2, config.width)
        global_layers = config.layers // config.global_every
        windowed = config.layers - global_layers
        self.window_rel_h = weights(windowed, 2 * config.window - 1, config.head_dim)
        self.window_rel_w = weights(windowed, 2 * config.window - 1, config.head_dim)
        self.global_rel_h = weights(global_layers, 2 * config.table_size - 1, config.head_dim)
        self.global_rel_w = weights(global_layers, 2 * config.table_size - 1, config.head_dim)
        neck = config.neck_width
        self.neck_first = Frozen(jnp.zeros((config.width, neck), param_dtype))
        self.neck_second = Frozen(jnp.zeros((3, 3, neck, neck), param_dtype))
        for name in ("neck_norm1", "neck_norm2"):
            setattr(self, name, LayerNorm(neck, config.norm_eps, kind=Frozen, param_dtype=param_dtype))
        self.blocks = nnx.vmap(lambda r: SamBlock(config, kind, param_dtype, r), in_axes=0, out_axes=0)(
            rngs.split(config.layers)
        )

    def embed(self, image: Array) -> Array:
        """Tokens before the first layer, (B, N, D)."""
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
            """Run one block with its relative positions."""
            return nnx.merge(graph, edited(layer.block, edit))(x, layer.relative, h, beside)

        return Layers(LayerInputs(weights, self._relative(h, w)), apply)

    def _relative(self, h: int, w: int) -> Relative:
        """Relative positions of all layers, in one array although windows and the image differ in extent."""
        config = self.config
        is_global = np.arange(1, config.layers + 1) % config.global_every == 0  # (L,)
        # the joined tables have the windowed layers first
        order = np.where(is_global, np.cumsum(is_global) - 1 + np.sum(~is_global), np.cumsum(~is_global) - 1)

        def joined(window_table: nnx.Variable, global_table: nnx.Variable, extent: int) -> Array:
            """Stack the position tables of windowed and global layers at one length."""
            tables = [window_table[...], resize_linear(global_table[...], 2 * extent - 1)]
            length = max(table.shape[1] for table in tables)
            filled = [jnp.pad(table, ((0, 0), (0, length - table.shape[1]), (0, 0))) for table in tables]
            return jnp.concatenate(filled)[order]  # (L, distances, D / heads)

        return Relative(
            joined(self.window_rel_h, self.global_rel_h, h),
            joined(self.window_rel_w, self.global_rel_w, w),
            jnp.asarray(is_global),
        )


class SamBlock(nnx.Module):
    """Pre-norm transformer block whose attention sees a window or the whole image."""

    def __init__(self, config: EncoderConfig, kind: VariableType, param_dtype, rngs: nnx.Rngs):
        self.window = config.window
        self.norm1 = LayerNorm(config.width, config.norm_eps, kind=kind, param_dtype=param_dtype)
        self.attention = RelativeAttention(config, kind, param_dtype, rngs)
        self.norm2 = LayerNorm(config.width, config.norm_eps, kind=kind, param_dtype=param_dtype)
        self.mlp = FeedForward(config, kind, param_dtype, rngs)

    def __call__(self, x: Array, relative: Relative, h: int, beside: Beside | None = None) -> Array:
        """(B, N, D) -> (B, N, D); `beside` is an adapter's branch beside the feed-forward block."""
        attention = functools.partial(self.attention, relative=relative)
        windowed = functools.partial(in_windows, attention, window=self.window)
        grid = rearrange(self.norm1(x), "b (y x) d -> b y x d", y=h)
        y = jax.lax.cond(relative.is_global, attention, windowed, grid)
        x = x + rearrange(y, "b y x d -> b (y x) d")
        normed = self.norm2(x)
        y = x + self.mlp(normed)
        return y if beside is None else y + beside(normed)


class RelativeAttention(nnx.Module):
    """Multi-head self-attention over a grid, with relative positions added to the logits."""

    def __init__(self, config: EncoderConfig, kind: VariableType, param_dtype, rngs: nnx.Rngs):
        width = config.width
        self.heads = config.heads
        kwargs = {"init": trunc_normal, "kind": kind, "param_dtype": param_dtype, "rngs": rngs}
        self.qkv = Linear(width, 3 * width, bias_init=zeros if config.qkv_bias else None, **kwargs)
        self.out = Linear(width, width, **kwargs)

    def __call__(self, x: Array, relative: Relative) -> Array:
        """(B, h, w, D) -> (B, h, w, D)."""
        h, w = x.shape[1:3]
        q, k, v = rearrange(self.qkv(x), "b y x (s n c) -> s b (y x) n c", s=3, n=self.heads)
        y = attend(q, k, v, relative_logits(q, relative, h, w))  # (B, N, heads, D / heads)
        return self.out(rearrange(y, "b (y x) n c -> b y x (n c)", y=h))


def relative_logits(q: Array, relative: Relative, h: int, w: int) -> Array:
    """Logits of the distances between the rows and between the columns of query and key.

    Args:
      q: the query before it is scaled, (B, N, heads, D / heads).
      relative: relative positions.
      h: rows of the grid.
      w: columns of the grid.

    Returns:
      (B, heads, N, N).
    """
    grid = rearrange(q, "b (y x) n c -> b n y x c", y=h)
    between_rows = _by_distance(relative.rows, h).astype(q.dtype)  # (h, h, D / heads)
    between_columns = _by_distance(relative.columns, w).astype(q.dtype)  # (w, w, D / heads)
    wide = wide_type(q.dtype)
    rows = jnp.einsum("bnyxc,ykc->bnyxk", grid, between_rows, preferred_element_type=wide)
    columns = jnp.einsum("bnyxc,xkc->bnyxk", grid, between_columns, preferred_element_type=wide)
    logits = rows[..., :, None] + columns[..., None, :]  # (B, heads, h, w, h, w)
    return logits.reshape(*logits.shape[:2], h * w, h * w)


def _by_distance(table: Array, size: int) -> Array:
    """Vectors by query and key of those by distance: (distances, D / heads) -> (size, size, D / heads)."""
    return table[np.arange(size)[:, None] - np.arange(size) + size - 1]


def in_windows(function: Callable[[Array], Array], x: Array, *, window: int) -> Array:
    """Apply a function to the windows of a grid.

    The grid is padded with zeros below and to the right; to the function these are tokens like others.

    Args:
      function: (B * windows, window, window, D) -> the same.
      x: (B, h, w, D).
      window: side of a window.
    """
    batch, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (0, -h % window), (0, -w % window), (0, 0)))
    rows = x.shape[1] // window
    windows = rearrange(x, "b (r y) (c x) d -> (b r c) y x d", y=window, x=window)
    y = rearrange(function(windows), "(b r c) y x d -> b (r y) (c x) d", b=batch, r=rows)
    return y[:, :h, :w]
