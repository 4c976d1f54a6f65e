"""How the depth update refines the visual one, in expert coordinates or in d dimensions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from spectralmoe_jax.adapters.settings import AdapterConfig


def fuse(visual: Array, depth: Array | None, gram: Array | None, width: int, config: AdapterConfig) -> Array:
    """Fuse the two modalities' updates.

    Args:
      visual, depth: (B, N, X), coordinates or plain updates (X = D).
      gram: (X, X) inner products of the directions, or None where X is D itself.
      width: D, which sets the attention's scale 1/sqrt(D).

    Returns: (B, N, X), in the same representation.
    """
    if config.fusion == "none" or depth is None:
        return visual
    if config.fusion == "add":
        return visual + depth
    scale = 1.0 / jnp.sqrt(width).astype(visual.dtype)
    if config.fusion == "cross_attention":
        logits = _inner(visual, depth, gram) * scale  # (B, N, N), query visual
        value = depth if config.fusion_value == "depth" else visual
        return jnp.einsum("bnk,bkx->bnx", jax.nn.softmax(logits, axis=-1), value)
    logits = _inner(depth, visual, gram) * scale
    diagonal = jnp.diagonal(logits, axis1=1, axis2=2)  # (B, N)
    weight = jnp.exp(diagonal - jax.nn.logsumexp(logits, axis=-1))
    return weight[..., None] * visual


def _inner(left: Array, right: Array, gram: Array | None) -> Array:
    if gram is not None:
        left = jnp.einsum("bnx,xy->bny", left, gram.astype(left.dtype))
    return jnp.einsum("bnx,bkx->bnk", left, right)
