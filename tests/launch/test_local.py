"""launch/local.sh: one process or several on this machine, their GPUs, crashes, signals."""

import os
import signal

import pytest

from spectralmoe_jax.parallel.distributed import find_cluster
from tests.launch.conftest import UNTIL_ASKED

NOT_LISTENING = "touch $RECORD/waiting.$$; exec sleep 60"  # as Python before it is up
LOCAL = ("launch/local.sh", "--config", "c.py", "--workdir", "runs/x")


def test_a_single_process_gets_no_coordinator(machine):
    assert machine.run(*LOCAL).returncode == 0
    [(arguments, environment)] = machine.trainings
    assert arguments == ["train", *LOCAL[1:]]
    assert find_cluster(environment) is None
    assert "CUDA_VISIBLE_DEVICES" not in environment


def test_several_processes_share_the_gpus(machine):
    assert machine.run(*LOCAL, PROCESSES="2", CUDA_VISIBLE_DEVICES="4,5,6,7").returncode == 0
    found = {find_cluster(told).process: (find_cluster(told), told) for _, told in machine.trainings}
    assert sorted(found) == [0, 1]
    assert {(start.coordinator, start.processes) for start, _ in found.values()} == {
        (found[0][0].coordinator, 2)
    }
    assert found[0][0].coordinator.startswith("127.0.0.1:")
    assert [found[i][1]["CUDA_VISIBLE_DEVICES"] for i in (0, 1)] == ["4,5", "6,7"]


@pytest.mark.parametrize("hidden", ["", "-1", "-1,0", "NoDevFiles"])
def test_hidden_gpus_are_none(machine, hidden):
    assert machine.run(*LOCAL, PROCESSES="2", CUDA_VISIBLE_DEVICES=hidden).returncode == 0
    assert [told["CUDA_VISIBLE_DEVICES"] for _, told in machine.trainings] == [hidden] * 2


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 0), ("SIGINT", 130)])
def test_a_signal_ends_the_pause_before_a_restart(machine, name, status):
    sleep = machine.record.parent / "programs" / "sleep"  # the pause lasts until it is ended
    sleep.write_text('#!/bin/sh\n[ "$1" = 0.2 ] && exit\ntouch $RECORD/waiting.1\nexec /bin/sleep 50\n')
    sleep.chmod(0o755)
    process = machine.start(*LOCAL, TRAINING="exit 3")
    machine.await_waiting(1)
    process.send_signal(signal.Signals[name])
    process.communicate(timeout=20)
    assert process.returncode == status
    assert len(machine.trainings) == 1


@pytest.mark.parametrize(
    "start", [(), ("bash", "-c", "trap '' INT QUIT; exec \"$@\"", "")], ids=["", "background"]
)
def test_a_crash_ends_all_processes_and_restarts_them(machine, start):
    # Process 1 crashes at the first start, while process 0 waits for it and does not hear.
    training = (
        "[ -e $RECORD/again ] && exit 0; "
        "if [ $SPECTRALMOE_PROCESS_ID = 1 ]; then sleep 0.2; touch $RECORD/again; exit 5; fi; "
        "trap '' TERM; sleep 60"
    )
    done = machine.run(*start, *LOCAL, PROCESSES="2", TRAINING=training)
    assert done.returncode == 0
    assert done.stderr == "training ended with status 5; restart 1 of 10\n"
    assert len(machine.trainings) == 4


def test_restarts_stop_at_the_limit(machine):
    done = machine.run(*LOCAL, TRAINING="exit 3", RESTARTS="1")
    assert done.returncode == 3
    assert len(machine.trainings) == 2
    assert done.stderr.endswith("training ended with status 3 after 1 restarts\n")


@pytest.mark.parametrize("status", [2, 126, 127, 130])
def test_errors_that_a_restart_cannot_fix_end_the_run(machine, status):
    assert machine.run(*LOCAL, PROCESSES="2", TRAINING=f"exit {status}").returncode == status
    assert len(machine.trainings) == 2


@pytest.mark.parametrize(
    ("name", "training", "status"),
    [
        ("SIGTERM", UNTIL_ASKED, 0),
        ("SIGTERM", NOT_LISTENING, 0),
        ("SIGHUP", UNTIL_ASKED, 0),
        ("SIGINT", UNTIL_ASKED.replace("exit 0' TERM", "exit 130' INT"), 130),
    ],
)
def test_signals_reach_every_process(machine, name, training, status):
    process = machine.start(*LOCAL, PROCESSES="2", TRAINING=training)
    machine.await_waiting(2)
    process.send_signal(signal.Signals[name])
    process.communicate(timeout=30)
    assert process.returncode == status
    assert len(machine.trainings) == 2


def test_sigquit_leaves_no_process_behind(machine):
    process = machine.start(*LOCAL, PROCESSES="2", TRAINING=f"echo $$ >>$RECORD/pids; {NOT_LISTENING}")
    machine.await_waiting(2)
    process.send_signal(signal.SIGQUIT)
    process.communicate(timeout=30)
    assert process.returncode == 124
    for number in (machine.record / "pids").read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(number), 0)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PROCESSES": "two"}, "PROCESSES = two: give a whole number"),
        ({"PROCESSES": "0"}, "PROCESSES = 0: give at least 1"),
        ({"PROCESSES": "00"}, "PROCESSES = 0: give at least 1"),
        ({"PROCESSES": "99999"}, "PROCESSES = 99999: give at most 1024"),
        ({"PROCESSES": "a[$(id)]"}, "PROCESSES = a[$(id)]: give a whole number"),
        ({"RESTARTS": "0x8"}, "RESTARTS = 0x8: give a whole number"),
        ({"RESTARTS": "9" * 30}, "RESTARTS = 999999999999999999999999999999: give a whole number"),
        ({"RESTARTS": "1\n"}, "RESTARTS = 1?: give a whole number"),
        ({"WATCHDOG_SECONDS": "0"}, "WATCHDOG_SECONDS = 0: give at least 1"),
        ({"PORT": "65536"}, "PORT = 65536: give at most 65535"),
        ({"RESTARTS": "-1"}, "RESTARTS = -1: give a whole number"),
        ({"PROCESSES": "2", "CUDA_VISIBLE_DEVICES": "0,1,2"}, "PROCESSES = 2 cannot share 3 GPUs evenly"),
        ({"PROCESSES": "2", "CUDA_VISIBLE_DEVICES": "0"}, "PROCESSES = 2 cannot share 1 GPUs evenly"),
    ],
)
def test_bad_input_is_one_line(machine, environment, expected):
    done = machine.run(*LOCAL, **environment)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: local.sh: {expected}")
    assert machine.trainings == []


@pytest.mark.parametrize(("restarts", "count"), [("02", 2), ("08", 8), ("010", 10)])
def test_numbers_are_decimal(machine, restarts, count):
    """With leading zeros as well, which the shell takes for octal ones."""
    sleep = machine.record.parent / "programs" / "sleep"  # nothing waits
    sleep.write_text("#!/bin/sh\n")
    sleep.chmod(0o755)
    done = machine.run(*LOCAL, TRAINING="exit 3", RESTARTS=restarts, PROCESSES="01", WATCHDOG_SECONDS="0900")
    assert done.returncode == 3
    assert len(machine.trainings) == count + 1
    assert done.stderr.endswith(f"training ended with status 3 after {count} restarts\n")
