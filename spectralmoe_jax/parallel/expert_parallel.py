"""Computing each expert's numbers where its weights lie.

Weights that are kept in parts and used whole, a layer at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from spectralmoe_jax.parallel.mesh import active_layout, constrain


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


GATHERED = "gathered_weights"


def gathered(layer: Any, dtype: jnp.dtype) -> Any:
    """One layer's weights, whole on every device.

    Kernels cross in the dtype they are used in. Weights that are not kept in parts are left as they are.
    """
    layout = active_layout()
    if layout is None or layout.size("embed") == 1:
        return layer

    def gather(weight: jax.Array) -> jax.Array:
        is_kernel = weight.ndim > 1 and jnp.issubdtype(weight.dtype, jnp.floating)
        return checkpoint_name(constrain(weight.astype(dtype) if is_kernel else weight), GATHERED)

    return jax.tree.map(gather, layer)


def forgetting_gathered(function: Any) -> Any:
    """`function`, whose gathered weights are gathered again on the way back: kept for all layers, they would
    be the whole model on every device."""
    layout = active_layout()
    if layout is None or layout.size("embed") == 1:
        return function
    return jax.checkpoint(function, policy=jax.checkpoint_policies.save_anything_except_these_names(GATHERED))
