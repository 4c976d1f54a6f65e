"""How the processes of a run find each other in every environment, and the messages if they do not."""

import os
import re
import subprocess
import sys

import pytest

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.parallel import distributed
from spectralmoe_jax.parallel.distributed import Cluster, find_cluster, first_host
from tests.parallel.test_rendezvous import free_port

SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
JOBSET = {
    "JOBSET_NAME": "run",
    "REPLICATED_JOB_NAME": "workers",
    "JOBSET_PROCESSES": "4",
    "JOB_COMPLETION_INDEX": "2",
}
VARIABLES = {
    "SPECTRALMOE_COORDINATOR": "h0:1234",
    "SPECTRALMOE_PROCESSES": "2",
    "SPECTRALMOE_PROCESS_ID": "1",
}


@pytest.fixture(autouse=True)
def no_devices(monkeypatch):
    """Whatever machine the tests run on, it has neither TPUs nor GPUs."""
    monkeypatch.setattr(distributed, "_has_tpu", lambda: False)
    monkeypatch.setattr(distributed, "_visible_gpus", lambda environment: len(
        [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    ))  # fmt: skip


def test_a_process_without_hints_runs_alone():
    assert find_cluster({}) is None
    assert find_cluster({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}) is None
    # The shell of `salloc -n 4`: tasks are allotted, and this is none of them.
    assert find_cluster({"SLURM_NTASKS": "4"}) is None


def test_precedence_of_command_line_variables_and_schedulers():
    flags = find_cluster(VARIABLES | SLURM | JOBSET, "h9:99", 3, 2)
    assert flags == Cluster("the command line", "h9:99", 3, 2)
    assert find_cluster(VARIABLES | SLURM | JOBSET) == Cluster("SPECTRALMOE_COORDINATOR", "h0:1234", 2, 1)
    assert find_cluster(SLURM | JOBSET).found_by == "SLURM"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("h:1", None, None), "--processes, --process-id missing: give all of --coordinator, --processes, "),
        ((None, 2, None), "--coordinator, --process-id missing"),
        ((None, None, 0), "--coordinator, --processes missing"),
        (("h", 2, 0), "--coordinator = h: give HOST:PORT"),
        (("h:x", 2, 0), "--coordinator = h:x: give HOST:PORT"),
        ((":1", 2, 0), "--coordinator = :1: give HOST:PORT"),
        (("h:٣", 2, 0), "--coordinator = h:٣: give HOST:PORT"),
        (("h:" + "1" * 5000, 2, 0), "--coordinator = h:1"),
        (("h:65536", 2, 0), "--coordinator = h:65536: give HOST:PORT"),
        (("h:1", 2, 2), "--process-id = 2: processes are numbered from 0 to 1"),
        (("h:1", 2, -1), "--process-id = -1: processes are numbered from 0 to 1"),
        (("h:1", 0, 0), "--processes = 0: has to be at least 1"),
    ],
)
def test_incomplete_or_invalid_flags(flags, expected):
    with pytest.raises(UserError, match=f"^{re.escape(expected)}"):
        find_cluster({}, *flags)


@pytest.mark.parametrize("name", VARIABLES)
def test_a_missing_variable_is_named(name):
    with pytest.raises(UserError, match=f"^{name} missing: give all of SPECTRALMOE_COORDINATOR, "):
        find_cluster(VARIABLES | {name: ""})


def test_variables_that_are_not_numbers():
    with pytest.raises(UserError, match=r"^SPECTRALMOE_PROCESSES = two: has to be a whole number"):
        find_cluster(VARIABLES | {"SPECTRALMOE_PROCESSES": "two"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("x1", "x1"),
        ("x1,x2", "x1"),
        ("gpu[003-006,9],x1", "gpu003"),
        ("gpu[9,11]", "gpu9"),
        ("a-b-1,c2", "a-b-1"),
        ("a-b-[10-12]", "a-b-10"),
        ("rack[2-3]n[07-08],x", "rack2n07"),
        ("n[1-2]-ib.local,x", "n1-ib.local"),
    ],
)
def test_the_first_slurm_host(nodes, first):
    assert first_host(nodes) == first


def test_slurm():
    start = find_cluster(SLURM)
    host, _, port = start.coordinator.partition(":")
    assert (host, start.processes, start.process) == ("gpu07", 4, 3)
    assert 61000 <= int(port) < 65000
    assert find_cluster(SLURM | {"SLURM_JOB_ID": "4243"}).coordinator != start.coordinator


@pytest.mark.parametrize(
    ("change", "devices"),
    [
        ({}, None),  # no GPUs
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, (1,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, (2, 3)),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_LOCALID": "0"}, (0, 1)),
        ({"CUDA_VISIBLE_DEVICES": "5"}, None),  # each sees its own one
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "4"}, (2, 3)),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "8"}, None),  # each sees its own four
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_TASKS_PER_NODE": "3,1"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_TASKS_PER_NODE": "1,2(x3)"}, (2, 3)),
    ],
)
def test_the_gpus_of_a_slurm_process(change, devices):
    assert find_cluster(SLURM | change).local_devices == devices


def test_inconsistent_slurm_settings():
    with pytest.raises(UserError, match=r"^SLURM starts 2 processes on a node with 3 GPUs: choose"):
        find_cluster(SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2"})
    with pytest.raises(UserError, match=r"^SLURM was asked for 4 processes and only this one was started"):
        find_cluster(SLURM | {"SLURM_STEP_NODELIST": "", "SLURM_JOB_NODELIST": "gpu[07-08]"})


def test_jobset():
    assert find_cluster(JOBSET) == Cluster("the JobSet", "run-workers-0-0.run:8476", 4, 2)
    assert find_cluster(JOBSET | {"JOBSET_PROCESSES": "1", "JOB_COMPLETION_INDEX": "0"}) is None
    # A plain Indexed Job is not ours to join.
    assert find_cluster({"JOB_COMPLETION_INDEX": "1"}) is None


@pytest.mark.parametrize("name", ["JOBSET_PROCESSES", "JOB_COMPLETION_INDEX"])
def test_an_incomplete_jobset_is_an_error(name):
    with pytest.raises(UserError, match=f"^{name} missing"):
        find_cluster(JOBSET | {name: ""})


def test_tpu_vms(monkeypatch):
    monkeypatch.setattr(distributed, "_has_tpu", lambda: True)
    assert find_cluster({}) == Cluster("the TPU VM")
    assert find_cluster({"TPU_WORKER_HOSTNAMES": "a,b"}) == Cluster("the TPU VM")
    assert find_cluster({"TPU_WORKER_HOSTNAMES": "localhost"}) is None
    assert find_cluster({"JAX_PLATFORMS": "cpu"}) is None


def test_an_unreachable_coordinator_is_reported_within_the_limit():
    code = (
        "import sys, time\n"
        "from spectralmoe_jax.errors import UserError\n"
        "from spectralmoe_jax.parallel.distributed import find_cluster, join_cluster\n"
        f"start = find_cluster({{}}, '127.0.0.1:{free_port()}', 2, 1)\n"
        "began = time.monotonic()\n"
        "try:\n"
        "    with join_cluster(start, 2): pass\n"
        "except UserError as error:\n"
        "    print(error)\n"
        "    sys.exit(2 if time.monotonic() - began < 4 else 3)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=False)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(
        r"process 1 of 2 cannot reach process 0 at 127\.0\.0\.1:\d+ within 2 s \(Connection refused\): .*\n",
        done.stdout,
    )
