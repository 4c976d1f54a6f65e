"""One vision transformer for DINOv3 (rotary positions, storage tokens, masked key bias) and DINOv2
(position table), after Siméoni et al. 2025 (arXiv 2508.10104) and Oquab et al. 2023 (arXiv 2304.07193).

Blocks are stacked on a leading layer axis and applied by a scan; see `backbone.py`.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.layers import Frozen, LayerNorm, Linear, VariableType, trunc_normal
from spectralmoe_jax.models.resample import resize_bicubic

KINDS = ("dinov3", "dinov2")


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Shape of an encoder.

    Attributes:
      kind: `dinov3` (rotary positions, masked key bias) or `dinov2` (position table).
      in_channels: bands of the input. storage_tokens: register tokens after the class token.
      table_size: side of the position table's grid (dinov2); other grids are resampled from it.
      layer_scale: initial LayerScale. trainable: True makes the weights parameters, not frozen.
    """

    kind: str = "dinov3"
    width: int = 1024
    layers: int = 24
    heads: int = 16
    patch_size: int = 16
    in_channels: int = 3
    mlp_ratio: float = 4.0
    storage_tokens: int = 4
    rope_base: float = 100.0
    norm_eps: float = 1e-5
    table_size: int = 32
    layer_scale: float = 1e-5
    trainable: bool = False
    name: str = "visual"

    def __post_init__(self):
        prefix = f"config.model.{self.name}"
        if self.kind not in KINDS:
            raise UserError(f"{prefix}.kind = {self.kind!r}: choose from {', '.join(KINDS)}")
        if self.width % self.heads:
            raise UserError(f"{prefix}.heads = {self.heads}: must divide width = {self.width}")
        if self.kind == "dinov3" and (self.width // self.heads) % 4:
            raise UserError(
                f"{prefix}.heads = {self.heads}: width / heads must be a multiple of 4 for rotary positions"
            )
        for key in ("width", "layers", "patch_size", "in_channels"):
            if getattr(self, key) < 1:
                raise UserError(f"{prefix}.{key} = {getattr(self, key)}: must be at least 1")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def prefix_tokens(self) -> int:
        """Class and storage tokens, which stand before the patch tokens."""
        return 1 + self.storage_tokens


class Attention(nnx.Module):
    """Multi-head self-attention with a fused projection; softmax statistics are float32."""

    def __init__(self, config: ViTConfig, kind: VariableType, param_dtype, rngs: nnx.Rngs):
        width = config.width
        self.heads = config.heads
        kwargs = {"init": trunc_normal, "kind": kind, "param_dtype": param_dtype, "rngs": rngs}
        self.qkv = Linear(width, 3 * width, **kwargs)
        self.out = Linear(width, width, **kwargs)
        if config.kind == "dinov3":
            mask = jnp.ones((3, width), param_dtype).at[1].set(0)  # keys have no bias
            self.bias_mask: Frozen | None = Frozen(mask.reshape(-1))
        else:
            self.bias_mask = None

    def __call__(self, x: Array, rope: tuple[Array, Array] | None) -> Array:
        bias = self.qkv.bias[...]
        if self.bias_mask is not None:
            bias = bias * self.bias_mask[...]
        qkv = x @ self.qkv.kernel[...].astype(x.dtype) + bias.astype(x.dtype)  # (B, T, 3*D)
        q, k, v = rearrange(qkv, "b t (s h c) -> s b t h c", s=3, h=self.heads)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        y = jax.nn.dot_product_attention(q, k, v)  # (B, T, H, C)
        return self.out(rearrange(y, "b t h c -> b t (h c)"))


class Block(nnx.Module):
    """Pre-norm transformer block with LayerScale."""

    def __init__(self, config: ViTConfig, kind: VariableType, param_dtype, rngs: nnx.Rngs):
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        kwargs = {"init": trunc_normal, "kind": kind, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = LayerNorm(width, config.norm_eps, kind=kind, param_dtype=param_dtype)
        self.attention = Attention(config, kind, param_dtype, rngs)
        self.scale1 = kind(jnp.full((width,), config.layer_scale, param_dtype))
        self.norm2 = LayerNorm(width, config.norm_eps, kind=kind, param_dtype=param_dtype)
        self.mlp_in = Linear(width, hidden, **kwargs)
        self.mlp_out = Linear(hidden, width, **kwargs)
        self.scale2 = kind(jnp.full((width,), config.layer_scale, param_dtype))

    def __call__(self, x: Array, rope: tuple[Array, Array] | None = None) -> Array:
        """x (B, T, D) -> (B, T, D)."""
        x = x + self.attention(self.norm1(x), rope) * self.scale1[...].astype(x.dtype)
        hidden = jax.nn.gelu(self.mlp_in(self.norm2(x)), approximate=False)
        return x + self.mlp_out(hidden) * self.scale2[...].astype(x.dtype)


class VisionTransformer(nnx.Module):
    """Patch embedding, prefix tokens, positions and a stack of blocks.

    `blocks` holds all layers, stacked on axis 0. `norm` and `mask_token` come with every published
    checkpoint and are kept so that one goes back whole; the features taken from the layers use neither.
    """

    def __init__(self, config: ViTConfig, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        kind = nnx.Param if config.trainable else Frozen
        width, patch = config.width, config.patch_size
        self.config = config
        shape = (patch, patch, config.in_channels, width)
        self.patch_kernel = kind(trunc_normal(rngs.params(), shape, param_dtype))
        self.patch_bias = kind(jnp.zeros((width,), param_dtype))
        self.class_token = kind(trunc_normal(rngs.params(), (1, width), param_dtype))
        if config.storage_tokens:
            tokens = trunc_normal(rngs.params(), (config.storage_tokens, width), param_dtype)
            self.storage_tokens: nnx.Variable | None = kind(tokens)
        else:
            self.storage_tokens = None
        if config.kind == "dinov2":
            rows = config.table_size**2 + 1
            self.position_table: nnx.Variable | None = kind(
                trunc_normal(rngs.params(), (rows, width), param_dtype)
            )
            self.rope_periods: Frozen | None = None
        else:
            self.position_table = None
            self.rope_periods = Frozen(rope_periods(config.head_dim, config.rope_base, param_dtype))
        self.mask_token = Frozen(jnp.zeros((1, width), param_dtype))
        self.norm = LayerNorm(width, config.norm_eps, kind=Frozen, param_dtype=param_dtype)
        self.blocks = nnx.vmap(lambda r: Block(config, kind, param_dtype, r), in_axes=0, out_axes=0)(
            rngs.split(config.layers)
        )

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """Patches along height and width of an image (B, H, W, C)."""
        height, width = image_shape[1:3]
        patch = self.config.patch_size
        if height % patch or width % patch:
            raise UserError(
                f"an image of {height}x{width} pixels does not divide into patches of {patch}: "
                "choose a crop or window that is a multiple of the patch size"
            )
        return height // patch, width // patch

    def embed(self, image: Array) -> Array:
        """(B, H, W, C), normalised, in the compute dtype -> tokens (B, prefix + N, D)."""
        h, w = self.grid(image.shape)
        patches = rearrange(image, "b (h p) (w q) c -> b (h w) (p q c)", h=h, w=w)
        kernel = rearrange(self.patch_kernel[...], "p q c d -> (p q c) d").astype(image.dtype)
        x = patches @ kernel + self.patch_bias[...].astype(image.dtype)  # (B, N, D)
        prefix = [self.class_token[...]]
        if self.position_table is not None:
            table = self.position_table[...]
            x = x + self._positions(table[1:], h, w).astype(x.dtype)
            prefix = [prefix[0] + table[:1]]
        if self.storage_tokens is not None:
            prefix.append(self.storage_tokens[...])
        first = jnp.concatenate(prefix).astype(x.dtype)
        first = jnp.broadcast_to(first, (x.shape[0], *first.shape))
        return jnp.concatenate([first, x], axis=1)

    def rope(self, h: int, w: int) -> tuple[Array, Array] | None:
        """Sine and cosine tables (N, head_dim) of a patch grid, or None with a position table."""
        if self.rope_periods is None:
            return None
        return rope_tables(self.rope_periods[...], h, w)

    def _positions(self, table: Array, h: int, w: int) -> Array:
        side = math.isqrt(table.shape[0])
        grid = rearrange(table, "(h w) d -> h w d", h=side)
        return rearrange(resize_bicubic(grid, h, w), "h w d -> (h w) d")

    def all_layers(self, image: Array) -> Array:
        """Tokens after every layer, for inspection and parity: (L, B, prefix + N, D)."""
        rope = self.rope(*self.grid(image.shape))
        graph, state = nnx.split(self.blocks)

        def body(x, layer):
            x = nnx.merge(graph, layer)(x, rope)
            return x, x

        return jax.lax.scan(body, self.embed(image), state)[1]


def rope_periods(head_dim: int, base: float, dtype=jnp.float32) -> Array:
    """Periods of the rotary positions: (head_dim / 4,)."""
    return (base ** (jnp.arange(head_dim // 4) / (head_dim // 4))).astype(dtype)


def rope_tables(periods: Array, h: int, w: int) -> tuple[Array, Array]:
    """Sine and cosine (N, head_dim) over patch centres in [-1, 1], at least float32."""
    dtype = jnp.promote_types(jnp.float32, periods.dtype)
    rows = (jnp.arange(h, dtype=dtype) + 0.5) / h * 2 - 1
    columns = (jnp.arange(w, dtype=dtype) + 0.5) / w * 2 - 1
    coordinates = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)  # (h, w, 2)
    angles = 2 * jnp.pi * coordinates[..., None] / periods.astype(dtype)  # (h, w, 2, C/4)
    angles = angles.reshape(h * w, -1)
    angles = jnp.concatenate([angles, angles], axis=-1)  # (N, C)
    return jnp.sin(angles), jnp.cos(angles)


def rotate(x: Array, sin: Array, cos: Array) -> Array:
    """Rotate the patch tokens of x (B, T, H, C), the last N of T, in float32; others pass."""
    prefix = x.shape[1] - sin.shape[0]
    patches = x[:, prefix:].astype(sin.dtype)
    left, right = jnp.split(patches, 2, axis=-1)
    turned = patches * cos[:, None] + jnp.concatenate([-right, left], axis=-1) * sin[:, None]
    return jnp.concatenate([x[:, :prefix], turned.astype(x.dtype)], axis=1)
