"""Weights that are kept in parts and used whole, a layer at a time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from spectralmoe_jax.parallel.layout import active_layout, constrain

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
