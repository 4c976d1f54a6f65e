"""The pixel decoder: deformable attention over three levels, then one finer level for the masks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from spectralmoe_jax.config.model import LEVELS, Mask2FormerConfig
from spectralmoe_jax.layers import (
    EPS,
    Conv,
    FeedForward,
    GroupNorm,
    LayerNorm,
    Linear,
    c2_uniform,
    normal,
    relu,
    stack_layers,
    xavier_uniform,
    zeros,
)
from spectralmoe_jax.mask2former.deformable_attention import DeformableAttention, Shapes, pixel_centres
from spectralmoe_jax.resampling import resize_bilinear, resize_by_scale

# of the sine position encoding
TEMPERATURE = 10000.0
POSITION_EPS = 1e-6


class PixelFeatures(NamedTuple):
    """Output of the pixel decoder, D the width of the head.

    Attributes:
      mask_features: the finest level, (B, h, w, D).
      levels: three of (B, h, w, D), the coarsest first.
    """

    mask_features: Array
    levels: list[Array]


class PixelDecoder(nnx.Module):
    """Three attended levels and one map of mask features from four feature maps.

    Attributes:
      input_convs: projections of the three levels, stacked on a leading axis, level 0 the coarsest.
      encoder: layers of the deformable encoder, stacked on a leading axis.
      level_encoding: (levels, D), added to the positions of each level.
      lateral_conv: projection of the finest map.
      output_conv: smooths the sum of both.
      mask_feature: projection to the mask features.
    """

    def __init__(
        self,
        config: Mask2FormerConfig,
        in_features: int,
        *,
        remat: bool = False,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        kwargs = {"param_dtype": param_dtype}
        self.config, self.remat = config, remat
        self.input_convs = stack_layers(
            lambda rngs: LevelProjection(in_features, config, bias=True, rngs=rngs, **kwargs), LEVELS, rngs
        )
        self.encoder = stack_layers(
            lambda rngs: EncoderLayer(config, rngs=rngs, **kwargs), config.encoder_layers, rngs
        )
        self.level_encoding = nnx.Param(normal(rngs.params(), (LEVELS, config.width), param_dtype))
        self.lateral_conv = LevelProjection(in_features, config, bias=False, rngs=rngs, **kwargs)
        self.output_conv = Smoothing(config, rngs=rngs, **kwargs)
        self.mask_feature = Linear(config.width, config.width, init=c2_uniform, rngs=rngs, **kwargs)

    def __call__(self, features: Sequence[Array], scales: Sequence[float] | None = None) -> PixelFeatures:
        """Decode four feature maps.

        Args:
          features: maps (B, h, w, in_features), the finest level first, not yet resized by `scales`.
          scales: by default `config.scales`.
        """
        scales = self.config.scales if scales is None else scales
        # 1. project the three coarser maps, the coarsest first
        graph, weights = nnx.split(self.input_convs)
        levels = []
        for level in range(LEVELS):
            project = nnx.merge(graph, jax.tree.map(lambda leaf, i=level: leaf[i], weights))
            levels.append(project(features[-1 - level], scales[-1 - level]))  # (B, h, w, D)
        shapes = [level.shape[1:3] for level in levels]
        # 2. deformable encoder
        levels = self._encode(levels, shapes)
        # 3. mask features: the finest map plus the finest of the levels
        fine = self.lateral_conv(features[0], scales[0])
        fine = self.output_conv(fine + resize_bilinear(levels[-1], fine.shape[1:3]))
        return PixelFeatures(self.mask_feature(fine), levels)

    def _encode(self, levels: list[Array], shapes: Shapes) -> list[Array]:
        """Apply the deformable encoder, a scan over its layers, to levels (B, h, w, D)."""
        batch, width, dtype = levels[0].shape[0], self.config.width, levels[0].dtype
        x = jnp.concatenate([level.reshape(batch, -1, width) for level in levels], axis=1)  # (B, T, D)
        encoding = self.level_encoding[...]
        sines = jnp.concatenate([sine_positions(*shape, width, encoding.dtype) for shape in shapes])
        level = np.repeat(np.arange(LEVELS), [h * w for h, w in shapes])  # of every token
        # one for each image: their sum over images would otherwise be taken in every layer's backward pass
        positions = jnp.broadcast_to((sines + encoding[level]).astype(dtype), x.shape)  # (B, T, D)
        centres = pixel_centres(shapes, encoding.dtype)  # (T, 2)
        graph, weights = nnx.split(self.encoder)

        def step(x: Array, layer: nnx.State) -> tuple[Array, None]:
            """Run one encoder layer: scan body."""
            return nnx.merge(graph, layer)(x, positions, centres, shapes), None

        x, _ = jax.lax.scan(jax.checkpoint(step) if self.remat else step, x, weights)
        ends = [sum(h * w for h, w in shapes[: i + 1]) for i in range(len(shapes) - 1)]
        parts = jnp.split(x, ends, axis=1)
        return [part.reshape(batch, *shape, width) for part, shape in zip(parts, shapes, strict=True)]


class EncoderLayer(nnx.Module):
    """Deformable self-attention and a feed-forward block, each with its residual, normalised after."""

    def __init__(self, config: Mask2FormerConfig, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        kwargs = {"param_dtype": param_dtype, "rngs": rngs}
        self.self_attn = DeformableAttention(config.width, config.num_heads, LEVELS, config.points, **kwargs)
        self.norm_attention = LayerNorm(config.width, EPS, param_dtype=param_dtype)
        self.ffn = FeedForward(config.width, config.encoder_ffn, **kwargs)
        self.norm_ffn = LayerNorm(config.width, EPS, param_dtype=param_dtype)

    def __call__(self, x: Array, positions: Array, centres: Array, shapes: Shapes) -> Array:
        """(B, T, D) -> (B, T, D); see `DeformableAttention`."""

        @functools.partial(jax.checkpoint, prevent_cse=False)  # its hidden layer, 4 times x, is not kept
        def feed(x: Array) -> Array:
            """Normalise, then add the feed-forward block."""
            x = self.norm_attention(x)
            return x + self.ffn(x)

        return self.norm_ffn(feed(x + self.self_attn(x, positions, centres, shapes)))


class LevelProjection(nnx.Module):
    """1x1 convolution, resize, group normalisation.

    The convolution acts before the resize. Both are linear and the weights of a resize sum to one, so the
    result is that of the published order, at a fraction of the work.
    """

    def __init__(
        self, in_features: int, config: Mask2FormerConfig, *, bias: bool, param_dtype, rngs: nnx.Rngs
    ):
        init, bias_init = (xavier_uniform, zeros) if bias else (c2_uniform, None)
        self.conv = Linear(
            in_features, config.width, init=init, bias_init=bias_init, param_dtype=param_dtype, rngs=rngs
        )
        self.gn = GroupNorm(config.width, config.group_norm_groups, param_dtype=param_dtype)

    def __call__(self, x: Array, scale: float) -> Array:
        """(B, h, w, in_features) -> (B, h * scale, w * scale, D)."""
        return self.gn(resize_by_scale(self.conv(x), scale))


class Smoothing(nnx.Module):
    """3x3 convolution, group normalisation, ReLU."""

    def __init__(self, config: Mask2FormerConfig, *, param_dtype, rngs: nnx.Rngs):
        self.conv = Conv(config.width, config.width, param_dtype=param_dtype, rngs=rngs)
        self.gn = GroupNorm(config.width, config.group_norm_groups, param_dtype=param_dtype)

    def __call__(self, x: Array) -> Array:
        """(B, h, w, D) -> (B, h, w, D)."""
        return relu(self.gn(self.conv(x)))


def sine_positions(height: int, width: int, features: int, dtype=jnp.float32) -> Array:
    """Sine position encoding of a map (DETR, arXiv 2005.12872, as Mask2Former uses it): (h * w, features).

    The first half encodes y, the second x, sines and cosines alternating. Positions count from 1 and are
    normalised to (0, 2 pi]. `features` must be a multiple of 4.
    """
    rows = jnp.asarray(_encode_axis(height, features // 2), dtype)[:, None, :]
    columns = jnp.asarray(_encode_axis(width, features // 2), dtype)[None, :, :]
    half = (height, width, features // 2)
    both = [jnp.broadcast_to(rows, half), jnp.broadcast_to(columns, half)]
    return jnp.concatenate(both, axis=-1).reshape(height * width, features)


def _encode_axis(size: int, features: int) -> np.ndarray:
    """Encoding of the positions of one axis: (size, features)."""
    position = np.arange(1, size + 1) / (size + POSITION_EPS) * 2 * np.pi
    frequency = TEMPERATURE ** (np.arange(0, features, 2) / features)
    angle = position[:, None] / frequency
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(size, features)
