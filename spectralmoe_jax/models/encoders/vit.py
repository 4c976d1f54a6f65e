"""One vision transformer for DINOv3 (arXiv 2508.10104), DINOv2 (2304.07193, with registers 2309.16588), DOFA
(2403.15356), CLIP (2103.00020) and EVA-02 (2303.11331); `config.presets.FAMILIES` says how they differ.

Blocks are stacked on a leading layer axis and applied by a scan; see `backbone.py`.

From images to patch tokens, and position tables on other grids than their own.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array

from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.layers import Frozen, LayerNorm, Linear, VariableType, attend, trunc_normal, zeros
from spectralmoe_jax.models.encoders.dofa import KernelGenerator
from spectralmoe_jax.models.encoders.encoder import Beside, Edit, Layers
from spectralmoe_jax.models.positions import (
    Rope,
    centred_periods,
    centred_rope,
    resize_bicubic,
    rotate,
    stretched_rope,
)
from spectralmoe_jax.parameters import edited


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


def quick_gelu(x: Array) -> Array:
    """CLIP's approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": lambda x: jax.nn.gelu(x, approximate=False), "quick_gelu": quick_gelu}


class Attention(nnx.Module):
    """Multi-head self-attention with a fused projection; softmax statistics are float32."""

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
        qkv = self._project(x)  # (B, T, 3*D)
        q, k, v = rearrange(qkv, "b t (s h c) -> s b t h c", s=3, h=self.heads)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        y = attend(q, k, v)  # (B, T, H, C)
        return self.out(rearrange(y, "b t h c -> b t (h c)"))

    def _project(self, x: Array) -> Array:
        if self.bias_mask is None:
            return self.qkv(x)
        bias = self.qkv.bias[...] * self.bias_mask[...]
        return x @ self.qkv.kernel[...].astype(x.dtype) + bias.astype(x.dtype)


class FeedForward(nnx.Module):
    """Two linear layers with an activation between them, or SwiGLU, whose first layer gives gate and value
    side by side; a norm before the last layer in families that have one."""

    def __init__(self, config: EncoderConfig, kind: VariableType, param_dtype, rngs: nnx.Rngs):
        kwargs = {"init": trunc_normal, "kind": kind, "param_dtype": param_dtype, "rngs": rngs}
        self.gated = config.ffn == "swiglu"
        self.activation = config.family.activation
        self.first = Linear(config.width, config.hidden * (2 if self.gated else 1), **kwargs)
        self.last = Linear(config.hidden, config.width, **kwargs)
        self.norm = (
            LayerNorm(config.hidden, config.norm_eps, kind=kind, param_dtype=param_dtype)
            if config.family.ffn_norm
            else None
        )

    def __call__(self, x: Array) -> Array:
        hidden = self.first(x)
        if self.gated:
            gate, value = jnp.split(hidden, 2, axis=-1)
            hidden = jax.nn.silu(gate) * value
        else:
            hidden = ACTIVATIONS[self.activation](hidden)
        if self.norm is not None:
            hidden = self.norm(hidden)
        return self.last(hidden)


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
        """x (B, T, D) -> (B, T, D); `beside` is a branch beside the feed-forward block."""
        x = x + _scaled(self.attention(self.norm1(x), rope), self.scale1)
        normed = self.norm2(x)
        y = x + _scaled(self.mlp(normed), self.scale2)
        return y if beside is None else y + beside(normed)


def _scaled(x: Array, scale: nnx.Variable | None) -> Array:
    return x if scale is None else x * scale[...].astype(x.dtype)


class VisionTransformer(nnx.Module):
    """Patch embedding, prefix tokens, positions and a stack of blocks.

    `blocks` holds all layers, stacked on axis 0. `norm`, `cls_norm`, `local_cls_norm` and `mask_token` come
    with published checkpoints and are kept so that one goes back whole; the features use none of them.
    With wavelengths, `patch_kernel` and `patch_bias` are what `generator` made for them;
    `generate_patch_embedding` renews both once the generator's weights were filled.
    """

    def __init__(self, config: EncoderConfig, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        kind = nnx.Param if config.trainable else Frozen
        self.config = config
        self._make_stem(kind, param_dtype, rngs)
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

    def _make_stem(self, kind: VariableType, param_dtype, rngs: nnx.Rngs) -> None:
        config = self.config
        if config.family.wavelengths:
            self.generator = KernelGenerator(
                config.patch_size, config.width, param_dtype=param_dtype, rngs=rngs
            )
            kernel, bias = self.generator(config.wavelengths)
            self.patch_kernel: nnx.Variable = Frozen(kernel)
            self.patch_bias: nnx.Variable | None = Frozen(bias)
            return
        shape = (config.patch_size, config.patch_size, config.in_channels, config.width)
        self.patch_kernel = kind(trunc_normal(rngs.params(), shape, param_dtype))
        has_bias = config.family.patch_bias
        self.patch_bias = kind(jnp.zeros((config.width,), param_dtype)) if has_bias else None

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
        """Renew the patch embedding from the generator's weights (dofa)."""
        kernel, bias = self.generator(self.config.wavelengths)
        self.patch_kernel[...] = kernel
        assert self.patch_bias is not None
        self.patch_bias[...] = bias

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """Patches along height and width of an image (B, H, W, C)."""
        return patch_grid(image_shape, self.config.patch_size)

    def embed(self, image: Array) -> Array:
        """(B, H, W, C), normalised, in the compute dtype -> tokens (B, prefix + N, D)."""
        h, w = self.grid(image.shape)
        bias = None if self.patch_bias is None else self.patch_bias[...]
        x = embed_patches(self._padded(image), self.patch_kernel[...], bias)  # (B, N, D)
        prefix = [self.class_token[...]]
        if self.position_table is not None:
            table = self.position_table[...]
            positions = resample_table(table[1:], h, w, antialias=self.config.table_antialias)
            x = x + positions.astype(x.dtype)
            prefix = [prefix[0] + table[:1]]
        if self.storage_tokens is not None:
            prefix.append(self.storage_tokens[...])
        first = jnp.concatenate(prefix).astype(x.dtype)
        first = jnp.broadcast_to(first, (x.shape[0], *first.shape))
        x = jnp.concatenate([first, x], axis=1)
        return self.norm_first(x) if self.config.family.norm_first else x

    def _padded(self, image: Array) -> Array:
        """The image as the patches read it: a padded convolution starts `padding` pixels above and to the
        left, and its last rows and columns fall away."""
        padding = self.config.family.padding
        if not padding:
            return image
        return jnp.pad(image, ((0, 0), (padding, 0), (padding, 0), (0, 0)))[:, :-padding, :-padding]

    def rope(self, h: int, w: int) -> Rope | None:
        """Rotary tables of a patch grid, or None in families without."""
        if self.rope_periods is not None:
            return centred_rope(self.rope_periods[...], h, w)
        if self.config.family.rope == "stretched":
            dtype = jnp.promote_types(jnp.float32, self.class_token[...].dtype)
            return stretched_rope(self.config.head_dim, h, w, dtype)
        return None

    def stacked(self, h: int, w: int) -> Layers:
        """The blocks, ready to be scanned over a grid of h x w patches."""
        rope = self.rope(h, w)
        graph, weights = nnx.split(self.blocks)

        def apply(x: Array, layer: Any, edit: Edit | None = None, beside: Beside | None = None) -> Array:
            return nnx.merge(graph, edited(layer, edit))(x, rope, beside)

        return Layers(weights, apply)


def all_layers(encoder, image: Array) -> Array:
    """Tokens after every layer, for inspection and parity: (L, B, prefix + N, D)."""
    layers = encoder.stacked(*encoder.grid(image.shape))

    def body(x, layer):
        x = layers.apply(x, layer)
        return x, x

    return jax.lax.scan(body, encoder.embed(image), layers.weights)[1]
