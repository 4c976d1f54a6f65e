"""A regression of a few parameters in place of a model. Run as a program, it trains and may kill itself.

usage: fake_experiment.py WORKDIR [--kill-at-step N] [--kill-after SECONDS]
"""

import argparse
import os
import signal
import sys
import threading
import time

if __name__ == "__main__":
    sys.modules["torch"] = None  # tensorboardX would import it, which takes longer than the training

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.training.loop import Experiment
from spectralmoe_jax.training.train import run_experiment

RULES = ((r"bias$", 0.0, 1.0), (r"kernel$", 1.0, 1.0))


class Tiny(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.second = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))


def make_config(model=None, **train):
    """A configuration whose `train` is the stand-in's; its model, `model.KEY` apart, is only compared."""
    settings = {"steps": 30, "learning_rate": 0.01, "rules": RULES, "log_every": 1}
    settings |= {"evaluate_every": 7, "checkpoint_every": 2, "clip_norm": 1.0, "warmup_steps": 2}
    values = {f"model.{key}": value for key, value in (model or {}).items()}
    return load_config("configs/dubai.py").replaced({"seed": 3, "train": settings | train, **values})


def make_experiment(on_batch=lambda step: None, evaluate=None):
    """Regression with noise from the step's key; `on_batch(step)` runs before batch `step` is handed out."""
    graph, trainable = nnx.split(Tiny(nnx.Rngs(0)))
    trainable = nnx.to_pure_dict(trainable)

    def loss_fn(trainable, frozen, batch, key, step):
        model = nnx.merge(graph, trainable)
        noise = 0.1 * jax.random.normal(key, batch["x"].shape)
        error = model(batch["x"] + noise) * frozen["scale"] - batch["y"]
        return jnp.mean(error**2), {"error": jnp.abs(error).mean()}

    def make_batches(start):
        step = start
        while True:
            on_batch(step)
            x = np.random.default_rng(step).normal(size=(4, 3)).astype(np.float32)
            yield {"x": x, "y": x[:, :2] ** 2}
            step += 1

    def bias_as_score(params):
        return {"miou": float(jnp.sum(params["first"]["bias"]))}

    return Experiment(
        trainable=trainable,
        frozen={"scale": jnp.asarray(2.0)},
        loss_fn=loss_fn,
        make_batches=make_batches,
        batch_size=4,
        evaluate=evaluate or bias_as_score,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("--kill-at-step", type=int)
    parser.add_argument("--kill-after", type=float)
    arguments = parser.parse_args()

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def on_batch(step):
        time.sleep(0.005)
        if step == arguments.kill_at_step:
            die()
        if step == 3 and arguments.kill_after is not None:
            threading.Timer(arguments.kill_after, die).start()

    run_experiment(make_experiment(on_batch), make_config(), arguments.workdir)


if __name__ == "__main__":
    main()
