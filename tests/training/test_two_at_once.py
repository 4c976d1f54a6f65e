"""Two trainings at once in one folder: the second is refused, and the first is not disturbed."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.config.stored import read_run_config
from spectralmoe_jax.models.build import abstract_segmenter, segmenter_config
from spectralmoe_jax.one_writer import LOCK_FILE
from spectralmoe_jax.parameters import named_leaves, split
from tests.tiny_run import SIZES

ROOT = Path(__file__).resolve().parents[2]
PAIRS = 6
LONG_ENOUGH = ["train.steps=60", "train.evaluate_every=30", "train.checkpoint_every=20"]


def started(workdir):
    command = [sys.executable, "-m", "spectralmoe_jax", "train", "--config", "configs/quickstart.py"]
    command += [f"--config.{value}" for value in (*SIZES, *LONG_ENOUGH)] + ["--workdir", str(workdir)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results(workdir):
    """Every stored array as raw bytes, and every record but for its timing."""
    config = read_run_config(workdir)
    trainable, _ = split(abstract_segmenter(segmenter_config(config)))
    with CheckpointStore(workdir, config) as store:
        steps = (store.best, store.last)
        stored = [named_leaves(store.restore_params(step, trainable)) for step in steps]
    arrays = [{name: np.asarray(leaf).tobytes() for name, leaf in leaves.items()} for leaves in stored]
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return steps, arrays, [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The results of a run that nobody disturbs."""
    workdir = tmp_path_factory.mktemp("alone")
    process = started(workdir)
    said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    return results(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("pair", range(PAIRS))
def test_the_second_is_refused_and_the_first_ends_as_if_alone(pair, tmp_path, alone):
    """Both start at the same time, or the second while the first trains."""
    processes = [started(tmp_path)]
    if pair % 2:
        while not (tmp_path / LOCK_FILE).exists():
            assert processes[0].poll() is None, processes[0].communicate()
            time.sleep(0.01)
    processes.append(started(tmp_path))
    said = [process.communicate(timeout=400)[1] for process in processes]
    statuses = [process.returncode for process in processes]
    assert sorted(statuses) == [0, 2], said
    winner, loser = statuses.index(0), statuses.index(2)
    assert winner == 0 or pair % 2 == 0
    assert said[loser].count("\n") == 1
    assert f"process {processes[winner].pid} on " in said[loser]
    assert results(tmp_path) == alone
    assert not (tmp_path / LOCK_FILE).exists()
