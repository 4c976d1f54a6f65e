"""Preparation writes the same bytes after any interruption and with any number of processes."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from data_pipelines.prepare.prepare import prepare
from spectralmoe_jax.errors import UserError
from tests.prepare import tiny_dataset
from tests.prepare.tiny_dataset import assert_same

ROOT = Path(__file__).resolve().parents[2]
QUIET = Console(quiet=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_output_is_independent_of_the_number_of_workers(undisturbed, tmp_path, workers):
    prepare(tiny_dataset.TINY, undisturbed[0], tmp_path, workers=workers, console=QUIET)
    assert_same(tmp_path, undisturbed)


def test_another_process_writes_the_same_bytes_without_tensorflow_and_jax(undisturbed, tmp_path):
    subprocess.run(command(undisturbed[0], tmp_path, 1), cwd=ROOT, check=True, capture_output=True)
    assert_same(tmp_path, undisturbed)


@pytest.mark.parametrize("after", [False, True])
def test_killed_around_every_rename(undisturbed, tmp_path, after):
    """Each process gets a little further than the one before: through every piece to the last step."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.prepare.tiny_dataset"])
    killed = 0
    while killed < 30:
        steps = 2 + killed % 3 + (not after)
        arguments = (str(undisturbed[0]), str(tmp_path), 0, steps, after)
        process = processes.Process(target=tiny_dataset.prepare_and_die, args=arguments)
        process.start()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            break
        killed += 1
    assert process.exitcode == 0
    assert killed > 5
    assert_same(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see processes end")
def test_killed_at_random_moments_with_workers(undisturbed, tmp_path):
    moments, killed = random.Random(0), 0
    environment = {**os.environ, "TINY_SECONDS_A_TILE": "0.05"}
    for _ in range(4):
        process = subprocess.Popen(
            command(undisturbed[0], tmp_path, 2), cwd=ROOT, env=environment, start_new_session=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(lambda: (tmp_path / "tiny").exists() or process.poll() is not None)
        time.sleep(moments.uniform(0, 1.6))
        killed += process.poll() is None
        process.kill()
        process.wait()
        wait_until(lambda: not members(process.pid))  # its workers do not outlive it
    prepare(tiny_dataset.TINY, undisturbed[0], tmp_path, workers=1, console=QUIET)
    assert killed
    assert_same(tmp_path, undisturbed)


def test_interrupted_from_the_keyboard(undisturbed, tmp_path):
    process = subprocess.Popen(
        command(undisturbed[0], tmp_path, 2), cwd=ROOT, start_new_session=True, text=True,
        env={**os.environ, "TINY_SECONDS_A_TILE": "0.2"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_until(lambda: list(tmp_path.glob("tiny/*/partial/*.array_record*")) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "error: interrupted\n")
    assert not list(tmp_path.glob("tiny/*/partial/*"))


def command(source, out, workers: int) -> list[str]:
    options = ["--source", str(source), "--out", str(out), "--workers", str(workers)]
    return [sys.executable, "-m", "tests.prepare.tiny_dataset", "prepare", "tiny", *options]


def wait_until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def members(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def test_a_worker_killed_by_the_system_is_reported(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_KILLED_AT", "e")
    with pytest.raises(UserError, match=r"the system ended a worker process.*with fewer --workers"):
        prepare(tiny_dataset.TINY, undisturbed[0], tmp_path, workers=1, console=QUIET)
    monkeypatch.delenv("TINY_KILLED_AT")
    prepare(tiny_dataset.TINY, undisturbed[0], tmp_path, workers=1, console=QUIET)
    assert_same(tmp_path, undisturbed)


def test_only_one_process_prepares(undisturbed, tmp_path):
    import fcntl

    working = tmp_path / "tiny/1.0.0.incomplete"
    working.mkdir(parents=True)
    with open(working / "lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another prepare is at work"):
            prepare(tiny_dataset.TINY, undisturbed[0], tmp_path, workers=0, console=QUIET)
