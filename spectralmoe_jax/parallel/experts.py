"""Computing each expert's numbers where its weights lie."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array

from spectralmoe_jax.parallel.layout import active_layout, constrain


def by_expert(function: Callable[[Array, Any], Array], tokens: Array, weights: Any) -> Array:
    """`function(tokens, weights)`, every expert's part on the devices that hold its weights.

    What crosses the expert axis is numbers per expert, never tokens: forward nothing, backward the gradient
    of the result and, once a layer, the weights. The gradient of the tokens, a sum over experts as wide as
    they are, is then formed on every device for itself.

    Args:
      function: (B, N, D), weights -> (B, N, E, ...), and for any E.
      tokens: (B, N, D), the same along the expert axis.
      weights: a pytree, spread over the expert axis or not.
    """
    layout = active_layout()
    if layout is None or layout.size("expert") == 1:
        return function(tokens, weights)
    out = _by_expert(function, tokens, weights)
    return constrain(out, "batch", None, "expert", *(None,) * (out.ndim - 3))


def gather_experts(x: Array) -> Array:
    """(B, N, E, ...), spread by expert -> the same on every device of the expert axis."""
    x = constrain(x, "batch", None, "expert", *(None,) * (x.ndim - 3))
    return constrain(x, "batch", *(None,) * (x.ndim - 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_expert(function: Callable, tokens: Array, weights: Any) -> Array:
    return function(tokens, weights)


def _forward(function: Callable, tokens: Array, weights: Any) -> tuple[Array, tuple[Array, Any]]:
    return function(tokens, weights), (tokens, weights)


def _backward(function: Callable, saved: tuple[Array, Any], gradient: Array) -> tuple[Array, Any]:
    tokens, weights = saved
    whole = jax.tree.map(constrain, weights)
    (of_tokens,) = jax.vjp(lambda t: function(t, whole), tokens)[1](gather_experts(gradient))
    (of_weights,) = jax.vjp(lambda w: function(tokens, w), weights)[1](gradient)
    return constrain(of_tokens, "batch", None, None), of_weights


_by_expert.defvjp(_forward, _backward)
