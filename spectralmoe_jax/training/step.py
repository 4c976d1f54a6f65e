"""One training step as a pure, jitted function."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from spectralmoe_jax.parallel import Layout
from spectralmoe_jax.training.state import NEVER, TrainState

Metrics = dict[str, jax.Array]


class LossFunction(Protocol):
    """The loss of a batch; only `trainable` is differentiated."""

    def __call__(self, trainable: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
        """Returns the loss () and what to log, scalars and small arrays; `key` belongs to this step alone."""
        ...


TrainStep = Callable[[TrainState, Any, Any, jax.Array], tuple[TrainState, Metrics]]


def make_train_step(
    loss_fn: LossFunction, optimizer: optax.GradientTransformation, layout: Layout | None = None
) -> TrainStep:
    """Makes `train_step(state, frozen, batch, key) -> (state, metrics)`.

    The state is donated: it must not be used after the call. Frozen weights are
    passed in, neither donated nor returned, and no gradient is taken for them.
    `key` is the same for every step; step n draws from `fold_in(key, n)`, so a
    run resumed at step n draws what an uninterrupted one would have drawn.

    Args:
      layout: where the state is, and stays; the batch is one of all hosts. None for one device.

    Returns:
      The jitted function. Its metrics are those of `loss_fn`, and `loss` and
      `grad_norm` ().
    """

    def train_step(state: TrainState, frozen: Any, batch: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
        step_key = jax.random.fold_in(key, state.step)
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, metrics), grads = gradient(state.params, frozen, batch, step_key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        grad_norm = optax.tree.norm(grads)
        is_bad = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            first_bad_step=jnp.where(
                (state.first_bad_step == NEVER) & is_bad, state.step, state.first_bad_step
            ),
        )
        return new_state, {**metrics, "loss": loss, "grad_norm": grad_norm}

    if layout is None:
        return jax.jit(train_step, donate_argnums=0)

    def spread_step(state: TrainState, frozen: Any, batch: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
        with layout.active():
            new_state, metrics = train_step(state, frozen, batch, key)
        where = layout.of_parameters(new_state)
        whole = jax.tree.map(lambda _: layout.sharding(), metrics)
        return jax.lax.with_sharding_constraint((new_state, metrics), (where, whole))

    return jax.jit(spread_step, donate_argnums=0)
