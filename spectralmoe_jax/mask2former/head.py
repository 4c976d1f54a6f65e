"""The Mask2Former head (arXiv 2112.01527), as the released SpectralMoE code computes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.config.model import LEVELS, Mask2FormerConfig
from spectralmoe_jax.layers import Linear, normal, relu, torch_bias, torch_uniform, wide_type
from spectralmoe_jax.mask2former.masks import Masks, mask_logits
from spectralmoe_jax.mask2former.pixel_decoder import PixelDecoder, sine_positions
from spectralmoe_jax.mask2former.transformer_decoder import MaskDecoder, Memory
from spectralmoe_jax.resampling import resize_bilinear


class Mask2FormerHead(nnx.Module):
    """Class and mask logits from feature maps and linked queries.

    Attributes:
      pixel_decoder: from feature maps to levels and mask features.
      transformer_decoder: refines the queries.
      query_feat: (Q, D), query features, unless they come with the linked queries.
      query_embed: (Q, D), position embeddings of the queries, unless they are linked.
      level_embed: (levels, D), added to the keys and values of each level.
      cls_embed: from queries to class logits.
      mask_embed: from queries to mask embeddings.
    """

    def __init__(
        self,
        config: Mask2FormerConfig,
        *,
        in_features: int,
        dtype=jnp.float32,
        remat: bool = False,
        own_positions: bool = False,
        own_features: bool = True,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Make the head with random weights.

        Args:
          config: sizes.
          in_features: channels of the feature maps.
          dtype: of the computation; statistics, sampling positions and logits are at least float32.
          remat: rematerialise each encoder layer and each round of decoder layers in the backward pass.
          own_positions: learn the position embeddings of the queries, for none are linked.
          own_features: learn the query features; False where they come with the linked queries.
          param_dtype: of the weights, float32 or float64.
          rngs: draws the weights.
        """
        kwargs = {"param_dtype": param_dtype, "rngs": rngs}
        shape = (config.num_queries, config.width)
        self.config, self.dtype = config, dtype
        self.pixel_decoder = PixelDecoder(config, in_features, remat=remat, **kwargs)
        self.transformer_decoder = MaskDecoder(config, remat=remat, **kwargs)
        if own_features:
            self.query_feat = nnx.Param(normal(rngs.params(), shape, param_dtype))
        if own_positions:
            self.query_embed = nnx.Param(normal(rngs.params(), shape, param_dtype))
        self.own_positions, self.own_features = own_positions, own_features
        self.level_embed = nnx.Param(normal(rngs.params(), (LEVELS, config.width), param_dtype))
        bias_init = torch_bias(config.width)
        self.cls_embed = Linear(
            config.width, config.num_classes + 1, init=torch_uniform, bias_init=bias_init, **kwargs
        )
        self.mask_embed = MaskEmbedding(config.width, **kwargs)

    def __call__(
        self,
        features: Sequence[Array],
        queries: Array | None,
        **options: Any,
    ) -> tuple[Array, Array]:
        """Class and mask logits of every decoder layer: see `predict`.

        Returns:
          Class logits (K, B, Q, C + 1) and mask logits (K, B, Q, h, w) at the finest level.
        """
        class_logits, masks = self.predict(features, queries, **options)
        return class_logits, masks.logits()

    def predict(
        self,
        features: Sequence[Array],
        queries: Array | None,
        *,
        all_layers: bool = True,
        query_features: Array | None = None,
        scales: Sequence[float] | None = None,
    ) -> tuple[Array, Masks]:
        """Class logits and masks of every decoder layer.

        Args:
          features: four maps (B, h, w, in_features), finest level first, not yet resized: map i is resized by
            `config.scales[i]` after its projection. Maps that are resized already go with scales of 1.
          queries: (Q, D), position embeddings linked to the adapter; None for the head's own.
          all_layers: False gives the last layer alone, for prediction.
          query_features: (Q, D), in place of the head's own.
          scales: in place of `config.scales`.

        Returns:
          Class logits (K, B, Q, C + 1), at least float32, the last class "no object", and masks at the finest
          level. K is 1 + decoder_layers, the first from the query features before any layer, or 1.

        Raises:
          ValueError: the number of maps or the shape of the queries does not fit.
        """
        shape = (self.config.num_queries, self.config.width)
        queries = self.query_embed[...] if self.own_positions else queries
        start = self.query_feat[...] if self.own_features else query_features
        if queries is None or start is None:
            raise ValueError("the head has no queries of its own, and none were given")
        if len(features) != LEVELS + 1 or queries.shape != shape:
            raise ValueError(
                f"the head takes {LEVELS + 1} feature maps and queries {shape}, "
                f"not {len(features)} and {queries.shape}"
            )
        # 1. levels, and mask features of the finest level
        mask_features, levels = self.pixel_decoder([x.astype(self.dtype) for x in features], scales)
        memories = [self._memory(level, i) for i, level in enumerate(levels)]
        # resizing mask features equals resizing the masks they give, for a fraction of the work
        small = [resize_bilinear(mask_features, level.shape[1:3]) for level in levels]

        # 2. masked attention: a query whose mask is empty attends everywhere
        def block(normed: Array, level: int) -> Array:
            """Predict the attention mask of the next layer; True where a query must not look."""
            mask = jax.nn.sigmoid(mask_logits(self.mask_embed(normed), small[level]))  # (B, Q, h, w)
            hidden = jax.lax.stop_gradient(mask < 0.5).reshape(*mask.shape[:2], -1)  # (B, Q, N), eq. 3
            return hidden & ~hidden.all(axis=-1, keepdims=True)

        batch = mask_features.shape[0]
        start = jnp.broadcast_to(start.astype(self.dtype), (batch, *shape))  # (B, Q, D)
        trail = self.transformer_decoder(start, queries.astype(self.dtype), memories, block)
        trail = trail if all_layers else trail[-1:]  # (K, B, Q, D)
        # 3. class logits and mask embeddings, images in front: layers join their axes
        trail = trail.swapaxes(0, 1)  # (B, K, Q, D)
        class_logits = self.cls_embed(trail, wide_type(self.dtype))
        return class_logits.swapaxes(0, 1), Masks(self.mask_embed(trail).swapaxes(0, 1), mask_features)

    def _memory(self, level: Array, index: int) -> Memory:
        """Keys and values (B, N, D) of a level (B, h, w, D)."""
        batch, height, width, channels = level.shape
        value = level.reshape(batch, -1, channels) + self.level_embed[index].astype(level.dtype)
        positions = sine_positions(height, width, channels, wide_type(level.dtype))
        return Memory(value, value + positions.astype(level.dtype))


class MaskEmbedding(nnx.Module):
    """Three linear layers with an activation between them."""

    def __init__(
        self,
        width: int,
        *,
        activation: Callable[[Array], Array] = relu,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        kwargs = {"param_dtype": param_dtype, "rngs": rngs}

        def linear() -> Linear:
            return Linear(width, width, init=torch_uniform, bias_init=torch_bias(width), **kwargs)

        self.first, self.second, self.third = linear(), linear(), linear()
        self.activation = activation

    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., D)."""
        return self.third(self.activation(self.second(self.activation(self.first(x)))))


def semantic_scores(class_logits: Array, mask_logits: Array, size: tuple[int, int]) -> Array:
    """Scores of every class for every pixel, by Mask2Former's semantic inference.

    The sum over queries of the class probability times the sigmoid of the upsampled mask. One image at a
    time, for the upsampled masks are large.

    Args:
      class_logits: (B, Q, C + 1) of the last layer.
      mask_logits: (B, Q, h, w), likewise.
      size: (H, W) of the result.

    Returns:
      (B, H, W, C) float32, at least 0.
    """

    def one(logits: tuple[Array, Array]) -> Array:
        """Combine classes and masks of one image: (Q, C+1), (Q, h, w) -> (H, W, C)."""
        classes, masks = logits
        probabilities = jax.nn.softmax(classes, axis=-1)[:, :-1]  # (Q, C)
        masks = resize_bilinear(masks.transpose(1, 2, 0)[None], size)[0]  # (H, W, Q)
        return jnp.matmul(jax.nn.sigmoid(masks), probabilities, precision=jax.lax.Precision.HIGHEST)

    return jax.lax.map(one, (class_logits, mask_logits))
