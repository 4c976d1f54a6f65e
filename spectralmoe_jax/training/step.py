"""One training step as a pure, jitted function: loss, gradient, update and finite check.

`make_loss` makes the loss of a segmenter, `init_state` the state before the first step and `make_train_step`
the step itself. All three work on plain nested dictionaries of arrays.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from spectralmoe_jax.config.model import LinearHeadConfig
from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.mask2former.loss import mask2former_loss
from spectralmoe_jax.models.linear_head import labels_to_learn, pixel_cross_entropy
from spectralmoe_jax.models.segmenter import PixelOutput, Segmenter
from spectralmoe_jax.parallel import Layout
from spectralmoe_jax.parameters import join, replaced

NEVER = -1
"""Value of `TrainState.first_bad_step` while all losses and gradients are finite."""

STATISTICS = "statistics"
"""Key under which a loss returns the next values, by path, of parameters that training carries along."""

Metrics = dict[str, Any]


class LossFunction(Protocol):
    """A loss function that the training step differentiates."""

    def __call__(
        self, trainable: Any, frozen: Any, batch: Any, key: jax.Array, step: jax.Array | int = 0
    ) -> tuple[jax.Array, Metrics]:
        """Return the loss () and metrics to log (scalars, small arrays), perhaps with `STATISTICS`.

        `key` is used by this step alone, `step` is its number.
        """
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that changes while training, as one pytree.

    Attributes:
      step: int32 (), steps done so far.
      params: the trainable parameters, plain nested dicts.
      opt_state: the optimizer's state for them.
      first_bad_step: int32 (), the first step whose loss or gradient was not finite, or `NEVER`. It stays on
        the device, so that the loop can check it rarely and still name the step.
      average: exponential moving average of `params`, a like pytree; None where it is off.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    first_bad_step: jax.Array
    average: Any = None

    @property
    def result(self) -> Any:
        """The weights that the run is evaluated and used with: the average, or else `params`."""
        return self.params if self.average is None else self.average


TrainStep = Callable[[TrainState, Any, Any, jax.Array], tuple[TrainState, Metrics]]


def make_loss(segmenter: Segmenter, config: LossConfig, steps: int = 1) -> LossFunction:
    """Make the training loss of a segmenter.

    Args:
      segmenter: read for its structure only; may be abstract.
      config: weights of the Mask2Former loss and its point sampling, and weights of classes, as numbers.
      steps: of the whole training, for heads that change while it proceeds.

    Returns:
      A function of the two dicts of `parameters.split`, a batch `{"image": (B, H, W, bands) raw pixels,
      "label": (B, H, W)}` and a key. It returns the scalar loss and its named terms: class, mask and dice
      summed over decoder outputs (for the linear head, its cross-entropy as class), and the adapter's own.
      With experts it also returns the result of `expert_usage` (L, J, E).
    """

    def loss_fn(
        trainable: Any, frozen: Any, batch: Any, key: jax.Array, step: jax.Array | int = 0
    ) -> tuple[jax.Array, Metrics]:
        """Compute the loss of one batch; see `LossFunction`."""
        # 1. forward pass
        model = join(segmenter, trainable, frozen)
        noise_key, point_key = jax.random.split(key)
        out = model(model.normalise(batch["image"]), key=noise_key, progress=step / steps)
        labels = batch["label"].astype(jnp.int32)  # (B, H, W)

        # 2. the adapter's own terms
        metrics: Metrics = {"loss_balance": out.auxiliary_loss}
        if out.experts is not None and out.experts.size:
            metrics["expert_usage"] = expert_usage(out.experts, segmenter.config.adapter.num_experts)

        # 3. segmentation loss
        if isinstance(out, PixelOutput):
            head = segmenter.config.head
            assert isinstance(head, LinearHeadConfig)  # the only one with logits of pixels
            wanted = labels_to_learn(labels, out.logits.shape[1:3], head)
            entropy = pixel_cross_entropy(out.logits, wanted, config.weight_of_each_class)
            return entropy + out.auxiliary_loss, metrics | {"loss_cls": entropy}
        loss = mask2former_loss(out.class_logits, out.masks, labels, config=config, key=point_key)
        sums = {
            name: jnp.stack([value for term, value in loss.terms.items() if term.endswith(name)]).sum()
            for name in ("loss_cls", "loss_mask", "loss_dice")
        }
        # A matching on non-finite costs would go unnoticed: make the loss NaN for the finite check to see.
        total = jnp.where(loss.bad_costs > 0, jnp.nan, loss.total) + out.auxiliary_loss
        if out.statistics is not None:
            metrics[STATISTICS] = out.statistics
        return total, metrics | sums

    return loss_fn


def make_stream_loss(segmenters: Mapping[str, Segmenter], config: LossConfig, steps: int = 1) -> LossFunction:
    """Make the training loss of a run on several sensors.

    Args:
      segmenters: a segmenter for the bands of each stream.
      config: as in `make_loss`.
      steps: likewise.

    Returns:
      A function as from `make_loss`, for batches `{stream: batch}` of one stream each and frozen weights by
      stream. It is compiled once per stream.
    """
    losses = {name: make_loss(segmenter, config, steps) for name, segmenter in segmenters.items()}

    def loss_fn(
        trainable: Any, frozen: Any, batch: Any, key: jax.Array, step: jax.Array | int = 0
    ) -> tuple[jax.Array, Metrics]:
        """Compute the loss of one stream's batch; see `LossFunction`."""
        ((name, tiles),) = batch.items()
        return losses[name](trainable, frozen[name], tiles, key, step)

    return loss_fn


def expert_usage(strongest: jax.Array, experts: int) -> jax.Array:
    """Return each expert's share of tokens, by strongest expert: (L, J, B, N) int32 -> (L, J, E) float32."""
    return jnp.mean(strongest[..., None] == jnp.arange(experts), axis=(2, 3), dtype=jnp.float32)


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    layout: Layout | None = None,
    has_average: bool = False,
) -> TrainState:
    """Make the state before the first step, with its own copy of `params`: a step donates its state.

    With a layout, every leaf is created with its own sharding and is never gathered on one device. With
    `has_average`, the state has an average, which the first step replaces by its parameters.
    """

    def copied(params: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)

    def make(params: Any) -> TrainState:
        """Copy the parameters and initialise the rest."""
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=copied(params),
            opt_state=optimizer.init(params),
            first_bad_step=jnp.full((), NEVER, jnp.int32),
            average=copied(params) if has_average else None,
        )

    if layout is None:
        # committed to its device, as a step's result is: anything else would compile the step twice
        return jax.device_put(make(params), jax.local_devices()[0])
    return jax.jit(make, out_shardings=layout.parameter_shardings(jax.eval_shape(make, params)))(params)


def accumulated(loss_fn: LossFunction, parts: int) -> Callable[..., tuple[tuple[jax.Array, Metrics], Any]]:
    """Make the function from a loss's arguments to ((loss, metrics), gradient): means over parts of a batch.

    Part k of n holds rows k, k + n, k + 2 n ...: where rows are sharded, some of every device. Each part has
    its own key. The parts are processed one after the other, so that activations of one are in memory.

    Args:
      loss_fn: the loss of a batch.
      parts: number of parts; 1 for the batch as it is.
    """
    loss_and_gradient = jax.value_and_grad(loss_fn, has_aux=True)
    if parts == 1:
        return loss_and_gradient

    def split_rows(rows: jax.Array) -> jax.Array:
        """Split the first axis: (n B, ...) -> (n, B, ...)."""
        return jnp.swapaxes(rows.reshape(-1, parts, *rows.shape[1:]), 0, 1)

    def mean_of_parts(
        trainable: Any, frozen: Any, batch: Any, key: jax.Array, step: jax.Array | int
    ) -> tuple[tuple[jax.Array, Metrics], Any]:
        """Compute the means over the parts of a batch."""

        def add(total: Any, part: tuple[Any, jax.Array]) -> tuple[Any, tuple[jax.Array, Metrics]]:
            """Add the gradient of one part."""
            found, gradient = loss_and_gradient(trainable, frozen, *part, step)
            return jax.tree.map(jnp.add, total, gradient), found

        zero = jax.tree.map(jnp.zeros_like, trainable)
        keys = jax.random.split(key, parts)
        total, found = jax.lax.scan(add, zero, (jax.tree.map(split_rows, batch), keys))
        mean = jax.tree.map(lambda values: values.mean(axis=0), found)
        return mean, jax.tree.map(lambda values: values / parts, total)

    return mean_of_parts


def make_average(decay: float) -> Callable[[Any, Any, jax.Array], Any]:
    """Make the function (average, params, step n) -> average of the parameters after the steps 1 to n.

    Those of step i have the weight decay ** (n - i), divided by the sum of the weights: the parameters before
    the first step have none. That is optax's debiased moving average, as a recursion on the result itself.
    """
    rate = math.log(decay)

    def next_average(average: Any, params: Any, step: jax.Array) -> Any:
        """Move the average towards the parameters by (1 - decay) / (1 - decay ** n)."""
        share = jnp.float32(math.expm1(rate)) / jnp.expm1(rate * step.astype(jnp.float32))
        return optax.incremental_update(params, average, share)

    return next_average


def make_train_step(
    loss_fn: LossFunction,
    optimizer: optax.GradientTransformation,
    layout: Layout | None = None,
    *,
    accumulate: int = 1,
    ema: float | None = None,
) -> TrainStep:
    """Make the jitted `train_step(state, frozen, batch, key) -> (state, metrics)`.

    The state is donated: it must not be used after the call. Frozen weights are neither donated nor returned,
    and no gradient is taken for them. `key` is the same for every step; step n draws from `fold_in(key, n)`,
    so a run resumed at step n draws what an uninterrupted one would have drawn.

    Args:
      loss_fn: the loss of a batch.
      optimizer: from `make_optimizer`.
      layout: mesh that the state is sharded over, before and after a step; None for one device. A batch is
        the global one, of all hosts together.
      accumulate: number of parts that a batch is processed in; see `accumulated`.
      ema: decay of the state's average; None if it has none.

    Returns:
      The step. Its metrics are those of `loss_fn`, with `loss` () and `grad_norm` ().
    """
    loss_and_gradient = accumulated(loss_fn, accumulate)
    next_average = None if ema is None else make_average(ema)

    def train_step(state: TrainState, frozen: Any, batch: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Do one step, on one device or under the active layout."""
        # 1. loss and gradient, of the trainable parameters alone
        step_key = jax.random.fold_in(key, state.step)
        (loss, metrics), grads = loss_and_gradient(state.params, frozen, batch, step_key, state.step)

        # 2. update; statistics have no gradient, and are those of the global batch
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if statistics := metrics.pop(STATISTICS, None):
            params = replaced(params, statistics)

        # 3. average of the weights
        average = None if next_average is None else next_average(state.average, params, state.step + 1)

        # 4. finite check: remember the first bad step; the loop reads it before it logs, evaluates or saves
        grad_norm = optax.tree.norm(grads)
        is_bad = ~(jnp.isfinite(loss) & jnp.isfinite(grad_norm))
        is_first_bad = (state.first_bad_step == NEVER) & is_bad
        first_bad_step = jnp.where(is_first_bad, state.step, state.first_bad_step)

        new_state = TrainState(state.step + 1, params, opt_state, first_bad_step, average)
        return new_state, {**metrics, "loss": loss, "grad_norm": grad_norm}

    if layout is None:
        return jax.jit(train_step, donate_argnums=0)

    def spread_step(state: TrainState, frozen: Any, batch: Any, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Do one step under a layout, and keep the state's sharding."""
        with layout.active():
            new_state, metrics = train_step(state, frozen, batch, key)
        # metrics are replicated on every device
        shardings = layout.parameter_shardings(new_state)
        replicated = jax.tree.map(lambda _: layout.sharding(), metrics)
        return jax.lax.with_sharding_constraint((new_state, metrics), (shardings, replicated))

    return jax.jit(spread_step, donate_argnums=0)
