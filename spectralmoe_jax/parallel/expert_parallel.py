"""Sharded weights in use: experts that are computed by the devices that hold them, and gathered weights.

Two axes of the mesh shard weights. Along `expert` every device computes the numbers of its own experts, and
those numbers cross. Along `fsdp` the kernels of an encoder's block are gathered for the block and dropped
after it.
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

GATHERED = "gathered_weights"


def by_expert(function: Callable[[Array, Any], Array], tokens: Array, weights: Any) -> Array:
    """Apply a function of tokens and experts, every expert on the devices that hold its weights.

    Numbers of experts cross the expert axis, never tokens: nothing in the forward pass; in the backward pass
    the gradient of the result and, once for each layer, the weights. Every device then computes the gradient
    of the tokens, a sum over all experts that is as wide as the tokens, for itself.

    Args:
      function: (B, N, D), weights -> (B, N, E, ...), for any E.
      tokens: (B, N, D), the same along the expert axis.
      weights: a pytree, sharded over the expert axis or not.
    """
    layout = active_layout()
    if layout is None or layout.size("expert") == 1:
        return function(tokens, weights)
    out = _by_expert(function, tokens, weights)
    return constrain(out, "batch", None, "expert", *(None,) * (out.ndim - 3))


def gather_experts(x: Array) -> Array:
    """Gather (B, N, E, ...), sharded by expert, on every device of the expert axis."""
    x = constrain(x, "batch", None, "expert", *(None,) * (x.ndim - 3))
    return constrain(x, "batch", *(None,) * (x.ndim - 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_expert(function: Callable, tokens: Array, weights: Any) -> Array:
    return function(tokens, weights)


def _by_expert_forward(function: Callable, tokens: Array, weights: Any) -> tuple[Array, tuple[Array, Any]]:
    return function(tokens, weights), (tokens, weights)


def _by_expert_backward(function: Callable, saved: tuple[Array, Any], gradient: Array) -> tuple[Array, Any]:
    tokens, weights = saved
    gathered = jax.tree.map(constrain, weights)
    (of_tokens,) = jax.vjp(lambda t: function(t, gathered), tokens)[1](gather_experts(gradient))
    (of_weights,) = jax.vjp(lambda w: function(tokens, w), weights)[1](gradient)
    return constrain(of_tokens, "batch", None, None), of_weights


_by_expert.defvjp(_by_expert_forward, _by_expert_backward)


def gather_weights(layer: Any, dtype: jnp.dtype) -> Any:
    """Gather the weights of one layer on every device; weights that are not sharded stay as they are.

    Args:
      layer: a pytree of weights.
      dtype: of the computation, in which kernels cross.
    """
    layout = active_layout()
    if layout is None or layout.size("embed") == 1:
        return layer

    def gather(weight: jax.Array) -> jax.Array:
        """Cast a kernel to the computing type and gather it on every device."""
        is_kernel = weight.ndim > 1 and jnp.issubdtype(weight.dtype, jnp.floating)
        return checkpoint_name(constrain(weight.astype(dtype) if is_kernel else weight), GATHERED)

    return jax.tree.map(gather, layer)


def remat_gathered_weights(function: Any) -> Any:
    """Wrap a function so that the backward pass gathers its weights again.

    Kept for all layers, the gathered weights would be the whole model on every device.
    """
    layout = active_layout()
    if layout is None or layout.size("embed") == 1:
        return function
    return jax.checkpoint(function, policy=jax.checkpoint_policies.save_anything_except_these_names(GATHERED))
