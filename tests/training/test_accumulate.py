"""A step over several batches, one after the other, against one step over all of their images."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.training.step import STATISTICS, init_state, make_train_step
from spectralmoe_jax.training.train import build_experiment, train
from tests.tiny_run import SIZES


def one_step(loss_fn, params, batch, accumulate, key=7):
    optimizer = optax.sgd(0.1)
    step = make_train_step(loss_fn, optimizer, accumulate=accumulate)
    return step(init_state(params, optimizer), {}, batch, jax.random.key(key))


@pytest.mark.parametrize("accumulate", [1, 2, 3, 6])
def test_a_mean_over_images_has_the_gradient_of_the_whole_batch(accumulate):
    """Least squares, whose gradient is 2 X'(Xw - y) / n."""
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(12, 3)), rng.normal(size=12), rng.normal(size=3)

    def loss_fn(params, frozen, batch, key, step):
        errors = batch["x"] @ params["w"] - batch["y"]
        return jnp.mean(errors**2), {"error": jnp.abs(errors).mean()}

    with jax.enable_x64(True):
        state, metrics = one_step(loss_fn, {"w": jnp.asarray(w)}, {"x": x, "y": y}, accumulate)
    errors = x @ w - y
    gradient = 2 * x.T @ errors / 12
    np.testing.assert_allclose(state.params["w"], w - 0.1 * gradient, rtol=1e-12)
    assert float(metrics["loss"]) == pytest.approx(np.mean(errors**2), rel=1e-12)
    assert float(metrics["error"]) == pytest.approx(np.abs(errors).mean(), rel=1e-12)
    assert float(metrics["grad_norm"]) == pytest.approx(np.linalg.norm(gradient), rel=1e-12)
    assert int(state.step) == 1


def test_every_batch_draws_its_own_noise():
    """The mean of a thousand normal numbers is within five deviations; one number of this key is not."""

    def loss_fn(params, frozen, batch, key, step):
        return params["w"] * jax.random.normal(key), {}

    given = {"w": jnp.zeros(())}, {"x": jnp.zeros((1000, 1))}
    whole, averaged = (one_step(loss_fn, *given, accumulate)[1]["grad_norm"] for accumulate in (1, 1000))
    assert averaged < 5 / np.sqrt(1000) < whole


def test_statistics_that_training_carries_are_means_over_the_batches():
    def loss_fn(params, frozen, batch, key, step):
        return params["w"], {STATISTICS: {("mean",): batch["x"].mean(axis=0)}}

    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    params = {"w": jnp.zeros(()), "mean": jnp.zeros(4)}
    state, metrics = one_step(loss_fn, params, {"x": x}, 3)
    np.testing.assert_allclose(state.params["mean"], x.mean(axis=0), rtol=1e-5, atol=1e-6)
    assert metrics.keys() == {"loss", "grad_norm"}


def test_one_bad_batch_makes_the_step_bad():
    def loss_fn(params, frozen, batch, key, step):
        return params["w"] * batch["x"].mean(), {}

    x = np.ones((6, 1), np.float32)
    x[4] = np.inf
    assert int(one_step(loss_fn, {"w": jnp.ones(())}, {"x": x}, 3)[0].first_bad_step) == 0


def config_of(**train):
    other = ("model.head", "model.adapter", "train.", "loss.")
    given = [value for value in SIZES if not value.startswith(other)]
    given += [
        "model.head.kind=linear", "model.adapter.kind=lora", "model.dtype=float32", "data.workers=0",
        *(f"train.{key}={value}" for key, value in train.items()),
    ]  # fmt: skip
    return load_config("configs/quickstart.py", [f"--config.{value}" for value in given])


def test_the_images_of_a_step_are_those_of_one_large_batch():
    (parts, whole) = (
        next(build_experiment(config_of(steps=4, warmup_steps=0, **sizes)).make_batches(3))
        for sizes in ({"batch_size": 1, "accumulate": 3}, {"batch_size": 3})
    )
    assert parts.keys() == whole.keys()
    for name in whole:
        np.testing.assert_array_equal(parts[name], whole[name])


@pytest.mark.slow
def test_training_is_that_with_large_batches(tmp_path):
    """A linear head on fully labelled tiles: its loss is a mean over pixels, and LoRA draws no noise."""
    sizes = {"batch_size": 2, "accumulate": 3}, {"batch_size": 6}
    states = []
    for number, size in enumerate(sizes):
        workdir = tmp_path / str(number)
        config = config_of(steps=4, warmup_steps=1, log_every=1, eps=1e-3, **size)
        experiment = build_experiment(config)
        assert not any((batch["label"] == 255).any() for batch, _ in zip(
            experiment.make_batches(0), range(4), strict=False
        ))  # fmt: skip
        train(config, workdir)
        with CheckpointStore(workdir, config) as store:
            states.append(jax.device_get(store.restore_params(4, experiment.trainable)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *states)


@pytest.mark.slow
def test_the_probe_is_fitted_in_batches_of_the_given_size(capsys):
    config = config_of(steps=4, warmup_steps=0, batch_size=1, accumulate=3, head_start="probe", probe_tiles=2)
    experiment = build_experiment(config)
    experiment.prepare(experiment.trainable)
    assert "head fitted to 2 tiles" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "must"),
    [
        ("accumulate", "0", "at least 1"),
        ("accumulate", "1.5", "whole number"),
        ("ema", "1", "above 0 and below 1"),
        ("ema", "-0.5", "above 0 and below 1"),
    ],
)
def test_bad_values_are_one_line(tmp_path, capsys, key, value, must):
    given = ["--config", "configs/quickstart.py", "--workdir", str(tmp_path / "run")]
    assert main(["train", *given, f"--config.train.{key}={value}"]) == 2
    said = capsys.readouterr().err
    assert f"config.train.{key}" in said
    assert must in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()
