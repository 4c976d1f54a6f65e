"""The training loop."""

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax

from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.configuration import require
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.training.metrics import MetricsLog
from spectralmoe_jax.training.optimizer import OptimizerSettings, make_optimizer, make_schedule
from spectralmoe_jax.training.prefetch import prefetch
from spectralmoe_jax.training.progress import ProgressReport
from spectralmoe_jax.training.state import NEVER, TrainState, init_state
from spectralmoe_jax.training.step import LossFunction, make_train_step


class TrainingDiverged(UserError):
    """Loss or gradient stopped being finite; the message names the step and the last good checkpoint."""


@dataclasses.dataclass(frozen=True)
class TrainSettings(OptimizerSettings):
    """`config.train`: the optimizer's settings, images a step of all hosts together, and how often things
    happen, in steps."""

    batch_size: int = 8
    log_every: int = 50
    evaluate_every: int = 1000
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "log_every", "evaluate_every", "checkpoint_every"):
            require(getattr(self, name) > 0, f"config.train.{name}", "has to be at least 1")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is trained, on what, and how it is judged.

    Attributes:
      trainable: parameters to start from, plain nested dicts of arrays.
      frozen: what the loss needs besides them; never copied, stored or updated.
      loss_fn: see `LossFunction`.
      make_batches: from the step to start at to an endless iterator of batches;
        batch n is the same whatever step the iterator started at.
      batch_size: images per batch.
      evaluate: from trainable parameters to named scores, or None for no evaluation.
      selection_metric: the score that decides which checkpoint is best, higher is better.
    """

    trainable: Any
    frozen: Any
    loss_fn: LossFunction
    make_batches: Callable[[int], Iterator[Any]]
    batch_size: int
    evaluate: Callable[[Any], Mapping[str, float]] | None = None
    selection_metric: str = "miou"


def fit(
    experiment: Experiment, settings: TrainSettings, key: jax.Array, store: CheckpointStore, workdir: Path
) -> int:
    """Trains from the last checkpoint, or from the start, to `settings.steps`.

    The parameters after step n depend on the experiment, the settings and the key
    alone, not on how often the run was interrupted. On SIGTERM the state is saved
    and the function returns early.

    Args:
      key: the root of all randomness in the loss.
      store: where checkpoints go to and come from.
      workdir: existing folder for the metrics.

    Returns:
      The number of steps done.

    Raises:
      TrainingDiverged: a loss or gradient is not finite; such a state is never saved.
      Exception: of an evaluation, once the state before it is saved without a score.
      UserError: the last checkpoint is of another configuration.
    """
    optimizer = make_optimizer(settings, experiment.trainable)
    state = restore_or_init(experiment, optimizer, store)
    train_step = make_train_step(experiment.loss_fn, optimizer)
    learning_rate = make_schedule(settings)
    start = int(state.step)

    with (
        StopRequest() as stop,
        MetricsLog(workdir, start) as log,
        ProgressReport(start, settings.steps, experiment.batch_size) as progress,
        contextlib.closing(prefetch(experiment.make_batches(start))) as batches,
    ):
        if start:
            progress.say(f"resumed at step {start}")
        step = start
        while step < settings.steps and not stop.requested:
            state, metrics = train_step(state, experiment.frozen, next(batches), key)
            step += 1
            is_last = step == settings.steps
            progress.advance(step)

            if is_last or step % settings.log_every == 0:
                require_finite(state, store)
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                rates = {"learning_rate": float(learning_rate(step - 1))}
                rates["images_per_second"] = progress.report(step, values)
                log.write(step, "train", values | rates)

            scores = None
            if experiment.evaluate and (is_last or step % settings.evaluate_every == 0):
                require_finite(state, store)
                try:
                    scores = experiment.evaluate(state.params)
                except Exception:
                    store.save(step, state.params, state.opt_state)  # a score that fails costs no steps
                    store.wait()
                    raise
                log.write(step, "evaluate", scores)
                progress.say(
                    f"step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
                )
                progress.resume(step)

            if scores is not None or is_last or step % settings.checkpoint_every == 0 or stop.requested:
                require_finite(state, store)
                store.save(step, state.params, state.opt_state, scores)
        store.wait()
        if stop.requested and step < settings.steps:
            progress.say(f"asked to stop: saved at step {step}; the same command resumes there")
    return step


def restore_or_init(
    experiment: Experiment, optimizer: optax.GradientTransformation, store: CheckpointStore
) -> TrainState:
    """The state of the last complete checkpoint, or the one before the first step."""
    state = init_state(experiment.trainable, optimizer)
    if store.last is None:
        return state
    params, opt_state = store.restore(store.last, state.params, state.opt_state)
    step = jnp.asarray(store.last, jnp.int32)
    return dataclasses.replace(state, step=step, params=params, opt_state=opt_state)


def require_finite(state: TrainState, store: CheckpointStore) -> None:
    """Raises TrainingDiverged if any step so far had a loss or gradient that is not finite."""
    bad = int(state.first_bad_step)
    if bad == NEVER:
        return
    store.wait()
    saved = (
        "there is no checkpoint yet"
        if store.last is None
        else f"the last good checkpoint is {store.path(store.last)}"
    )
    raise TrainingDiverged(
        f"the loss or its gradient is not finite at step {bad + 1}; {saved}; "
        "lower config.train.learning_rate or set config.train.clip_norm"
    )


class StopRequest:
    """Turns SIGTERM into a flag while the context is open, so that a step is never cut in two."""

    requested = False

    def __enter__(self) -> Self:
        self._is_main = threading.current_thread() is threading.main_thread()
        if self._is_main:
            self._previous = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_main:
            signal.signal(signal.SIGTERM, self._previous)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True
