"""Many experts: every token is sent to the experts it chose, and only to those.

Sorted by expert, the tokens of one are consecutive rows, and one product runs over rows and weights of all
groups (`jax.lax.ragged_dot`): no capacity, so no token is dropped, and no work for experts not chosen. The
result is that of `experts.coordinates`, which computes every expert for every token: cheaper while they are
few, as its updates need not leave E*R + 1 coordinates.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P

from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.parallel import active_layout, constrain


class Plan(NamedTuple):
    """The order in which a device goes through its tokens.

    token: (S,) int32, the token of each row. expert: (S,) int32, its expert, non-decreasing; rows of
    experts elsewhere come last, with a number beyond the last. sizes: (E,) int32, rows of each expert.
    back: (S,), the row of each (token, choice).
    """

    token: Array
    expert: Array
    sizes: Array
    back: Array


def dispatched(tokens: Array, indices: Array, a: Array, b: Array, config: SpectralMoEConfig) -> Array:
    """Each chosen expert's update in its own coordinates, the bias's last.

    Args:
      tokens: (B, N, D). indices: (B, N, k). a: (E, M, R). b: (E, R, D).

    Returns: (B, N, k, R + 1), at least float32. With experts spread over devices these are the numbers that
      cross; backward, their gradients and the experts' weights do.
    """
    layout = active_layout()
    if layout is None:
        return _coordinates(tokens, indices, a, b, 0, config)
    batch, expert = layout.sharding(("batch",)).spec[0], layout.rules.get("expert", ())
    rows, whole = P(batch), P()
    experts = P(expert or None)

    def here(tokens: Array, indices: Array, a: Array, b: Array) -> Array:
        first = jax.lax.axis_index(expert) * a.shape[0] if expert else 0
        return jax.lax.psum(_coordinates(tokens, indices, a, b, first, config), expert)

    def weights_of(tokens: Array, indices: Array, a: Array, b: Array, gradient: Array) -> tuple[Array, Array]:
        first = jax.lax.axis_index(expert) * a.shape[0] if expert else 0
        _, pull = jax.vjp(lambda a, b: _coordinates(tokens, indices, a, b, first, config), a, b)
        return jax.lax.psum(pull(gradient), batch) if batch else pull(gradient)

    def tokens_of(tokens: Array, indices: Array, a: Array, b: Array, gradient: Array) -> Array:
        return jax.vjp(lambda t: _coordinates(t, indices, a, b, 0, config), tokens)[1](gradient)[0]

    spread = functools.partial(jax.shard_map, mesh=layout.mesh, check_vma=False)
    forward = spread(here, in_specs=(rows, rows, experts, experts), out_specs=rows)

    @jax.custom_vjp
    def run(tokens: Array, indices: Array, a: Array, b: Array) -> Array:
        return forward(tokens, indices, a, b)

    def run_forward(*operands: Array) -> tuple[Array, tuple[Array, ...]]:
        return forward(*operands), operands

    def run_backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array | None, ...]:
        tokens, indices, a, b = saved
        gradient = constrain(gradient, "batch", None, None, None)
        of_a, of_b = spread(
            weights_of, in_specs=(rows, rows, experts, experts, rows), out_specs=(experts, experts)
        )(*saved, gradient)
        # A sum over experts as wide as a token: the weights travel instead.
        of_tokens = spread(tokens_of, in_specs=(rows, rows, whole, whole, rows), out_specs=rows)(
            tokens, indices, constrain(a), constrain(b), gradient
        )
        return of_tokens, None, of_a, of_b

    run.defvjp(run_forward, run_backward)
    return run(tokens, indices, a, b)


def updates(coordinates: Array, indices: Array, basis: Array, experts: int) -> Array:
    """From coordinates (B, N, k, R + 1) to the updates themselves (B, N, k, D).

    basis: `experts.directions`, (E*R + 1, D), the same on every device.
    """
    layout = active_layout()
    rows = basis[:-1].reshape(experts, -1, basis.shape[-1])  # (E, R, D)
    if layout is None:
        return _updates(coordinates, indices, rows, basis[-1])
    batch = P(layout.sharding(("batch",)).spec[0])
    spread = jax.shard_map(
        _updates, mesh=layout.mesh, in_specs=(batch, batch, P(), P()), out_specs=batch, check_vma=False
    )
    return spread(coordinates, indices, rows, basis[-1])


def _updates(coordinates: Array, indices: Array, rows: Array, bias: Array) -> Array:
    plan = _plan(indices, rows.shape[0], 0)
    inside = coordinates.reshape(-1, coordinates.shape[-1])
    by_row = jnp.zeros_like(inside).at[plan.back].set(inside)  # (S, R + 1), sorted
    dtype = coordinates.dtype
    dz = jax.lax.ragged_dot(by_row[:, :-1], rows.astype(dtype), plan.sizes)
    dz = dz + by_row[:, -1:] * bias.astype(dtype)
    return dz[plan.back].reshape(*indices.shape, -1)


def _plan(indices: Array, experts: int, first: Array | int) -> Plan:
    """For a device that holds `experts` of them from number `first` on; indices (B, N, k)."""
    own = indices.reshape(-1) - first
    own = jnp.where((own >= 0) & (own < experts), own, experts)
    order = jnp.argsort(own, stable=True)
    back = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
    sizes = jnp.bincount(own, length=experts + 1)[:-1].astype(jnp.int32)
    return Plan(order // indices.shape[-1], own[order], sizes, back)


def _coordinates(
    tokens: Array, indices: Array, a: Array, b: Array, first: Array | int, config: SpectralMoEConfig
) -> Array:
    """As `dispatched`, for experts `first`, ... alone; zero for a choice of another expert."""
    wide = jnp.promote_types(jnp.float32, tokens.dtype)
    width = tokens.shape[-1]
    plan = _plan(indices, a.shape[0], first)
    rows = tokens.reshape(-1, width)[plan.token]  # (S, D)
    here = plan.expert < a.shape[0]
    if config.token_map == "dot":
        z = jax.lax.ragged_dot(
            rows, b.astype(rows.dtype).swapaxes(1, 2), plan.sizes, preferred_element_type=wide
        )  # (S, R)
        scores = jax.lax.ragged_dot(
            z.astype(rows.dtype), a.astype(rows.dtype).swapaxes(1, 2), plan.sizes, preferred_element_type=wide
        )  # (S, M)
    else:
        token_sum = jnp.einsum("emr,er->em", a, jnp.sum(b, axis=-1)).astype(wide)
        of_row = token_sum[jnp.minimum(plan.expert, a.shape[0] - 1)]
        scores = jnp.sum(rows.astype(wide), axis=-1, keepdims=True) * of_row
    scores = jnp.where(here[:, None], scores, 0.0)
    p = jax.nn.softmax(scores / jnp.sqrt(width).astype(wide), axis=-1)[:, 1:]  # the first token is a sink
    inside = jax.lax.ragged_dot(p, a[:, 1:].astype(wide), plan.sizes)  # (S, R)
    out = jnp.concatenate([inside, p.sum(axis=-1, keepdims=True)], axis=-1)
    out = jnp.where(here[:, None], out, 0.0)
    return out[plan.back].reshape(*indices.shape, -1)
