"""A run that is killed and restarted ends as an uninterrupted one."""

import dataclasses
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from spectralmoe_jax import read_ahead
from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.parameters import named_leaves
from spectralmoe_jax.training.optimizer import make_optimizer
from spectralmoe_jax.training.train import run_experiment, train
from tests.training import fake_experiment
from tests.training.fake_experiment import make_config, make_experiment


def final_state(workdir):
    """Everything the last checkpoint holds, as raw bytes by name."""
    return saved(make_experiment(), make_config(), workdir)


def saved(experiment, config, workdir):
    params = experiment.trainable
    opt_state = make_optimizer(config.train, params).init(params)
    with CheckpointStore(workdir, config) as store:
        state = store.restore(store.last, params, opt_state)
        return store.last, {name: np.asarray(leaf).tobytes() for name, leaf in named_leaves(state).items()}


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def without_timing(records):
    return [{name: value for name, value in r.items() if name != "images_per_second"} for r in records]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    run_experiment(make_experiment(), make_config(), workdir)
    return workdir


def test_killed_run_resumes_bit_for_bit(uninterrupted, tmp_path):
    seed = random.randrange(2**32)
    print(f"kill seed {seed}")
    draw = random.Random(seed)
    moments = [
        ["--kill-after", str(draw.uniform(0, 0.15))],
        ["--kill-at-step", str(draw.randrange(20, 30))],
        [],
    ]
    for moment in moments:
        command = [sys.executable, fake_experiment.__file__, str(tmp_path), *moment]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == (-signal.SIGKILL if moment else 0), done.stderr
        with CheckpointStore(tmp_path, make_config()) as store:
            for step in {store.last, store.best} - {None}:
                store.restore_params(step, make_experiment().trainable)

    assert final_state(tmp_path) == final_state(uninterrupted)
    assert without_timing(records(tmp_path)) == without_timing(records(uninterrupted))


def test_sigterm_saves_and_returns(uninterrupted, tmp_path):
    def terminate_at_11(step):
        if step == 11:
            signal.raise_signal(signal.SIGTERM)

    config = make_config(checkpoint_every=100, evaluate_every=100)
    result = run_experiment(make_experiment(terminate_at_11), config, tmp_path)
    assert 10 <= result["step"] < 30  # a thread draws batch 11 while batch 9 or a later one is trained on
    with CheckpointStore(tmp_path, config) as store:
        assert store.last == result["step"]
    run_experiment(make_experiment(), config, tmp_path)
    assert final_state(tmp_path) == final_state(uninterrupted)


def test_sigterm_saves_what_is_done_while_a_batch_does_not_come(uninterrupted, tmp_path, monkeypatch):
    never = threading.Event()

    def stuck_at_11(step):
        if step == 11:
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
            never.wait(60)

    monkeypatch.setattr(read_ahead, "_TIME_TO_CLOSE", 0.1)
    config = make_config(checkpoint_every=100, evaluate_every=100)
    assert run_experiment(make_experiment(stuck_at_11), config, tmp_path)["step"] == 11
    never.set()
    with CheckpointStore(tmp_path, config) as store:
        assert store.last == 11
    run_experiment(make_experiment(), config, tmp_path)
    assert final_state(tmp_path) == final_state(uninterrupted)


def test_metrics_have_one_record_per_step_and_kind_after_a_resume(tmp_path):
    class Interrupted(Exception):
        pass

    def interrupt_at_9(step):
        if step == 9:
            raise Interrupted

    config = make_config(checkpoint_every=5)
    with pytest.raises(Interrupted):
        run_experiment(make_experiment(interrupt_at_9), config, tmp_path)
    assert max(record["step"] for record in records(tmp_path)) == 9
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "ki')
    run_experiment(make_experiment(), config, tmp_path)

    kinds = [(record["kind"], record["step"]) for record in records(tmp_path)]
    assert [step for kind, step in kinds if kind == "train"] == list(range(1, 31))
    assert [step for kind, step in kinds if kind == "evaluate"] == [7, 14, 21, 28, 30]
    assert not list(tmp_path.glob(".metrics*"))


@pytest.fixture
def no_file_larger():
    """Makes the system refuse to write more than so many bytes to a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def with_ballast(experiment):
    """The experiment with a megabyte more to save, which nothing compresses."""
    ballast = jax.random.normal(jax.random.key(0), (512, 512))

    def loss_fn(trainable, *rest):
        return experiment.loss_fn(
            {name: part for name, part in trainable.items() if name != "ballast"}, *rest
        )

    trainable = experiment.trainable | {"ballast": {"kernel": ballast}}
    return dataclasses.replace(experiment, trainable=trainable, loss_fn=loss_fn)


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(tmp_path, no_file_larger, capfd):
    folder = tmp_path / "checkpoints"

    def full_at_7(step):  # step 8, which is saved, waits for this batch
        if step == 7:
            while not (folder / "4").exists():
                time.sleep(0.01)
            no_file_larger(200_000)

    config = make_config(checkpoint_every=4, evaluate_every=100)
    with pytest.raises(UserError) as told:
        run_experiment(with_ballast(make_experiment(full_at_7)), config, tmp_path)
    reason = (
        f"checkpoint {folder / '8'} cannot be written: File too large; the last good one is {folder / '4'}"
    )
    assert reason in str(told.value)
    assert "ERROR" not in "".join(capfd.readouterr())  # of the threads that write
    assert [place.name for place in folder.iterdir()] == ["4"]

    no_file_larger(resource.RLIM_INFINITY)
    experiment = with_ballast(make_experiment())
    run_experiment(experiment, config, tmp_path)
    run_experiment(experiment, config, tmp_path / "undisturbed")
    assert saved(experiment, config, tmp_path) == saved(experiment, config, tmp_path / "undisturbed")


def test_a_full_disk_names_the_file_of_metrics(tmp_path, no_file_larger):
    """`metrics.jsonl` or the events of TensorBoard, whichever reaches the limit first."""

    def full_at_9(step):
        if step == 9:
            no_file_larger((tmp_path / "metrics.jsonl").stat().st_size + 10)

    config = make_config(checkpoint_every=100, evaluate_every=100)
    with pytest.raises(OSError, match="File too large") as told:
        run_experiment(make_experiment(full_at_9), config, tmp_path)
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert told.value.filename in (str(tmp_path / "metrics.jsonl"), str(events))


def test_finished_run_does_nothing(uninterrupted):
    def no_batch(step):
        raise AssertionError("a finished run asked for a batch")

    before = records(uninterrupted)
    result = run_experiment(make_experiment(no_batch), make_config(), uninterrupted)
    assert result["step"] == 30
    assert records(uninterrupted) == before


def test_another_model_is_rejected_by_key(uninterrupted):
    config = make_config(model={"visual.width": 96})
    before = (uninterrupted / "config.json").read_bytes()
    with pytest.raises(UserError, match=r"config\.model\.visual\.width is 192 there, 96 here"):
        train(config, uninterrupted)
    with (
        CheckpointStore(uninterrupted, config) as store,
        pytest.raises(UserError, match=r"config\.model\.visual\.width"),
    ):
        store.restore_params(store.last, make_experiment().trainable)
    assert (uninterrupted / "config.json").read_bytes() == before


def test_every_leaf_must_be_filled(uninterrupted):
    params = make_experiment().trainable
    surplus = params | {"third": {"kernel": np.zeros((2, 2), np.float32)}}
    missing = {"first": params["first"]}
    other = params | {"second": {"kernel": np.zeros((8, 5), np.float32), "bias": params["second"]["bias"]}}
    with CheckpointStore(uninterrupted, make_config()) as store:
        with pytest.raises(UserError, match="misses third/kernel"):
            store.restore_params(store.last, surplus)
        with pytest.raises(UserError, match="has unknown second/bias, second/kernel"):
            store.restore_params(store.last, missing)
        with pytest.raises(UserError, match="another shape of second/kernel"):
            store.restore_params(store.last, other)


def test_precision_may_differ_from_the_checkpoint(uninterrupted):
    config = make_config(model={"dtype": "bfloat16"})
    with CheckpointStore(uninterrupted, config) as store:
        params = store.restore_params(store.last, jax.eval_shape(lambda: make_experiment().trainable))
    assert named_leaves(params).keys() == named_leaves(make_experiment().trainable).keys()
