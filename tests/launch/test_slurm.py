"""launch/slurm.sbatch under fakes of SLURM: processes find each other, jobs requeue themselves."""

import json

import pytest

from spectralmoe_jax.parallel.distributed import find_cluster
from tests.launch.conftest import UNTIL_ASKED

REQUEUE = ["scontrol", "requeue", "77"]


def submit(machine, *options, training="exit 0", arguments=("--workdir", "runs/x"), **environment):
    return machine.run(
        "sbatch", *options, "launch/slurm.sbatch", *arguments, TRAINING=training, **environment
    )


def starts(machine):
    found = [find_cluster(environment) for _, environment in machine.trainings]
    return sorted(found, key=lambda start: start.process)


def test_one_process_per_node_has_all_gpus(machine):
    assert submit(machine).returncode == 0
    found = starts(machine)
    assert [(start.process, start.processes, start.local_devices) for start in found] == [
        (0, 2, None),
        (1, 2, None),
    ]
    assert {start.coordinator for start in found} == {"gpu03:61077"}
    assert machine.trainings[0][0] == ["train", "--workdir", "runs/x"]
    assert machine.calls == []
    options = json.loads((machine.record / "options").read_text())
    assert {"requeue": "", "signal": "B:TERM@120", "open-mode": "append"}.items() <= options.items()


def test_one_process_per_gpu(machine):
    assert (
        submit(
            machine, "--nodes=1", "--ntasks-per-node=4", "--gpus-per-node=4", "--cpus-per-task=4"
        ).returncode
        == 0
    )
    found = starts(machine)
    assert [(start.process, start.local_devices) for start in found] == [(i, (i,)) for i in range(4)]


def test_two_processes_per_node_share_its_gpus(machine):
    assert submit(machine, "--ntasks-per-node=2").returncode == 0
    assert [start.local_devices for start in starts(machine)] == [(0, 1, 2, 3), (4, 5, 6, 7)] * 2


def test_a_job_out_of_time_saves_and_requeues(machine):
    # The second start finds nothing left to do.
    training = f"[ $SLURM_RESTART_COUNT = 1 ] && exit 0; {UNTIL_ASKED}"
    done = submit(machine, training=training, SIGNAL_AT="2")
    assert done.returncode == 0
    assert [call for call in machine.calls if call[1] == "requeue"] == [REQUEUE]
    assert len(machine.trainings) == 4
    assert "asked to stop: requeued" in done.stderr


def test_a_cancelled_job_is_not_requeued(machine):
    done = submit(machine, training=UNTIL_ASKED, SIGNAL_AT="2", JOB_STATE="CANCELLED")
    assert done.returncode == 0
    assert REQUEUE not in machine.calls


def test_a_crash_is_requeued_up_to_the_limit(machine):
    done = submit(machine, training="exit 3", RESTARTS="01", WATCHDOG_SECONDS="0900")
    assert done.returncode == 3
    assert machine.calls.count(REQUEUE) == 1
    assert len(machine.trainings) == 4
    assert "status 3 after 1 restarts" in done.stderr


@pytest.mark.parametrize("status", [2, 126, 127, 130])
def test_errors_that_a_restart_cannot_fix_are_not_requeued(machine, status):
    assert submit(machine, training=f"exit {status}").returncode == status
    assert machine.calls == []


def test_a_stuck_job_is_killed_and_requeued(machine, tmp_path):
    training = "[ $SLURM_RESTART_COUNT = 1 ] && exit 0; trap '' TERM; sleep 60"
    done = submit(machine, training=training, WATCHDOG_SECONDS="1", arguments=[f"--workdir={tmp_path}"])
    assert done.returncode == 0
    assert REQUEUE in machine.calls
    assert "no heartbeat" in done.stderr


def test_every_array_task_has_its_own_folder_and_number(machine):
    training = f"[ $SLURM_RESTART_COUNT = 1 ] && exit 0; {UNTIL_ASKED}"
    arguments = ("--config.seed=%a", "--workdir", "runs/seed%a")
    done = submit(machine, "--array=3-4", "--nodes=1", training=training, arguments=arguments, SIGNAL_AT="1")
    assert done.returncode == 0
    assert [call[2] for call in machine.calls if call[1] == "requeue"] == ["77_3", "77_4"]
    folders = [given[-1] for given, _ in machine.trainings]
    assert folders == ["runs/seed3", "runs/seed3", "runs/seed4", "runs/seed4"]
    assert machine.trainings[-1][0][1] == "--config.seed=4"


def test_one_grid_run_per_array_task(machine):
    grid = ("configs/ablations/experts.py", "--workdir", "runs/grid", "--config.train.steps=5")
    training = f"[ $SLURM_RESTART_COUNT = 1 ] && exit 0; {UNTIL_ASKED}"
    options = ("--array=1-2", "--nodes=1", "--gpus-per-node=1", "--cpus-per-task=4")
    done = submit(machine, *options, training=training, arguments=grid, SUBCOMMAND="ablate", SIGNAL_AT="1")
    assert done.returncode == 0
    assert [call[2] for call in machine.calls if call[1] == "requeue"] == ["77_1", "77_2"]
    assert [given for given, _ in machine.trainings] == [
        ["ablate", *grid, "--task", task] for task in ("1", "1", "2", "2")
    ]
    assert {environment["CUDA_VISIBLE_DEVICES"] for _, environment in machine.trainings} == {"0"}
    watched = [environment["HEARTBEAT"] for _, environment in machine.trainings]
    assert watched[1:3] == ["runs/x/seed1/heartbeat/0.json", "runs/x/seed2/heartbeat/0.json"]


def test_a_stuck_grid_run_is_killed(machine, tmp_path):
    training = "[ $SLURM_RESTART_COUNT = 1 ] && exit 0; trap '' TERM; sleep 60"
    done = submit(
        machine, "--array=0-0", "--nodes=1", training=training, SUBCOMMAND="ablate", WATCHDOG_SECONDS="1",
        arguments=["grid.py", f"--workdir={tmp_path}"],
    )  # fmt: skip
    assert done.returncode == 0
    assert "no heartbeat in runs/x/seed0/heartbeat/0.json" in done.stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "a grid is an array: give --array=0-N before the script"),
        (("--array=0-0",), "a run of a grid is one process: give --nodes=1 --ntasks-per-node=1"),
        (("--array=3-3", "--nodes=1"), "the grid has no run 3"),
    ],
)
def test_a_grid_requires_an_array_job(machine, options, expected):
    done = submit(machine, *options, arguments=("g.py", "--workdir", "runs/g"), SUBCOMMAND="ablate")
    assert (done.returncode, done.stderr) == (2, f"error: slurm.sbatch: {expected}\n")
    assert machine.trainings == []


def test_a_grid_in_a_folder_whose_name_cannot_be_printed(machine):
    """It is listed with backslashes, so that the watchdog would look elsewhere."""
    listed = machine.record.parent / "programs" / "spectralmoe"
    listed.write_text("#!/bin/sh\nprintf '%s\\n' 'runs/a\\x1b/seed0'\n")
    done = submit(
        machine,
        "--array=0-0",
        "--nodes=1",
        arguments=("g.py", "--workdir", "runs/a\x1b"),
        SUBCOMMAND="ablate",
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: slurm.sbatch: --workdir: give a name of printable characters")


def test_bad_input_is_one_line(machine):
    for done, expected in (
        (submit(machine, "--array=0-0"), "the tasks of an array cannot share one --workdir: put %a in it"),
        (submit(machine, RESTARTS="x"), "RESTARTS = x: give a whole number"),
        (submit(machine, RESTARTS="0x8"), "RESTARTS = 0x8: give a whole number"),
        (submit(machine, WATCHDOG_SECONDS="1\n"), "WATCHDOG_SECONDS = 1?: give a whole number"),
        (submit(machine, SUBCOMMAND="-x"), "SUBCOMMAND = -x: give train or ablate"),
        (machine.run("launch/slurm.sbatch"), "submit it: sbatch launch/slurm.sbatch"),
        (
            machine.run("launch/slurm.sbatch", SLURM_JOB_ID="1", SLURM_SUBMIT_DIR="/"),
            "no //launch/watchdog.sh: submit",
        ),
    ):
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith(f"error: slurm.sbatch: {expected}")
    assert machine.trainings == []
