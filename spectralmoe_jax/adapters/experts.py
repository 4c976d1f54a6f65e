"""Low-rank token experts, evaluated in their own coordinates.

Expert e holds m tokens T_e = A_e B_e of rank r. Everything it can add to a feature lies in the span
of the r rows of B_e W_t and of the bias b_t, so a token's update is kept as r numbers an expert plus
one: E*r + 1 coordinates instead of d, with the same result.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from spectralmoe_jax.adapters.dispatch import dispatched
from spectralmoe_jax.adapters.dispatch import updates as all_updates
from spectralmoe_jax.adapters.gating import Routing
from spectralmoe_jax.adapters.settings import AdapterConfig
from spectralmoe_jax.parallel import by_expert, constrain, gather_experts


def token_map(tokens: Array, a: Array, b: Array, config: AdapterConfig) -> Array:
    """Softmax attention of every feature over the m tokens of every expert.

    tokens (B, N, D), a (E, M, R), b (E, R, D) -> (B, N, E, M), at least float32.
    """
    wide = jnp.promote_types(jnp.float32, tokens.dtype)
    if config.token_map == "dot":
        z = by_expert(_inside, tokens, b.astype(tokens.dtype))
        scores = jnp.einsum("bner,emr->bnem", z.astype(tokens.dtype), a.astype(tokens.dtype),
                            preferred_element_type=wide)  # fmt: skip
    else:
        feature_sum = jnp.sum(tokens.astype(wide), axis=-1)  # (B, N)
        token_sum = jnp.einsum("emr,er->em", a, jnp.sum(b, axis=-1))
        scores = feature_sum[:, :, None, None] * token_sum.astype(wide)
    return jax.nn.softmax(scores / jnp.sqrt(tokens.shape[-1]).astype(wide), axis=-1)


def _inside(tokens: Array, b: Array) -> Array:
    """(B, N, D), (E, R, D) -> (B, N, E, R), at least float32."""
    wide = jnp.promote_types(jnp.float32, tokens.dtype)
    return jnp.einsum("bnd,erd->bner", tokens, b, preferred_element_type=wide)


def coordinates(tokens: Array, a: Array, b: Array, weights: Array, config: AdapterConfig) -> Array:
    """The weighted sum of the experts' updates, in expert coordinates.

    With experts spread over devices each computes those of its own, and these numbers are what crosses.

    Args:
      tokens: (B, N, D). a: (E, M, R). b: (E, R, D).
      weights: (B, N, E), the factor of each expert's update.

    Returns: (B, N, E*R + 1), at least float32; `x @ directions(...)` is the update itself.
    """
    p = token_map(tokens, a, b, config)[..., 1:]  # the first token is a sink: it takes no part below
    inside = jnp.einsum("bnem,emr->bner", p, a[:, 1:].astype(p.dtype))
    weights = weights.astype(p.dtype)
    inside = gather_experts(inside * weights[..., None])  # (B, N, E, R)
    mass = jnp.sum(p.sum(axis=-1) * weights, axis=-1, keepdims=True)  # (B, N, 1), of the bias
    return jnp.concatenate([inside.reshape(*inside.shape[:2], -1), mass], axis=-1)


def directions(b: Array, kernel: Array, bias: Array) -> Array:
    """The rows that coordinates multiply: (E*R + 1, D). b (E, R, D), kernel (D, D), bias (D,)."""
    rows = constrain(constrain(jnp.einsum("erd,dc->erc", b, kernel), "expert", None, None), None, None, None)
    return jnp.concatenate([rows.reshape(-1, kernel.shape[1]), bias[None]], axis=0)


def combine(
    tokens: Array, a: Array, b: Array, basis: Array, routing: Routing, config: AdapterConfig
) -> Array:
    """Combine the chosen experts of one modality; basis: `directions`, (E*R + 1, D).

    Returns: coordinates (B, N, E*R + 1) where `config.in_coordinates`, else the update (B, N, D).
    """
    if config.in_coordinates:
        weights = routing.gates if config.combination == "gated_sum" else routing.chosen
        return coordinates(tokens, a, b, weights, config)
    if config.dispatches:
        inside = dispatched(tokens, routing.indices, a, b, config)
        updates = all_updates(inside, routing.indices, basis, config.num_experts)  # (B, N, k, D)
        if config.combination == "log_sum_exp":
            return jax.nn.logsumexp(updates, axis=2)
        gates = jnp.take_along_axis(routing.gates, routing.indices, axis=-1)
        return jnp.einsum("bnk,bnkd->bnd", gates.astype(updates.dtype), updates)
    alone = []
    for rank in range(config.top_k):
        only = _nth_chosen(routing.chosen, rank)
        x = coordinates(tokens, a, b, only, config)
        alone.append(jnp.einsum("bnx,xd->bnd", x, basis.astype(x.dtype)))
    return jax.nn.logsumexp(jnp.stack(alone), axis=0)


def _nth_chosen(chosen: Array, n: int) -> Array:
    """Of the chosen experts of a token, in order of their number, the n-th alone: (B, N, E) bool."""
    order = jnp.cumsum(chosen, axis=-1)
    return chosen & (order == n + 1)
