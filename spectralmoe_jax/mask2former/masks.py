"""Mask logits as the product that they are, so that only those which are read are computed and kept.

A decoder output has one mask for each query at every pixel of the finest level, but its loss reads the masks
of the few matched queries, and a prediction those of the last output.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from spectralmoe_jax.layers import contract, wide_type


class Masks(NamedTuple):
    """Masks of K decoder outputs.

    Attributes:
      embedding: mask embeddings, (K, B, Q, D).
      features: mask features of the finest level, (B, h, w, D).
    """

    embedding: Array
    features: Array

    def logits(self) -> Array:
        """All mask logits, (K, B, Q, h, w)."""
        outputs, batch, queries, width = self.embedding.shape
        # with images in front the product is one of matrices for each of them
        joined = self.embedding.swapaxes(0, 1).reshape(batch, outputs * queries, width)
        logits = mask_logits(joined, self.features)
        return logits.reshape(batch, outputs, queries, *logits.shape[2:]).swapaxes(0, 1)

    def of_queries(self, query: Array) -> Array:
        """Mask logits of some queries of every output and image: (K, B, S) int -> (K, B, S, h, w)."""
        chosen = jnp.take_along_axis(self.embedding, query[..., None], axis=2)  # (K, B, S, D)
        return Masks(chosen, self.features).logits()


def mask_logits(embedding: Array, features: Array) -> Array:
    """Mask embeddings (B, Q, D) and features (B, h, w, D) -> mask logits (B, Q, h, w), at least float32."""
    batch, height, width, channels = features.shape
    pixels = features.reshape(batch, height * width, channels)
    logits = contract("bqc,bpc->bqp", embedding, pixels, wide_type(embedding.dtype))
    return logits.reshape(batch, -1, height, width)
