"""Overhead of the training loop over its step: logging, prefetch, metrics and heartbeat.

The real loop runs a step that sleeps in place of the model. A bare loop over the same jitted step gives the
cost of calling a step by itself. On a CPU a call returns when the step is done, so nothing hides behind it;
an accelerator computes while the host does all this. Batches of the published size, 8 x 512 x 512 pixels of 4
bands, are in memory.

  python benchmarks/host_overhead.py
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.schema import TrainConfig
from spectralmoe_jax.training.loop import Experiment, fit
from spectralmoe_jax.training.optimizer import make_optimizer
from spectralmoe_jax.training.step import Metrics, init_state, make_train_step

BATCH, SIDE, BANDS = 8, 512, 4
WARM = 10  # the first steps compile and start threads
_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "fbp_cross_sensor.py"  # of the checkpoint


class SleepingStep:
    """A loss that takes `seconds` of the device and none of the processor, and records when it ran."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.spans: list[tuple[float, float]] = []

    def _sleep(self, pixel: Any) -> np.ndarray:
        start = time.perf_counter()
        time.sleep(self.seconds)
        self.spans.append((start, time.perf_counter()))
        return np.zeros((), np.float32)

    def __call__(
        self, trainable: Any, frozen: Any, batch: Any, key: jax.Array, step: jax.Array | int = 0
    ) -> tuple[jax.Array, Metrics]:
        """Sleep, and return a loss with as many metrics as the published one."""
        pixel = jax.lax.stop_gradient(batch["image"][0, 0, 0, 0])  # waits for the batch
        waited = jax.pure_callback(self._sleep, jax.ShapeDtypeStruct((), jnp.float32), pixel)
        loss = jnp.sum(trainable["head"]["kernel"] ** 2) + waited
        return loss, {f"term_{i}": loss for i in range(31)}

    def idle(self) -> float:
        """Return the share of the time after the warm-up in which no step was running."""
        spans = self.spans[WARM:]
        busy = sum(end - start for start, end in spans[:-1])
        return 1 - busy / (spans[-1][0] - spans[0][0])


def batches() -> Iterator[dict[str, np.ndarray]]:
    """Yield batches endlessly."""
    image = np.random.default_rng(0).integers(0, 255, (4, BATCH, SIDE, SIDE, BANDS), np.uint8)
    return itertools.cycle([{"image": one, "label": one[..., 0] % 24} for one in image])


def parameters() -> dict[str, Any]:
    """Make trainable parameters that cost nothing."""
    return {"head": {"kernel": jnp.ones((64, 64))}}


def bare_loop(step: SleepingStep, settings: TrainConfig) -> None:
    """Call the jitted step again and again with one batch."""
    params = parameters()
    optimizer = make_optimizer(settings, params)
    train_step = make_train_step(step, optimizer)
    state, batch, key = init_state(params, optimizer), jax.device_put(next(batches())), jax.random.key(0)
    for _ in range(settings.steps):
        state, _ = train_step(state, {}, batch, key)
    jax.block_until_ready(state)


def real_loop(step: SleepingStep, settings: TrainConfig) -> None:
    """Run `fit`, which logs, prefetches and saves at the end."""
    experiment = Experiment(
        trainable=parameters(),
        frozen={},
        loss_fn=step,
        make_batches=lambda start: batches(),
        batch_size=BATCH,
    )
    config = load_config(str(_CONFIG))
    with tempfile.TemporaryDirectory() as folder, CheckpointStore(folder, config) as store:
        fit(experiment, settings, jax.random.key(0), store, Path(folder))


def main() -> None:
    """Print the share of both loops' time in which no step ran."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--milliseconds", type=float, default=100, help="duration of a step")
    parser.add_argument("--steps", type=int, default=210)
    parser.add_argument("--log-every", type=int, default=50, help="50 is the published benchmarks' setting")
    arguments = parser.parse_args()
    if arguments.steps < 2 * WARM:
        parser.error(f"--steps must be at least {2 * WARM}")
    settings = TrainConfig(
        steps=arguments.steps,
        batch_size=BATCH,
        log_every=arguments.log_every,
        evaluate_every=arguments.steps,
        checkpoint_every=arguments.steps,
    )
    idle = {}
    for name, loop in (("bare", bare_loop), ("real", real_loop)):
        step = SleepingStep(arguments.milliseconds / 1000)
        loop(step, settings)
        idle[name] = 100 * step.idle()
    print(f"\n{jax.default_backend()}, jax {jax.__version__}, steps of {arguments.milliseconds:g} ms")
    print(f"no step was running in {idle['real']:.2f} % of the time, and {idle['bare']:.2f} % in a bare loop")
    print(f"the loop adds {idle['real'] - idle['bare']:.2f} %")


if __name__ == "__main__":
    main()
