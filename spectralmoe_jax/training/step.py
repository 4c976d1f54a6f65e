"""The loss of a batch of raw pixels, as a pure function of plain dictionaries.

What one training step hands to the next.

One training step as a pure, jitted function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.mask2former.loss import mask2former_loss
from spectralmoe_jax.models.linear_head import pixel_cross_entropy
from spectralmoe_jax.models.segmenter import PixelOutput, Segmenter
from spectralmoe_jax.parallel import Layout
from spectralmoe_jax.parameters import join

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


def make_loss(segmenter: Segmenter, config: LossConfig) -> LossFunction:
    """The training loss of a segmenter, of which only the structure is read.

    The returned function takes the two dicts of `models.state.split`, a batch `{"image": (B, H, W, C) raw
    pixels, "label": (B, H, W)}` and a key, and gives the scalar loss with its named terms: class, mask and
    dice summed over decoder layers (of the linear head, its cross-entropy as class), and the adapter's own;
    and where there are experts `expert_usage` (L, J, E), the share of tokens of a layer and modality whose
    strongest expert each is.
    """

    def loss_fn(trainable: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
        model = join(segmenter, trainable, frozen)
        noise_key, point_key = jax.random.split(key)
        out = model(model.normalise(batch["image"]), key=noise_key)
        labels = batch["label"].astype(jnp.int32)
        metrics: Metrics = {"loss_balance": out.auxiliary_loss}
        if out.experts is not None and out.experts.size:
            metrics["expert_usage"] = expert_usage(out.experts, segmenter.config.adapter.num_experts)
        if isinstance(out, PixelOutput):
            entropy = pixel_cross_entropy(out.logits, labels)
            return entropy + out.auxiliary_loss, metrics | {"loss_cls": entropy}
        loss = mask2former_loss(out.class_logits, out.mask_logits, labels, config=config, key=point_key)
        sums = {
            name: jnp.stack([value for term, value in loss.terms.items() if term.endswith(name)]).sum()
            for name in ("loss_cls", "loss_mask", "loss_dice")
        }
        # a matching on costs that are not finite would go unnoticed: let the loop see it
        total = jnp.where(loss.bad_costs > 0, jnp.nan, loss.total) + out.auxiliary_loss
        return total, metrics | sums

    return loss_fn


def expert_usage(strongest: jax.Array, experts: int) -> jax.Array:
    """Share of tokens by their strongest expert: (L, J, B, N) int32 -> (L, J, E) float32."""
    return jnp.mean(strongest[..., None] == jnp.arange(experts), axis=(2, 3), dtype=jnp.float32)


def make_stream_loss(segmenters: Mapping[str, Segmenter], config: LossConfig) -> LossFunction:
    """The training loss of a run on several sensors, each with a segmenter for its bands.

    As `make_loss`, of batches `{stream: batch}` with one stream each, and frozen weights by stream. The
    function is compiled once a stream.
    """
    losses = {name: make_loss(segmenter, config) for name, segmenter in segmenters.items()}

    def loss_fn(trainable: Any, frozen: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Metrics]:
        ((name, tiles),) = batch.items()
        return losses[name](trainable, frozen[name], tiles, key)

    return loss_fn
