"""The training loop: prefetch, step, log, evaluate, save, in an order that makes a run resumable at any step.

The order of operations in one pass of the loop, and its reasons:

1. Step. The batch is on the device already: a thread draws and copies it while earlier steps run. The call
   may return before the device is done, so nothing after it reads the state unless it has to.
2. Stop? A SIGTERM counts only between two steps, and all hosts stop after the same one.
3. Log, every `log_every` steps. Reading metrics waits for the device, hence not after every step.
4. Evaluate, every `evaluate_every` steps, before saving: the checkpoint gets its score, which decides the
   best, and whether the run is complete before its last step (`patience`). All hosts have the same score. If
   the evaluation fails, the state is saved without a score first, so that no step is lost.
5. Save, every `checkpoint_every` steps, after an evaluation, after the last step and on a stop.

Stages 3 to 5 check first that all losses and gradients so far were finite: a diverged state is never
evaluated or saved. The check is cheap because the step records the first bad step on the device.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Self

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

from spectralmoe_jax.adapters.base import Rule
from spectralmoe_jax.checkpoints.held_out import NOTHING_YET
from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.config.schema import StatedValues, TrainConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.parallel import Layout
from spectralmoe_jax.read_ahead import read_ahead
from spectralmoe_jax.training.logging import Heartbeat, MetricsLog, ProgressReport
from spectralmoe_jax.training.optimizer import make_optimizer, make_schedule
from spectralmoe_jax.training.step import NEVER, LossFunction, TrainState, init_state, make_train_step
from spectralmoe_jax.training.trackers import Trackers

_BATCHES_AHEAD = 2


class TrainingDiverged(UserError):
    """A loss or gradient is not finite; the message names the step and the last good checkpoint."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that `fit` needs of a run: model, loss, data and evaluation.

    Attributes:
      trainable: parameters to start from, plain nested dicts of arrays.
      frozen: other arrays that the loss needs; never copied, stored or updated.
      loss_fn: see `LossFunction`.
      make_batches: function from a first step to an endless iterator of batches; batch n does not depend on
        the first step.
      batch_size: images per batch, on all hosts together; a step takes one batch, in `accumulate` parts.
      evaluate: function from trainable parameters to named scores; None for no evaluation.
      prepare: function from `trainable` to what a new run starts from, not called on resuming; None for
        `trainable` itself.
      selection_metric: the score that decides which checkpoint is best, higher is better.
      rules: parameter groups of the optimizer that come before those of the configuration.
      name_pixels: function from a step to what is wrong with the pixels of its batch, empty if nothing is;
        called after a loss was not finite. None for nothing.
      layout: mesh that `trainable`, `frozen` and batches are sharded over; None for one device. With several
        hosts, each of them runs `fit`, and `make_batches` gives each its own rows.
      values: how the images of each stream store their values, which the configuration of the run keeps.
    """

    trainable: Any
    frozen: Any
    loss_fn: LossFunction
    make_batches: Callable[[int], Iterator[Any]]
    batch_size: int
    evaluate: Callable[[Any], Mapping[str, float]] | None = None
    prepare: Callable[[Any], Any] | None = None
    selection_metric: str = "miou"
    rules: tuple[Rule, ...] = ()
    layout: Layout | None = None
    name_pixels: Callable[[int], str] | None = None
    values: Mapping[str, StatedValues] = dataclasses.field(default_factory=dict)


def fit(
    experiment: Experiment,
    settings: TrainConfig,
    key: jax.Array,
    store: CheckpointStore,
    workdir: Path,
    trackers: Trackers | None = None,
    on_start: Callable[[], None] = lambda: None,
) -> int:
    """Train from the last checkpoint, or from the start, to `settings.steps` or the end of `patience`.

    The parameters after step n depend on the experiment, the settings and the key alone, not on how often the
    run was interrupted. On SIGTERM to any host the state is saved and the function returns early, on all
    hosts after the same step.

    Args:
      experiment: model, loss, data and evaluation.
      settings: optimizer, number of steps and intervals.
      key: the root of all randomness in the loss.
      store: checkpoints of the run, read from and written to.
      workdir: existing folder for the metrics.
      trackers: further readers of the metrics, not opened yet; None for none.
      on_start: called once nothing refuses the run any more, before anything is written to its folder.

    Returns:
      The number of steps done.

    Raises:
      TrainingDiverged: a loss or gradient is not finite; such a state is never saved.
      Exception: whatever an evaluation raises, once the state before it is saved without a score.
      UserError: the last checkpoint is of another configuration, or a tracker cannot be opened.
    """
    trackers = Trackers((), workdir) if trackers is None else trackers
    layout = experiment.layout
    optimizer = make_optimizer(settings, experiment.trainable, experiment.rules)
    state = _restore_or_init(experiment, optimizer, store, has_average=settings.ema is not None)
    train_step = make_train_step(
        experiment.loss_fn, optimizer, layout, accumulate=settings.accumulate, ema=settings.ema
    )
    place = jax.device_put if layout is None else layout.place_batch
    key = key if layout is None else layout.place(key)
    silent = jax.process_index() != 0
    start = int(state.step)
    held_out = store.held_out(start) if start else NOTHING_YET
    learning_rate = jax.jit(make_schedule(settings))
    learning_rate(start)  # compiled before the first step, not between two steps

    with (
        StopRequest() as stop,
        _started(trackers, not held_out.is_complete(start, settings), on_start),
        MetricsLog(workdir, start, silent=silent, trackers=trackers) as log,
        ProgressReport(start, settings.steps, experiment.batch_size, silent=silent) as progress,
        Heartbeat(workdir) as heartbeat,
        contextlib.closing(
            prefetch(experiment.make_batches(start), place=place, should_stop=lambda: stop.requested)
        ) as batches,
    ):
        if start:
            progress.print(f"resumed at step {start}")
        step = start
        stopping = False
        while not held_out.is_complete(step, settings) and not stopping:
            # 1. step
            batch = next(batches, None)
            if batch is None:  # stopped while it waited
                if step > start:
                    _require_finite(state, store, experiment.name_pixels)
                    store.save(step, state.params, state.opt_state, None, held_out, state.average)
                stopping = True
                break
            state, metrics = train_step(state, experiment.frozen, batch, key)
            step += 1
            is_last = step == settings.steps
            progress.advance(step)
            heartbeat.beat(step)

            # 2. stop?
            stopping = stop.after(step)

            # 3. log
            if is_last or step % settings.log_every == 0:
                _require_finite(state, store, experiment.name_pixels)
                found = jax.device_get(metrics)
                values = {name: float(value) for name, value in found.items() if not np.ndim(value)}
                rates = {"learning_rate": float(learning_rate(step - 1))}
                rates["images_per_second"] = progress.report(step, values)
                log.write(step, "train", values | rates)
                log.write_arrays(step, "experts", {k: v for k, v in found.items() if np.ndim(v)})

            # 4. evaluate
            scores = None
            if experiment.evaluate and (is_last or step % settings.evaluate_every == 0):
                _require_finite(state, store, experiment.name_pixels)
                try:
                    scores = experiment.evaluate(state.result)
                except Exception:
                    store.save(step, state.params, state.opt_state, None, held_out, state.average)
                    store.wait()
                    raise
                held_out = held_out.after(float(scores.get(experiment.selection_metric, math.nan)))
                log.write(step, "evaluate", scores)
                shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
                progress.print(f"step {step}: {shown}")
                progress.restart_clock(step)

            # 5. save
            if scores is not None or is_last or step % settings.checkpoint_every == 0 or stopping:
                _require_finite(state, store, experiment.name_pixels)
                store.save(step, state.params, state.opt_state, scores, held_out, state.average)

        store.wait()
        best_scores = None if store.best is None else store.metrics_of(store.best)
        trackers.conclude(store.best, best_scores, held_out.is_complete(step, settings))
        if held_out.is_complete(step, settings):
            if step < settings.steps:
                better = f"a better held-out {experiment.selection_metric}"
                progress.print(f"complete at step {step}: {held_out.waited} evaluations without {better}")
        elif stopping:
            where = f"saved at step {step}; the same command resumes there" if step else "no step is done yet"
            progress.print(f"stop requested: {where}")
    return step


@contextlib.contextmanager
def _started(trackers: Trackers, goes_on: bool, on_start: Callable[[], None]) -> Iterator[None]:
    """Start a run, which its trackers may refuse, and end its trackers after the block."""
    with trackers:
        if goes_on:
            trackers.open()
        on_start()
        yield


def _restore_or_init(
    experiment: Experiment,
    optimizer: optax.GradientTransformation,
    store: CheckpointStore,
    has_average: bool,
) -> TrainState:
    """Return the state of the last complete checkpoint, or the one before the first step."""
    is_new = store.last is None
    prepare = experiment.prepare if is_new and experiment.prepare else lambda trainable: trainable
    state = init_state(prepare(experiment.trainable), optimizer, experiment.layout, has_average)
    if store.last is None:
        return state
    params, opt_state = store.restore(store.last, state.params, state.opt_state)
    average = store.restore_average(store.last, state.average) if has_average else None
    step = jax.device_put(np.int32(store.last), state.step.sharding)
    return dataclasses.replace(state, step=step, params=params, opt_state=opt_state, average=average)


def _require_finite(
    state: TrainState, store: CheckpointStore, name_pixels: Callable[[int], str] | None = None
) -> None:
    """Raise TrainingDiverged if any step so far had a loss or gradient that is not finite."""
    bad = int(state.first_bad_step)
    if bad == NEVER:
        return
    store.wait()
    saved = (
        "there is no checkpoint yet"
        if store.last is None
        else f"the last good checkpoint is {store.path(store.last)}"
    )
    pixels = "" if name_pixels is None else name_pixels(bad)
    if pixels:
        raise TrainingDiverged(
            f"the loss or its gradient is not finite at step {bad + 1}: {pixels}; {saved}; correct the "
            "file, or declare the value as its nodata value"
        )
    raise TrainingDiverged(
        f"the loss or its gradient is not finite at step {bad + 1}; {saved}; "
        "lower config.train.learning_rate or set config.train.clip_norm"
    )


def prefetch(
    batches: Iterator[Any],
    ahead: int = _BATCHES_AHEAD,
    place: Callable[[Any], Any] = jax.device_put,
    should_stop: Callable[[], bool] | None = None,
) -> Generator[Any]:
    """Yield batches as arrays on the device, drawn ahead of their use.

    A thread takes them from `batches` and starts their copies, so the loop waits for neither, even where the
    call of a step returns only when the step is done, as on a CPU. See `read_ahead` for errors and closing.

    Args:
      batches: pytrees of arrays.
      ahead: largest number of batches drawn ahead; at least 1.
      place: starts copying a batch to its devices.
      should_stop: asked while a batch is waited for; the generator ends early where it says so.
    """
    return read_ahead(batches, ahead, place, should_stop)


class StopRequest:
    """SIGTERM as a flag that is read between two steps, so that no step is interrupted.

    With several hosts, a signal to one reaches all, and they agree on the step to stop after.
    """

    requested = False

    def after(self, step: int) -> bool:
        """Return whether to stop after this step."""
        if jax.process_count() == 1:
            return self.requested
        return multihost_utils.reached_preemption_sync_point(step)

    def __enter__(self) -> Self:
        # With several hosts JAX's own service handles the signal.
        is_main = threading.current_thread() is threading.main_thread()
        self._listens = is_main and jax.process_count() == 1
        if self._listens:
            self._previous = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._previous)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True
