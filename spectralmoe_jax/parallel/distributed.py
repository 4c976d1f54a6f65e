"""Runs of several processes: find the others, wait for them with a time limit, and check that they agree.

1. `find_cluster` reads how to join, in this order, from the command line; from the variables
   SPECTRALMOE_COORDINATOR, SPECTRALMOE_PROCESSES and SPECTRALMOE_PROCESS_ID; from SLURM; from a Kubernetes
   JobSet; from a TPU VM. A process for which none of them says anything is alone.
2. `join_cluster` waits for all processes (`rendezvous`), then initialises `jax.distributed`. JAX alone would
   end a process that waits in vain without saying which of the others is missing.
3. `require_agreement` checks that all processes run the same.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from spectralmoe_jax import __version__
from spectralmoe_jax.errors import RunLost, UserError
from spectralmoe_jax.parallel.rendezvous import bind_address, rendezvous

log = logging.getLogger(__name__)
TIME_LIMIT = 300  # seconds in which all processes have to be there
LEAVE_LIMIT = 10  # seconds in which a process that fails leaves the others
LOST_AFTER = 60  # seconds without a heartbeat of a process, after which the others end
PORT = 8476
_LONGEST_LIMIT = 1_000_000


# 1. Find the cluster.


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run, and the place of this one among them.

    Attributes:
      found_by: where this was found, for messages.
      coordinator: HOST:PORT of process 0; None where JAX finds it (TPU VMs).
      processes: number of processes.
      process: index of this process.
      local_devices: indices of the host's devices that belong to this process; None for all.
    """

    found_by: str
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    local_devices: tuple[int, ...] | None = None


def find_cluster(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Cluster | None:
    """Find out how this process joins the others; None for one that is alone.

    Args:
      environment: environment variables.
      coordinator: HOST:PORT of process 0, from the command line.
      processes: number of processes, from the command line.
      process: index of this process, from the command line.

    Raises:
      UserError: only some of the values are given, or one is not possible.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process-id": process}
    if any(value is not None for value in given.values()):
        return _cluster("the command line", given)
    names = ("SPECTRALMOE_COORDINATOR", "SPECTRALMOE_PROCESSES", "SPECTRALMOE_PROCESS_ID")
    if any(environment.get(name) for name in names):
        return _cluster("SPECTRALMOE_COORDINATOR", {name: environment.get(name) for name in names})
    if environment.get("SLURM_NTASKS", "1") != "1" and "SLURM_PROCID" in environment:
        return _slurm_cluster(environment)
    if environment.get("JOBSET_NAME"):
        return _jobset_cluster(environment)
    if _is_tpu_vm(environment):
        return Cluster("the TPU VM")
    return None


def _cluster(found_by: str, given: Mapping[str, str | int | None]) -> Cluster:
    """Check coordinator, number of processes and index, given in this order by the names of their sources."""
    missing = [name for name, value in given.items() if value in (None, "")]
    if missing:
        raise UserError(f"{', '.join(missing)} missing: give all of {', '.join(given)}, or none")
    names, (address, processes, process) = list(given), given.values()
    host, _, port = str(address).rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise UserError(f"{names[0]} = {address}: give HOST:PORT of process 0")
    count, index = _whole(names[1], processes), _whole(names[2], process)
    if count < 1:
        raise UserError(f"{names[1]} = {count}: has to be at least 1")
    if not 0 <= index < count:
        raise UserError(f"{names[2]} = {index}: processes are numbered from 0 to {count - 1}")
    return Cluster(found_by, str(address), count, index)


def _whole(name: str, value: str | int | None) -> int:
    if not re.fullmatch("-?[0-9]{1,15}", str(value)):
        raise UserError(f"{name} = {value}: has to be a whole number")
    return int(str(value))


def _slurm_cluster(environment: Mapping[str, str]) -> Cluster:
    nodes = environment.get("SLURM_STEP_NODELIST")
    if not nodes:
        raise UserError(
            f"SLURM was asked for {environment['SLURM_NTASKS']} processes and only this one was started: "
            "start them by srun"
        )
    # Jobs on one node must not share a port.
    port = 61000 + _whole("SLURM_JOB_ID", environment.get("SLURM_JOB_ID", "0")) % 4000
    cluster = _cluster(
        "SLURM",
        {
            "SLURM_STEP_NODELIST": f"{first_host(nodes)}:{port}",
            "SLURM_NTASKS": environment["SLURM_NTASKS"],
            "SLURM_PROCID": environment["SLURM_PROCID"],
        },
    )
    return dataclasses.replace(cluster, local_devices=_slurm_devices(environment))


def first_host(nodes: str) -> str:
    """The first host of SLURM's list: `gpu[003-006,9],x1` -> `gpu003`."""
    first = re.match(r"(?:\[[^\]]*\]|[^\[,])*", nodes)
    assert first is not None
    return re.sub(r"\[([^,\-\]]+)[^\]]*\]", r"\1", first[0])


def _slurm_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """GPUs of this process, an equal share where several processes of a host see all of its GPUs."""
    tasks, visible = _slurm_tasks_here(environment), _visible_gpus(environment)
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    has_its_own = on_node.isdecimal() and visible < int(on_node)
    if tasks <= 1 or visible < tasks or has_its_own:
        return None
    if visible % tasks:
        raise UserError(
            f"SLURM starts {tasks} processes on a node with {visible} GPUs: choose --ntasks-per-node "
            "that divides them"
        )
    share, local = visible // tasks, _whole("SLURM_LOCALID", environment.get("SLURM_LOCALID") or 0)
    return tuple(range(local * share, (local + 1) * share))


def _slurm_tasks_here(environment: Mapping[str, str]) -> int:
    """Processes on this node; SLURM's `2(x3),1` means two on each of three nodes and one on the fourth."""
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or "1"
    counts: list[int] = []
    for count, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(nodes or 1)
    node = _whole("SLURM_NODEID", environment.get("SLURM_NODEID") or 0)
    return counts[node] if node < len(counts) else 1


def _visible_gpus(environment: Mapping[str, str]) -> int:
    names = environment.get("CUDA_VISIBLE_DEVICES")
    if names is None:
        return len(list(Path("/dev").glob("nvidia[0-9]*")))
    return len([name for name in names.split(",") if name])


def _jobset_cluster(environment: Mapping[str, str]) -> Cluster | None:
    name, job = environment["JOBSET_NAME"], environment.get("REPLICATED_JOB_NAME") or "workers"
    cluster = _cluster(
        "the JobSet",
        {
            "JOBSET_NAME": f"{name}-{job}-0-0.{name}:{PORT}",
            "JOBSET_PROCESSES": environment.get("JOBSET_PROCESSES"),
            "JOB_COMPLETION_INDEX": environment.get("JOB_COMPLETION_INDEX"),
        },
    )
    return None if cluster.processes == 1 else cluster


def _is_tpu_vm(environment: Mapping[str, str]) -> bool:
    """Return True on one of several hosts of a TPU slice."""
    if "cpu" in environment.get("JAX_PLATFORMS", "") or not _has_tpu():
        return False
    hosts = environment.get("TPU_WORKER_HOSTNAMES")
    return hosts is None or "," in hosts


def _has_tpu() -> bool:
    # chips up to v5e are /dev/accel*, later ones /dev/vfio/*, as other devices are too
    devices = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


# 2. Join it.


@contextlib.contextmanager
def join_cluster(cluster: Cluster | None, time_limit: int = TIME_LIMIT) -> Iterator[None]:
    """Join all processes of the run for the duration of a context.

    Args:
      cluster: how to join; None for a process that is alone, which has nothing to do.
      time_limit: seconds to wait for the others.

    Raises:
      UserError: not all were there in time; names where and what to look at. Or the time limit cannot be.
      RunLost: a collective failed within the context, as when another process died.
    """
    if not 1 <= time_limit <= _LONGEST_LIMIT:
        raise UserError(f"--start-timeout {time_limit}: give 1 to {_LONGEST_LIMIT} seconds")
    if cluster is None:
        yield
        return
    until = time.monotonic() + time_limit
    if cluster.coordinator is not None:
        assert cluster.processes is not None
        assert cluster.process is not None
        log.info(
            "process %d of %d waits for the others at %s (%s)",
            cluster.process,
            cluster.processes,
            cluster.coordinator,
            cluster.found_by,
        )
        rendezvous(cluster.coordinator, cluster.processes, cluster.process, time_limit)
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.process,
            coordinator_bind_address=cluster.coordinator and bind_address(cluster.coordinator),
            local_device_ids=cluster.local_devices,
            # On SLURM JAX's own detection would leave a process one GPU where local_devices says all.
            cluster_detection_method=None if cluster.coordinator is None else "deactivate",
            initialization_timeout=max(10, int(until - time.monotonic())),
            heartbeat_timeout_seconds=LOST_AFTER,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"the processes of the run were not joined within {time_limit} s ({cluster.found_by}: process "
            f"{cluster.process} of {cluster.processes}, coordinator {cluster.coordinator}): see that all "
            f"were started and reach that address; {_first_line(error)}"
        ) from None
    try:
        yield
    except jax.errors.JaxRuntimeError as problem:
        lost = RunLost(
            f"process {jax.process_index()} cannot go on, another may have been lost "
            f"({_first_line(problem)[:200]}): the same command on all hosts resumes from the last checkpoint"
        )
        atexit.register(_end_now, lost)
        raise lost from problem
    except BaseException as error:
        # The others may be waiting for this one in a step, and then never come to leave with it.
        leaving = threading.Thread(target=_leave, daemon=True)
        leaving.start()
        leaving.join(LEAVE_LIMIT)
        if leaving.is_alive():
            atexit.register(_end_now, error)
        raise
    jax.distributed.shutdown()


def _leave() -> None:
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()


def _end_now(error: BaseException) -> None:
    """End the process with the exit status of the command line, without JAX's wait for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    statuses = {RunLost: 75, UserError: 2, OSError: 2, KeyboardInterrupt: 130}
    os._exit(next((status for kind, status in statuses.items() if isinstance(error, kind)), 1))


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


# 3. Check that all run the same.


def require_agreement(config: dict[str, Any]) -> None:
    """Compare a flat configuration, and the versions of this package and of JAX, over all hosts.

    Raises:
      UserError: on every host, naming the first host that differs from host 0, and what differs.
    """
    if jax.process_count() == 1:
        return
    versions = {"spectralmoe_jax version": __version__, "jax version": jax.__version__}
    everyone = gather_values({**config, **versions})
    for host, other in enumerate(everyone):
        differing = sorted(k for k in other.keys() | everyone[0].keys() if other.get(k) != everyone[0].get(k))
        if differing:
            listed = "; ".join(
                f"{k} is {everyone[0].get(k)!r} on host 0, {other.get(k)!r}" for k in differing[:4]
            )
            raise UserError(f"hosts {host} and 0 do not run the same: {listed}; start all hosts alike")


def gather_values(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return JSON values of every host, in the order of the hosts; all of them have to call it."""
    text = json.dumps(values, sort_keys=True, default=str).encode()
    longest = int(multihost_utils.process_allgather(np.int32(len(text))).max())
    padded = np.frombuffer(text.ljust(longest), np.uint8)
    return [json.loads(bytes(row)) for row in multihost_utils.process_allgather(padded)]
