"""launch/watchdog.sh: stuck trainings are killed, live ones are not, signals and statuses pass through."""

import signal
import subprocess

import pytest

from tests.launch.conftest import UNTIL_ASKED

TRAIN = ("spectralmoe", "train", "--workdir")


def watch(machine, workdir, training, seconds=30, **environment):
    return machine.start("launch/watchdog.sh", seconds, *TRAIN, workdir, TRAINING=training, **environment)


def ended(process):
    _, err = process.communicate(timeout=30)
    return process.returncode, err


@pytest.fixture
def heartbeat(tmp_path):
    path = tmp_path / "run" / "heartbeat" / "0.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"step": 7, "time": 1000.0}\n')
    return path


def test_a_stale_heartbeat_kills_the_whole_process_group(machine, heartbeat, tmp_path):
    lasting = f"trap '' TERM; sleep 60 & echo $! >{tmp_path}/child; wait"
    status, err = ended(watch(machine, tmp_path / "run", lasting, seconds=1))
    assert status == 124
    assert f'no heartbeat in {heartbeat} for 1 s (last: {{"step": 7, "time": 1000.0}}): killed' in err
    state = ["ps", "-o", "stat=", "-p", (tmp_path / "child").read_text().strip()]
    assert subprocess.run(state, capture_output=True, text=True, check=False).stdout[:1] in ("", "Z")


def test_a_fresh_heartbeat_keeps_the_training_alive(machine, heartbeat, tmp_path):
    beating = f"for i in 1 2 3 4 5 6; do echo $i >{heartbeat}; sleep 0.5; done"
    assert ended(watch(machine, tmp_path / "run", beating, seconds=2)) == (0, "")


def test_a_training_without_a_first_heartbeat_is_killed(machine, tmp_path):
    status, err = ended(watch(machine, tmp_path / "run", "sleep 60", seconds=1))
    assert status == 124
    assert "(last: none): killed" in err


@pytest.mark.parametrize("status", [0, 2, 3])
def test_the_exit_status_is_that_of_the_training(machine, tmp_path, status):
    assert ended(watch(machine, tmp_path, f"exit {status}"))[0] == status


@pytest.mark.parametrize("training", [UNTIL_ASKED, "touch $RECORD/waiting.$$; exec sleep 60"])
@pytest.mark.parametrize(("told", "status"), [({}, 0), ({"STOPPED_STATUS": "75"}, 75)])
def test_sigterm_is_forwarded(machine, tmp_path, told, status, training):
    process = watch(machine, tmp_path, training, **told)
    machine.await_waiting(1)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == status


def test_a_training_that_ignores_sigterm_is_killed(machine, tmp_path):
    process = watch(machine, tmp_path, "trap '' TERM; touch $RECORD/waiting.$$; sleep 60", STOP_SECONDS="1")
    machine.await_waiting(1)
    process.send_signal(signal.SIGTERM)
    status, err = ended(process)
    assert status == 124
    assert "not stopped 1 s after SIGTERM: killed" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "give SECONDS first, a whole number, not ''"),
        (("spectralmoe",), "give SECONDS first, a whole number, not 'spectralmoe'"),
        (("0", "x"), "give SECONDS first, a whole number, not '0'"),
        (("000", "x"), "give SECONDS first, a whole number, not '000'"),
        (("9\n8", "x"), "give SECONDS first, a whole number, not '9?8'"),
        (("a[$(id)]", "x"), "give SECONDS first, a whole number, not 'a[$(id)]'"),
        (("9",), "give the command to run after SECONDS"),
        (("9", "spectralmoe", "train"), "the command has no --workdir"),
    ],
)
def test_bad_input_is_one_line(machine, words, expected):
    done = machine.run("launch/watchdog.sh", *words)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: watchdog.sh: {expected}")
    assert machine.trainings == []


def test_numbers_are_decimal(machine, tmp_path):
    """With leading zeros as well, which the shell takes for octal ones."""
    status, err = ended(watch(machine, tmp_path / "run", "sleep 60", seconds="01"))
    assert (status, "for 1 s (last: none): killed" in err) == (124, True)
    lasting = "trap '' TERM; touch $RECORD/waiting.$$; sleep 60"
    process = watch(machine, tmp_path, lasting, seconds="0900", STOP_SECONDS="01", STOPPED_STATUS="08")
    machine.await_waiting(1)
    process.send_signal(signal.SIGTERM)
    status, err = ended(process)
    assert (status, "not stopped 1 s after SIGTERM: killed" in err) == (124, True)


def test_sigterm_ends_with_a_decimal_status(machine, tmp_path):
    process = watch(machine, tmp_path, UNTIL_ASKED, seconds="09", STOPPED_STATUS="010")
    machine.await_waiting(1)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 10


@pytest.mark.parametrize("value", ["x", "-1", "1.5", "0x10", "a[$(id)]", "9" * 30, "8\n"])
@pytest.mark.parametrize("name", ["STOP_SECONDS", "STOPPED_STATUS"])
def test_what_is_no_number_is_refused(machine, tmp_path, name, value):
    status, err = ended(watch(machine, tmp_path, "exit 0", **{name: value}))
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: watchdog.sh: {name} = ")


def test_a_heartbeat_is_printed_without_control_characters(machine, heartbeat, tmp_path):
    heartbeat.write_text("\x1b[2J\nx")
    status, err = ended(watch(machine, tmp_path / "run", "sleep 60", seconds=1))
    assert (status, "(last: ?[2J?x): killed" in err) == (124, True)
