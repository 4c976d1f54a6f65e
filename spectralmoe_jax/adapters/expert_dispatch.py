"""Dispatch for many experts: every token is sent to the experts that it chose, and only to those.

It computes equations 2 and 3 of `spectral_moe.py` with the same result as `spectral_moe.gated_sum`, which
computes every expert for every token: the cheaper form while experts are few, since its updates stay in
E*R + 1 coordinates. Here the rows, one for every token and choice, are sorted by expert, and one product
runs over the rows and weights of all groups (`jax.lax.ragged_dot`): there is no capacity, so that no token is
dropped, and no work for experts that were not chosen.

Shapes beside the glossary: S = B * N * k rows.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec as P

from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.layers import wide_type
from spectralmoe_jax.parallel import active_layout, constrain


def dispatch(tokens: Array, indices: Array, a: Array, b: Array, config: SpectralMoEConfig) -> Array:
    """Update of every chosen expert (equation 2), in the expert's own coordinates.

    With experts spread over devices the coordinates cross between them in the forward pass, their gradients
    and the experts' weights in the backward pass.

    Args:
      tokens: (B, N, D).
      indices: (B, N, k), the chosen experts.
      a: (E, M, R).
      b: (E, R, D).
      config: the settings.

    Returns:
      (B, N, k, R + 1), the coordinate of the bias last; at least float32.
    """
    layout = active_layout()
    if layout is None:
        return _coordinates(tokens, indices, a, b, 0, config)
    batch, expert = layout.sharding(("batch",)).spec[0], layout.rules.get("expert", ())
    rows, whole, experts = P(batch), P(), P(expert or None)

    def forward_here(tokens: Array, indices: Array, a: Array, b: Array) -> Array:
        """Compute the coordinates of this device's experts; a sum over devices completes them."""
        first = jax.lax.axis_index(expert) * a.shape[0] if expert else 0
        return jax.lax.psum(_coordinates(tokens, indices, a, b, first, config), expert)

    def weight_gradients_here(
        tokens: Array, indices: Array, a: Array, b: Array, gradient: Array
    ) -> tuple[Array, Array]:
        """Compute the gradients of this device's experts."""
        first = jax.lax.axis_index(expert) * a.shape[0] if expert else 0
        _, pull = jax.vjp(lambda a, b: _coordinates(tokens, indices, a, b, first, config), a, b)
        return jax.lax.psum(pull(gradient), batch) if batch else pull(gradient)

    def token_gradients_here(tokens: Array, indices: Array, a: Array, b: Array, gradient: Array) -> Array:
        """Compute the gradient of the tokens, with all experts on each device."""
        return jax.vjp(lambda t: _coordinates(t, indices, a, b, 0, config), tokens)[1](gradient)[0]

    sharded = functools.partial(jax.shard_map, mesh=layout.mesh, check_vma=False)
    forward = sharded(forward_here, in_specs=(rows, rows, experts, experts), out_specs=rows)

    @jax.custom_vjp
    def run(tokens: Array, indices: Array, a: Array, b: Array) -> Array:
        return forward(tokens, indices, a, b)

    def run_forward(*operands: Array) -> tuple[Array, tuple[Array, ...]]:
        """Run the forward pass and save its operands."""
        return forward(*operands), operands

    def run_backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array | None, ...]:
        """Recompute the coordinates and return the gradients of tokens and experts."""
        tokens, indices, a, b = saved
        gradient = constrain(gradient, "batch", None, None, None)
        a_gradient, b_gradient = sharded(
            weight_gradients_here, in_specs=(rows, rows, experts, experts, rows), out_specs=(experts, experts)
        )(*saved, gradient)
        # The gradient of the tokens is a sum over experts, as wide as a token: gather the weights instead.
        token_gradient = sharded(
            token_gradients_here, in_specs=(rows, rows, whole, whole, rows), out_specs=rows
        )(tokens, indices, constrain(a), constrain(b), gradient)
        return token_gradient, None, a_gradient, b_gradient

    run.defvjp(run_forward, run_backward)
    return run(tokens, indices, a, b)


def dispatched_updates(coordinates: Array, indices: Array, basis: Array, experts: int) -> Array:
    """From coordinates to updates: (B, N, k, R + 1) -> (B, N, k, D).

    Args:
      coordinates: from `dispatch`.
      indices: (B, N, k), the chosen experts.
      basis: `spectral_moe.directions`, (E*R + 1, D), the same on every device.
      experts: E.
    """
    layout = active_layout()
    rows = basis[:-1].reshape(experts, -1, basis.shape[-1])  # (E, R, D)
    if layout is None:
        return _updates(coordinates, indices, rows, basis[-1])
    batch = P(layout.sharding(("batch",)).spec[0])
    sharded = jax.shard_map(
        _updates, mesh=layout.mesh, in_specs=(batch, batch, P(), P()), out_specs=batch, check_vma=False
    )
    return sharded(coordinates, indices, rows, basis[-1])


class Plan(NamedTuple):
    """Order in which a device goes through its rows: sorted by expert.

    Attributes:
      token: (S,) int32, the token of each row.
      expert: (S,) int32, its expert, non-decreasing; rows of experts on other devices come last, with E as
        their number.
      sizes: (E,) int32, rows of each expert.
      row: (S,), the row of each (token, choice).
    """

    token: Array
    expert: Array
    sizes: Array
    row: Array


def _plan(indices: Array, experts: int, first: Array | int) -> Plan:
    """Sort rows on a device that holds `experts` experts, the first of them number `first`."""
    own = indices.reshape(-1) - first
    own = jnp.where((own >= 0) & (own < experts), own, experts)
    order = jnp.argsort(own, stable=True)
    row = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
    sizes = jnp.bincount(own, length=experts + 1)[:-1].astype(jnp.int32)
    return Plan(order // indices.shape[-1], own[order], sizes, row)


def _coordinates(
    tokens: Array, indices: Array, a: Array, b: Array, first: Array | int, config: SpectralMoEConfig
) -> Array:
    """As `dispatch`, for the experts from `first` on that `a` and `b` hold; zero for the other choices."""
    wide = wide_type(tokens.dtype)
    width = tokens.shape[-1]
    # 1. sort the rows by expert
    plan = _plan(indices, a.shape[0], first)
    rows = tokens.reshape(-1, width)[plan.token]  # (S, D)
    here = plan.expert < a.shape[0]
    # 2. scores of the expert's tokens
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
    # 3. token map, eq. 2; the first token is a sink
    scores = jnp.where(here[:, None], scores, 0.0)
    p = jax.nn.softmax(scores / jnp.sqrt(width).astype(wide), axis=-1)[:, 1:]  # (S, M - 1)
    # 4. coordinates
    inside = jax.lax.ragged_dot(p, a[:, 1:].astype(wide), plan.sizes)  # (S, R)
    out = jnp.concatenate([inside, p.sum(axis=-1, keepdims=True)], axis=-1)  # (S, R + 1)
    out = jnp.where(here[:, None], out, 0.0)
    # 5. back to the order of the tokens
    return out[plan.row].reshape(*indices.shape, -1)


def _updates(coordinates: Array, indices: Array, directions: Array, bias: Array) -> Array:
    """(B, N, k, R + 1), (B, N, k), (E, R, D), (D,) -> (B, N, k, D)."""
    plan = _plan(indices, directions.shape[0], 0)
    inside = coordinates.reshape(-1, coordinates.shape[-1])
    by_expert = jnp.zeros_like(inside).at[plan.row].set(inside)  # (S, R + 1), sorted
    dtype = coordinates.dtype
    dz = jax.lax.ragged_dot(by_expert[:, :-1], directions.astype(dtype), plan.sizes)  # (S, D)
    dz = dz + by_expert[:, -1:] * bias.astype(dtype)
    return dz[plan.row].reshape(*indices.shape, -1)
