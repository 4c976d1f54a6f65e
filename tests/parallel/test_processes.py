"""Runs of several processes: the same numbers as one process, also after kills and restarts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.config.stored import read_run_config
from spectralmoe_jax.models.build import abstract_segmenter, segmenter_config
from spectralmoe_jax.parameters import named_leaves, split
from tests.tiny_run import SIZES

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STEPS = 20
TINY = [*SIZES, f"train.steps={STEPS}", "train.evaluate_every=10", "train.checkpoint_every=4"]


LINEAR = [
    *(value for value in TINY if not value.startswith("model.head")), "model.head.kind=linear",
    "train.head_start=probe", "train.probe_tiles=5", "train.head_first_steps=3",
    "train.learning_rate=1e-9", "train.evaluate_every=4", "train.patience=2",
]  # fmt: skip


def start(workdir, processes, of_process=lambda number: (), values=TINY):
    """A training run of two devices in so many processes; `of_process` gives further overrides of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    devices = f" --xla_force_host_platform_device_count={2 // processes}"
    environment = os.environ | {
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "") + devices,
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "spectralmoe_jax", "train", "--config", "configs/quickstart.py"]
    command += [f"--config.{value}" for value in values] + ["--workdir", str(workdir)]
    together = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(processes), "--start-timeout", "120"]
    return [
        subprocess.Popen(
            [*command, *(f"--config.{value}" for value in of_process(number)),
             *([*together, "--process-id", str(number)] if processes > 1 else [])],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(processes)
    ]  # fmt: skip


def ended(processes):
    """Their exit statuses, and what they said."""
    said = [process.communicate(timeout=300)[0] for process in processes]
    return [process.returncode for process in processes], said


def at_step(workdir, step, processes):
    """Returns once a step was logged."""
    log = workdir / "metrics.jsonl"
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.01)


def parameters(workdir, last=STEPS):
    config = read_run_config(workdir)
    trainable, _ = split(abstract_segmenter(segmenter_config(config)))
    with CheckpointStore(workdir, config) as store:
        assert store.last == last
        restored = store.restore_params(store.last, trainable)
    return {name: np.asarray(leaf) for name, leaf in named_leaves(restored).items()}


def losses(workdir):
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "train"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process on two devices."""
    workdir = tmp_path_factory.mktemp("alone")
    statuses, said = ended(start(workdir, 1))
    assert statuses == [0], said
    return workdir


def require_same(workdir, alone):
    ours, theirs = parameters(workdir), parameters(alone)
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)


def test_two_processes_equal_one(alone, tmp_path):
    statuses, said = ended(start(tmp_path, 2))
    assert statuses == [0, 0], said
    assert "process 1 of 2: 1 of 2 devices" in said[1]
    assert losses(tmp_path) == losses(alone)
    require_same(tmp_path, alone)


def test_one_of_two_is_killed_and_both_restart(alone, tmp_path):
    processes = start(tmp_path, 2)
    at_step(tmp_path, 10, processes)
    processes[1].kill()
    statuses, said = ended(processes)
    assert statuses[1] == -signal.SIGKILL
    assert statuses[0] != 0, said[0]  # it does not wait for ever, and does not say that all is well
    statuses, said = ended(start(tmp_path, 2))
    assert statuses == [0, 0], said
    require_same(tmp_path, alone)


def test_two_one_and_two_processes_in_turn_after_sigterm(alone, tmp_path):
    for step, count in ((5, 2), (11, 1)):
        processes = start(tmp_path, count)
        at_step(tmp_path, step, processes)
        processes[-1].send_signal(signal.SIGTERM)
        statuses, said = ended(processes)
        assert statuses == [0] * count, said
        assert "the same command resumes there" in said[0]
    statuses, said = ended(start(tmp_path, 2))
    assert statuses == [0, 0], said
    require_same(tmp_path, alone)
    assert losses(tmp_path) == losses(alone)


def test_a_fitted_head_and_the_end_of_patience(tmp_path):
    """Both processes fit the same head, and end after the same evaluation without a better score."""
    for count in (1, 2):
        statuses, said = ended(start(tmp_path / str(count), count, values=LINEAR))
        assert statuses == [0] * count, said
        assert "head fitted to 6 tiles" in said[0]
        assert "complete at step 12: 2 evaluations without a better held-out miou" in said[0]
        assert all("complete at" not in text and "fitted" not in text for text in said[1:])
    assert losses(tmp_path / "1") == losses(tmp_path / "2")
    one, two = (parameters(tmp_path / name, 12) for name in "12")
    for name, leaf in one.items():
        np.testing.assert_array_equal(leaf, two[name], err_msg=name)


def test_hosts_with_different_configurations_stop(tmp_path):
    statuses, said = ended(start(tmp_path / "run", 2, of_process=lambda number: [f"seed={number}"]))
    assert statuses == [2, 2], said
    for text in said:
        assert "error: hosts 1 and 0 do not run the same: seed is 0 on host 0, 1" in text
        assert "Traceback" not in text
    assert not (tmp_path / "run").exists()
