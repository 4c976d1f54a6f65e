"""What one training step hands to the next."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from spectralmoe_jax.parallel import Layout

NEVER = -1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes while training, as one pytree.

    Attributes:
      step: int32 (), steps done so far.
      params: the trainable parameters, plain nested dicts.
      opt_state: the optimizer's state for them.
      first_bad_step: int32 (), the first step whose loss or gradient was not
        finite, or -1. It travels on the device, so that the loop may look at it
        rarely and still name the step.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    first_bad_step: jax.Array


def init_state(
    params: Any, optimizer: optax.GradientTransformation, layout: Layout | None = None
) -> TrainState:
    """The state before the first step, with its own copy of `params`: a step donates its state.

    With a layout every leaf is made where it belongs, and is never whole anywhere else.
    """

    def make(params: Any) -> TrainState:
        params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            first_bad_step=jnp.full((), NEVER, jnp.int32),
        )

    if layout is None:
        # placed for good, as what a step returns is: another placing would compile the step again
        return jax.device_put(make(params), jax.local_devices()[0])
    return jax.jit(make, out_shardings=layout.of_parameters(jax.eval_shape(make, params)))(params)
