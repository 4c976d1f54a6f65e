"""The loss of the linear head: cross-entropy of every labelled pixel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from spectralmoe_jax.mask2former.resize import resize_bilinear


def pixel_cross_entropy(logits: Array, labels: Array) -> Array:
    """The mean over labelled pixels of the whole batch, a scalar in at least float32; 0 where there are none.

    Args:
      logits: (B, h, w, C), resized to the labels bilinearly.
      labels: (B, H, W) integers; values outside 0..C-1, such as 255, are ignored.
    """
    classes = logits.shape[-1]
    wide = logits.astype(jnp.promote_types(jnp.float32, logits.dtype))
    probabilities = jax.nn.log_softmax(resize_bilinear(wide, (labels.shape[1], labels.shape[2])), axis=-1)
    labelled = (labels >= 0) & (labels < classes)
    truth = jnp.where(labelled, labels, 0)
    chosen = jnp.take_along_axis(probabilities, truth[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(labelled, chosen, 0)) / jnp.maximum(labelled.sum(), 1)
