"""One writer for a folder: the second is refused, and the lock of a dead process is taken over."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spectralmoe_jax import one_writer as module
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.one_writer import LOCK_FILE, one_writer, require_free
from tests.training import fake_experiment

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from spectralmoe_jax.one_writer import one_writer
with one_writer(Path(sys.argv[1]), "trains"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def lock_of(folder):
    return json.loads((folder / LOCK_FILE).read_text())


def elsewhere(folder, **changes):
    """Write a lock as a process of another machine has it."""
    with one_writer(folder, "trains"):
        lock = lock_of(folder)
    lock |= {"machine": "other", "host": "node7", "pid": 41, "token": "0"} | changes
    (folder / LOCK_FILE).write_text(json.dumps(lock))


def test_the_second_is_refused_with_the_first_ones_host_and_process(holder, tmp_path):
    for attempt in (lambda: one_writer(tmp_path, "trains").__enter__(), lambda: require_free(tmp_path)):
        with pytest.raises(UserError) as refused:
            attempt()
        assert f"process {holder.pid} on {os.uname().nodename} trains there" in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_killed_holder_is_taken_over_at_once(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    started = time.monotonic()
    while Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX":
        assert time.monotonic() - started < 20
    with one_writer(tmp_path, "trains"):  # its process is not even collected by its parent
        assert lock_of(tmp_path)["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_process_with_the_number_of_a_dead_one_is_not_the_holder(tmp_path):
    with one_writer(tmp_path, "trains"):
        lock = lock_of(tmp_path)
    lock |= {"started": "1", "token": "0"}  # of an earlier process with this number
    (tmp_path / LOCK_FILE).write_text(json.dumps(lock))
    with one_writer(tmp_path, "trains"):
        assert lock_of(tmp_path)["token"] != "0"


def test_a_silent_lock_of_another_machine_is_taken_over(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "STALE_SECONDS", 0.5)
    elsewhere(tmp_path)
    with one_writer(tmp_path, "trains"):
        assert lock_of(tmp_path)["pid"] == os.getpid()
    assert re.search(r"process 41 on node7 was silent for \d+ s: taken over", caplog.text)


def test_a_renewed_lock_of_another_machine_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STALE_SECONDS", 30)
    elsewhere(tmp_path)
    renew = "import os, sys, time\nfor _ in range(100):\n    os.utime(sys.argv[1])\n    time.sleep(0.1)"
    process = subprocess.Popen([sys.executable, "-c", renew, str(tmp_path / LOCK_FILE)])
    try:
        with pytest.raises(UserError, match="process 41 on node7 trains there since"):
            one_writer(tmp_path, "trains").__enter__()
    finally:
        process.kill()
        process.wait()
    assert lock_of(tmp_path)["host"] == "node7"


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"pid": "x"}', b"[" * 100_000])
def test_a_damaged_lock_is_taken_over_after_a_while(content, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STALE_SECONDS", 0.3)
    (tmp_path / LOCK_FILE).write_bytes(content)
    with one_writer(tmp_path, "trains"):
        assert lock_of(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("kind", ["pipe", "device", "dangling link", "huge"])
def test_a_lock_that_is_no_file_is_taken_over_after_a_while(kind, tmp_path, monkeypatch):
    """None of them is waited for, and none is read without an end."""
    monkeypatch.setattr(module, "STALE_SECONDS", 0.3)
    path = tmp_path / LOCK_FILE
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else tmp_path / "nothing")
    with one_writer(tmp_path, "trains"):
        assert lock_of(tmp_path)["pid"] == os.getpid()
        assert not path.is_symlink()


def test_a_folder_in_place_of_the_lock_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STALE_SECONDS", 0.3)
    (tmp_path / LOCK_FILE).mkdir()
    with pytest.raises(UserError, match="a folder, where a command notes"):
        one_writer(tmp_path, "trains").__enter__()


@pytest.mark.parametrize(
    "changes",
    [
        {"time": float("nan")}, {"time": 1e300}, {"time": -1.0}, {"pid": 2**70}, {"pid": -1}, {"pid": True},
        {"token": 5}, {"what": None}, {"host": ["a"]},
    ],
)  # fmt: skip
def test_a_lock_of_odd_values_counts_as_damaged(changes, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STALE_SECONDS", 0.3)
    elsewhere(tmp_path, machine=module._machine(), **changes)
    with one_writer(tmp_path, "trains"):
        assert lock_of(tmp_path)["pid"] == os.getpid()


def test_a_copy_of_a_folder_is_free_although_its_original_is_held(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STALE_SECONDS", 0.3)
    copy = shutil.copytree(tmp_path, tmp_path / "copy")
    with one_writer(copy, "trains"):
        assert lock_of(copy)["pid"] == os.getpid()
    with pytest.raises(UserError, match=f"process {holder.pid} on .* trains there since"):
        one_writer(tmp_path, "trains").__enter__()


def test_a_process_that_the_system_hides_is_watched(holder, tmp_path, monkeypatch):
    """Where /proc shows only one's own processes, another user's is not dead because it is not seen."""
    monkeypatch.setattr(module, "STALE_SECONDS", 30)
    monkeypatch.setattr(module, "_started", lambda pid: None if pid == holder.pid else "1")

    def kill(pid, number):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", kill)
        with pytest.raises(UserError, match=f"process {holder.pid} on .* trains there since"):
            one_writer(tmp_path, "trains").__enter__()


def test_a_removed_lock_comes_back_and_anothers_is_left_alone(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.05)
    path = tmp_path / LOCK_FILE

    def until(is_so):
        started = time.monotonic()
        while not is_so():
            assert time.monotonic() - started < 20
            time.sleep(0.02)

    with one_writer(tmp_path, "trains"):
        own = lock_of(tmp_path)
        path.unlink()
        until(path.is_file)
        assert lock_of(tmp_path) == own
        path.write_text(json.dumps(own | {"token": "0", "pid": 41, "host": "node7"}))
        until(lambda: "process 41 on node7 writes there too" in caplog.text)
    assert lock_of(tmp_path)["token"] == "0"


def test_a_block_inside_holds_it_as_well(tmp_path):
    with one_writer(tmp_path, "trains"):
        with one_writer(tmp_path, "trains"):
            pass
        assert lock_of(tmp_path)["pid"] == os.getpid()
    assert not (tmp_path / LOCK_FILE).exists()


def test_of_many_at_once_one_holds_it(tmp_path):
    """Processes that start together, over the lock of a dead one: at no time two hold it."""
    with one_writer(tmp_path, "trains"):
        stale = lock_of(tmp_path) | {"started": "1", "token": "0"}
    (tmp_path / LOCK_FILE).write_text(json.dumps(stale))
    script = """
import sys, time
from pathlib import Path
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.one_writer import one_writer
try:
    with one_writer(Path(sys.argv[1]), "trains"):
        print("held", flush=True)
        sys.stdin.read()  # until the others are refused
except UserError:
    print("refused", flush=True)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(5)
    ]
    try:
        said = sorted(process.stdout.readline().strip() for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert said == ["held", *["refused"] * 4]


def test_a_second_training_is_refused(holder, tmp_path):
    with pytest.raises(UserError, match=f"process {holder.pid} on .* trains there since"):
        fake_experiment.run_experiment(
            fake_experiment.make_experiment(), fake_experiment.make_config(), tmp_path
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_FILE]
