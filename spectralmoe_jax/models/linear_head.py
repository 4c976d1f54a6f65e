"""The linear head and its loss: a classifier of every pixel on the tokens of the chosen layers.

A 1x1 convolution on the maps side by side, so that one matrix is learned besides the adapter: the cheap
baseline. Its logits are resized to the image bilinearly, and its loss is the cross-entropy over labelled
pixels, or over patches with their most frequent class; pixels without a label take no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import reduce
from flax import nnx
from jax import Array

from spectralmoe_jax.config.model import LinearHeadConfig
from spectralmoe_jax.layers import Linear, torch_bias, torch_uniform, wide_type
from spectralmoe_jax.resampling import resize_bilinear


class LinearHead(nnx.Module):
    """Logits of every class from the maps of any number of layers.

    Attributes:
      classifier: (maps * D, C).
    """

    def __init__(
        self,
        config: LinearHeadConfig,
        *,
        in_features: int,
        maps: int,
        dtype=jnp.float32,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.config, self.dtype = config, dtype
        joined = maps * in_features
        self.classifier = Linear(
            joined, config.num_classes, init=torch_uniform, bias_init=torch_bias(joined), **kwargs
        )

    def __call__(self, maps: Sequence[Array]) -> Array:
        """Maps (B, h, w, D) -> logits (B, h, w, C), at least float32, of the size of the largest map."""
        return self.classifier(self.join(maps), wide_type(self.dtype))

    def join(self, maps: Sequence[Array]) -> Array:
        """Maps (B, h, w, D), resized to the largest, side by side: (B, h, w, maps * D)."""
        size = max((x.shape[1], x.shape[2]) for x in maps)
        return jnp.concatenate([resize_bilinear(x.astype(self.dtype), size) for x in maps], axis=-1)


def pixel_scores(logits: Array, size: tuple[int, int]) -> Array:
    """Class probabilities (B, H, W, C) float32 of logits (B, h, w, C) that are resized to (H, W)."""
    return jax.nn.softmax(resize_bilinear(logits, size), axis=-1).astype(jnp.float32)


def labels_to_learn(labels: Array, grid: Sequence[int], config: LinearHeadConfig) -> Array:
    """Return the labels that the head learns, by `config.labels`.

    Args:
      labels: (B, H, W) integers; values outside 0..C-1 are no label.
      grid: height h and width w of the head's logits, which divide H and W: of patches, unless an adapter
        makes finer maps.
      config: of the head.

    Returns:
      The labels themselves, or for patches (B, h, w) the most frequent class of each, the first of several,
      and C where no pixel is labelled.
    """
    if config.labels == "pixels":
        return labels
    ones = jax.nn.one_hot(labels, config.num_classes, dtype=jnp.int32)  # (B, H, W, C); zeros without a label
    counts = reduce(ones, "b (h y) (w x) c -> b h w c", "sum", h=grid[0], w=grid[1])
    return jnp.where(counts.any(axis=-1), counts.argmax(axis=-1), config.num_classes)


def pixel_cross_entropy(logits: Array, labels: Array, class_weights: Sequence[float] | None = None) -> Array:
    """Mean cross-entropy over the labelled pixels of the batch, a scalar in at least float32; 0 without any.

    Args:
      logits: (B, h, w, C), resized to the labels bilinearly.
      labels: (B, H, W) integers of pixels, or from `labels_to_learn`; values outside 0..C-1 are ignored.
      class_weights: C weights of a pixel by its class, for a weighted mean; None for equal ones.
    """
    classes = logits.shape[-1]
    wide = logits.astype(wide_type(logits.dtype))
    probabilities = jax.nn.log_softmax(resize_bilinear(wide, (labels.shape[1], labels.shape[2])), axis=-1)
    labelled = (labels >= 0) & (labels < classes)
    truth = jnp.where(labelled, labels, 0)
    chosen = jnp.take_along_axis(probabilities, truth[..., None], axis=-1)[..., 0]  # (B, H, W)
    if class_weights is None:
        return -jnp.sum(jnp.where(labelled, chosen, 0)) / jnp.maximum(labelled.sum(), 1)
    weight = jnp.where(labelled, jnp.asarray(class_weights, wide.dtype)[truth], 0)
    total = weight.sum()
    return -jnp.sum(weight * chosen) / jnp.where(total > 0, total, 1)
