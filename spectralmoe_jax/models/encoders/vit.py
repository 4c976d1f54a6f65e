"""The vision transformer of seven families, whose differences are in `config.presets.FAMILIES`.

DINOv3 (arXiv 2508.10104), DINOv2 (2304.07193, with registers 2309.16588), DOFA (2403.15356), CLIP
(2103.00020), EVA-02 (2303.11331), SoftCon (2405.20462) and, in `copernicus_fm`, Copernicus-FM (2503.11849).
Blocks are stacked on a leading layer axis, over which the backbone scans.
"""

from __future__ import annotations

from typing import Any

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
    project,
    trunc_normal,
    wide_type,
    zeros,
)
from spectralmoe_jax.models.encoders.dofa import KernelGenerator
from spectralmoe_jax.models.encoders.encoder import (
    Encoder,
    FeedForward,
    Layers,
    clip_pixels,
    embed_patches,
)
from spectralmoe_jax.models.positions import (
    Rope,
    centred_periods,
    centred_rope,
    resample_table,
    rotate,
    stretched_rope,
)
from spectralmoe_jax.parameters import edited


class VisionTransformer(Encoder):
    """Patch embedding, prefix tokens, positions and a stack of blocks.

    The further final norms and the mask token come with published checkpoints and are kept so that a
    checkpoint can be written back whole; the features use none of them.

    Attributes:
      patch_kernel, patch_bias: of the patch embedding. In families with wavelengths `generator` makes them;
        `generate_patch_embedding` renews both after the generator's weights were filled.
      class_token, storage_tokens: the prefix tokens, (1, D) and (tokens, D).
      position_table: (S*S + 1, D), in families that have one.
      blocks: all layers, stacked on axis 0.
      norm: follows the last layer; only heads that read whole tokens use it.
      cls_norm, local_cls_norm, mask_token: not used.
    """

    def __init__(self, config: EncoderConfig, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        kind = nnx.Param if config.trainable else Frozen
        self.config = config
        self._make_patch_embedding(kind, param_dtype, rngs)
        self._make_tokens(kind, param_dtype, rngs)
        family, norm = config.family, {"kind": Frozen, "param_dtype": param_dtype}
        if family.norm_first:
            self.norm_first = LayerNorm(config.width, config.norm_eps, kind=kind, param_dtype=param_dtype)
        if family.final_norm:
            self.norm = LayerNorm(config.width, config.norm_eps, **norm)
        for name in config.untied_norms:
            setattr(self, name, LayerNorm(config.width, config.norm_eps, **norm))
        self.blocks = nnx.vmap(lambda r: Block(config, kind, param_dtype, r), in_axes=0, out_axes=0)(
            rngs.split(config.layers)
        )

    def _make_patch_embedding(self, kind: VariableType, param_dtype, rngs: nnx.Rngs) -> None:
        config = self.config
        if config.family.wavelengths:
            self.generator = self._make_generator(param_dtype, rngs)
            kernel, bias = self.generator(config.wavelengths, config.bandwidths)
            self.patch_kernel: nnx.Variable = Frozen(kernel)
            self.patch_bias: nnx.Variable | None = Frozen(bias)
            return
        shape = (config.patch_size, config.patch_size, config.kernel_bands, config.width)
        self.patch_kernel = kind(trunc_normal(rngs.params(), shape, param_dtype))
        has_bias = config.family.patch_bias
        self.patch_bias = kind(jnp.zeros((config.width,), param_dtype)) if has_bias else None

    def _make_generator(self, param_dtype, rngs: nnx.Rngs) -> KernelGenerator:
        """Make the generator of the patch embedding, in families with wavelengths."""
        config = self.config
        sizes = {"token_width": config.generator_width, "param_dtype": param_dtype}
        return KernelGenerator(config.patch_size, config.width, **sizes, rngs=rngs)

    def _make_tokens(self, kind: VariableType, param_dtype, rngs: nnx.Rngs) -> None:
        config, family, width = self.config, self.config.family, self.config.width

        def tokens(count: int) -> nnx.Variable:
            return kind(trunc_normal(rngs.params(), (count, width), param_dtype))

        self.class_token = tokens(1)
        self.storage_tokens = tokens(config.storage_tokens) if config.storage_tokens else None
        self.position_table = tokens(config.table_size**2 + 1) if family.table else None
        periods = centred_periods(config.head_dim, config.rope_base, param_dtype)
        self.rope_periods = Frozen(periods) if family.rope == "centred" else None
        self.mask_token = Frozen(jnp.zeros((1, width), param_dtype)) if family.mask_token else None

    def generate_patch_embedding(self) -> None:
        """Renew the patch embedding from the generator's weights, in families with wavelengths."""
        kernel, bias = self.generator(self.config.wavelengths, self.config.bandwidths)
        self.patch_kernel[...] = kernel
        assert self.patch_bias is not None
        self.patch_bias[...] = bias

    def embed(self, image: Array) -> Array:
        """Tokens before the first layer, (B, T, D): prefix tokens, then patch tokens."""
        h, w = self.grid(image.shape)
        # 1. patches
        x = self.patches(image)  # (B, N, D)
        # 2. positions of patches and class token
        prefix = [self.class_token[...]]
        if self.position_table is not None:
            positions = self.positions(h, w)
            x = x + positions[1:].astype(x.dtype)
            prefix = [prefix[0] + positions[:1]]
        # 3. prefix tokens in front
        if self.storage_tokens is not None:
            prefix.append(self.storage_tokens[...])
        first = jnp.concatenate(prefix).astype(x.dtype)
        first = jnp.broadcast_to(first, (x.shape[0], *first.shape))  # (B, prefix, D)
        x = jnp.concatenate([first, x], axis=1)  # (B, T, D)
        return self.norm_first(x) if self.config.family.norm_first else x

    def patches(self, image: Array) -> Array:
        """Patch embeddings (B, N, D) of a normalised image, without positions."""
        config, kernel = self.config, self.patch_kernel[...]
        if config.kernel_places != tuple(range(kernel.shape[2])):
            # a band that the image lacks is zero after normalisation: its part of the kernel is left out
            kernel = kernel[:, :, np.array(config.kernel_places)]
        bias = None if self.patch_bias is None else self.patch_bias[...]
        image = clip_pixels(image, config.family.pixel_range, config.eight_bit)
        return embed_patches(self._padded(image), kernel, bias)

    def positions(self, h: int, w: int) -> Array:
        """Positions of class token and patches on a grid, (1 + N, D), in families that have a table."""
        assert self.position_table is not None
        table, family = self.position_table[...], self.config.family
        antialias = self.config.table_antialias or family.table_antialias
        grid = resample_table(table[1:], h, w, antialias=antialias, offset=family.table_offset)
        return jnp.concatenate([table[:1], grid])

    def _padded(self, image: Array) -> Array:
        """The image as a padded patch convolution reads it.

        The first patch starts `padding` pixels above and to the left of the image; the last rows and columns,
        which fill no patch, are dropped.
        """
        padding = self.config.family.padding
        if not padding:
            return image
        return jnp.pad(image, ((0, 0), (padding, 0), (padding, 0), (0, 0)))[:, :-padding, :-padding]

    def rope(self, h: int, w: int) -> Rope | None:
        """Rotary positions of a grid of h x w patches; None in families without."""
        if self.rope_periods is not None:
            return centred_rope(self.rope_periods[...], h, w)
        if self.config.family.rope == "stretched":
            dtype = wide_type(self.class_token[...].dtype)
            return stretched_rope(self.config.head_dim, h, w, dtype)
        return None

    def last_norm(self, tokens: Array) -> Array:
        """Tokens (B, T, D) after the norm that follows the last layer; unchanged in families without."""
        return self.norm(tokens) if self.config.family.final_norm else tokens

    def stacked(self, h: int, w: int) -> Layers:
        """The blocks, ready to be scanned over a grid of h x w patches."""
        rope = self.rope(h, w)
        graph, weights = nnx.split(self.blocks)

        def apply(x: Array, layer: Any, edit: Edit | None = None, beside: Beside | None = None) -> Array:
            """Run one block with rotary positions."""
            return nnx.merge(graph, edited(layer, edit))(x, rope, beside)

        return Layers(weights, apply)


class Block(nnx.Module):
    """Pre-norm transformer block, with LayerScale in families that have it."""

    def __init__(self, config: EncoderConfig, kind: VariableType, param_dtype, rngs: nnx.Rngs):
        width = config.width
        self.norm1 = LayerNorm(width, config.norm_eps, kind=kind, param_dtype=param_dtype)
        self.attention = Attention(config, kind, param_dtype, rngs)
        self.norm2 = LayerNorm(width, config.norm_eps, kind=kind, param_dtype=param_dtype)
        self.mlp = FeedForward(config, kind, param_dtype, rngs)
        initial = jnp.full((width,), config.layer_scale, param_dtype)
        self.scale1 = kind(initial) if config.family.layer_scale else None
        self.scale2 = kind(initial) if config.family.layer_scale else None

    def __call__(self, x: Array, rope: Rope | None = None, beside: Beside | None = None) -> Array:
        """(B, T, D) -> (B, T, D); `beside` is an adapter's branch beside the feed-forward block."""
        x = x + _scaled(self.attention(self.norm1(x), rope), self.scale1)
        normed = self.norm2(x)
        y = x + _scaled(self.mlp(normed), self.scale2)
        return y if beside is None else y + beside(normed)


def _scaled(x: Array, scale: nnx.Variable | None) -> Array:
    return x if scale is None else x * scale[...].astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head self-attention with a fused projection of queries, keys and values."""

    def __init__(self, config: EncoderConfig, kind: VariableType, param_dtype, rngs: nnx.Rngs):
        width = config.width
        self.heads = config.heads
        kwargs = {"init": trunc_normal, "kind": kind, "param_dtype": param_dtype, "rngs": rngs}
        self.qkv = Linear(width, 3 * width, bias_init=zeros if config.qkv_bias else None, **kwargs)
        self.out = Linear(width, width, **kwargs)
        if config.qkv_bias and not config.family.key_bias:
            mask = jnp.ones((3, width), param_dtype).at[1].set(0)
            self.bias_mask: Frozen | None = Frozen(mask.reshape(-1))
        else:
            self.bias_mask = None

    def __call__(self, x: Array, rope: Rope | None) -> Array:
        """(B, T, D) -> (B, T, D)."""
        qkv = self._project(x)  # (B, T, 3 D)
        q, k, v = rearrange(qkv, "b t (s h c) -> s b t h c", s=3, h=self.heads)  # (B, T, heads, D / heads)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        y = attend(q, k, v)  # (B, T, heads, D / heads)
        return self.out(rearrange(y, "b t h c -> b t (h c)"))

    def _project(self, x: Array) -> Array:
        """Queries, keys and values side by side; a mask keeps the bias of keys at 0 in some families."""
        if self.bias_mask is None:
            return self.qkv(x)
        bias = self.qkv.bias[...] * self.bias_mask[...]
        return project(x, self.qkv.kernel[...]) + bias.astype(x.dtype)
