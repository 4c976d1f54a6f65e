"""The router of one modality, and the loss that keeps its experts busy.

Noisy top-k gating and the smooth load follow Shazeer et al. 2017 (arXiv 1701.06538, appendix A);
distance gates follow SpectralMoE (arXiv 2603.13352, section 3.2). All of it is at least float32.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import ndtr

from spectralmoe_jax.adapters.settings import AdapterConfig
from spectralmoe_jax.parallel import by_expert, by_rows, gather_experts

HIGHEST = jax.lax.Precision.HIGHEST


class Routing(NamedTuple):
    """gates: (B, N, E), zero outside the top k. chosen: (B, N, E) bool. indices: (B, N, k) int32, the chosen
    experts, the strongest first. load: (E,) float."""

    gates: Array
    chosen: Array
    indices: Array
    load: Array


def clean_logits(tokens: Array, w_gate: Array, config: AdapterConfig) -> Array:
    """Negative distance (or the product) of every token to every expert's gate vector.

    tokens (B, N, D), w_gate (D, E) -> (B, N, E), all of one dtype. The squared distance of `gaussian` comes
    without the token's own square, the same for all experts: it changes neither the choice of experts
    nor their gates nor the load. In float32 the logits would be rounded to its last digit. Gradients through
    the load, at N = 256, D = 128, then err by 1e-4 to 3e-4 of the largest, and by 1e-5 to 3e-5 without it.
    """
    if config.gating == "laplace" and config.distance == "l1":
        # one expert at a time: the (B, N, D) difference fuses into its sum and is never stored
        distances = [jnp.sum(jnp.abs(tokens - w), axis=-1) for w in w_gate.T]
        return -jnp.stack(distances, axis=-1)
    product = _product(tokens, w_gate)
    if config.gating == "softmax":
        return product
    relative = jnp.sum(w_gate**2, axis=0) - 2 * product
    if config.gating == "gaussian":
        return -relative
    squared = jnp.maximum(jnp.sum(tokens**2, axis=-1, keepdims=True) + relative, 0.0)
    # a token on its gate vector has distance 0 and, as in torch.cdist, gradient 0
    positive = squared > 0
    return -jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def _product(tokens: Array, w: Array) -> Array:
    return jnp.einsum("bnd,de->bne", tokens, w, precision=HIGHEST)


def route(
    tokens: Array, w_gate: Array, w_noise: Array, config: AdapterConfig, noise: Array | None = None
) -> Routing:
    """Choose the top k experts of every token.

    Args:
      tokens: (B, N, D), any float dtype; the router computes in at least float32.
      w_gate, w_noise: (D, E).
      noise: standard normal draws (B, N, E) in training, None in evaluation.
    """
    dtype = jnp.promote_types(jnp.float32, w_gate.dtype)
    tokens = tokens.astype(dtype)
    num_experts, k = config.num_experts, config.top_k
    distances = by_expert(lambda t, w: clean_logits(t, w, config), tokens, w_gate.astype(dtype))
    clean = gather_experts(distances)  # (B, N, E)
    logits, deviation = clean, None
    if noise is not None:
        spread = by_expert(_product, tokens, w_noise.astype(dtype))
        deviation = jax.nn.softplus(gather_experts(spread)) + config.noise_epsilon
        logits = clean + noise.astype(dtype) * deviation

    values, indices = by_rows(lambda x: jax.lax.top_k(x, min(k + 1, num_experts)), logits)  # (B, N, k+1)
    selected = jax.nn.one_hot(indices[..., :k], num_experts, dtype=dtype)  # (B, N, k, E)
    if config.full_softmax:
        gates = jax.nn.softmax(logits, axis=-1) * selected.sum(axis=-2)
    else:
        gates = jnp.einsum("bnk,bnke->bne", jax.nn.softmax(values[..., :k], axis=-1), selected)
    if deviation is not None and k < num_experts:
        load = _smooth_load(clean, logits, deviation, values, k)
    else:
        load = jnp.sum(gates > 0, axis=(0, 1)).astype(dtype)
    return Routing(gates, selected.sum(axis=-2) > 0, indices[..., :k], load)


def _smooth_load(clean: Array, logits: Array, deviation: Array, values: Array, k: int) -> Array:
    """Expected number of tokens an expert gets under a fresh noise draw of its own: (E,)."""
    threshold_if_in = values[..., k : k + 1]
    threshold_if_out = values[..., k - 1 : k]
    threshold = jnp.where(logits > threshold_if_in, threshold_if_in, threshold_if_out)
    return jnp.sum(ndtr((clean - threshold) / deviation), axis=(0, 1))


def squared_variation(x: Array) -> Array:
    """cv^2 of a vector (E,): unbiased variance over squared mean; 0 for a single entry."""
    if x.shape[0] == 1:
        return jnp.zeros((), x.dtype)
    return jnp.var(x, ddof=1) / (jnp.mean(x) ** 2 + 1e-10)


def balance_loss(routings: list[Routing], config: AdapterConfig) -> Array:
    """The balance loss of one layer over its modalities, weight applied: a scalar."""
    terms = []
    for routing in routings:
        term = squared_variation(jnp.sum(routing.gates, axis=(0, 1)))
        if config.balance == "importance_and_load":
            term = term + squared_variation(routing.load)
        terms.append(term)
    total = sum(terms[1:], terms[0])
    if config.balance_over_modalities == "mean":
        total = total / len(terms)
    assert config.balance_weight is not None  # filled by the preset
    return config.balance_weight * total
