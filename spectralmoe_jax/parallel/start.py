"""Joining the processes of a run, from what the environment says of them, with a time limit.

Asked in this order: the command line; the variables SPECTRALMOE_COORDINATOR, SPECTRALMOE_PROCESSES and
SPECTRALMOE_PROCESS_ID; SLURM; a Kubernetes JobSet; a TPU VM. A process that none of them speaks of is alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax

from spectralmoe_jax.errors import RunLost, UserError

TIME_LIMIT = 300  # seconds
PORT = 8476
_HEARTBEAT_LIMIT = 60  # seconds without a sign of a process, after which the others end
_left_behind = False


@dataclasses.dataclass(frozen=True)
class Start:
    """How this process joins the others.

    Attributes:
      found_by: what said so, for messages.
      coordinator: HOST:PORT of process 0; None where JAX finds it (TPU VMs).
      processes, process: how many there are, and which this is.
      local_devices: numbers of the host's devices that are this process's; None for all.
    """

    found_by: str
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    local_devices: tuple[int, ...] | None = None


def find_start(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> Start | None:
    """What the command line, or else the environment, says of the processes; None for one alone.

    Raises:
      UserError: only a part of it is said, or it cannot be.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process-id": process}
    if any(value is not None for value in given.values()):
        return _checked("the command line", given)
    names = ("SPECTRALMOE_COORDINATOR", "SPECTRALMOE_PROCESSES", "SPECTRALMOE_PROCESS_ID")
    if any(environment.get(name) for name in names):
        return _checked("SPECTRALMOE_COORDINATOR", {name: environment.get(name) for name in names})
    if int(environment.get("SLURM_NTASKS") or 1) > 1 and "SLURM_PROCID" in environment:
        return _of_slurm(environment)
    if "JOBSET_NAME" in environment and "JOB_COMPLETION_INDEX" in environment:
        return _of_jobset(environment)
    if _is_tpu_vm(environment):
        return Start("the TPU VM")
    return None


@contextlib.contextmanager
def joined(start: Start | None, time_limit: int = TIME_LIMIT) -> Iterator[None]:
    """All processes of the run together, while open; at once for a process alone.

    Leaving by an error does not wait for the others, which may wait for this process in turn: `left_behind`
    then says that it has to end at once.

    Raises:
      UserError: they did not meet within `time_limit` seconds; names where and what to look at.
      RunLost: a collective failed, as when another process died.
    """
    if start is None:
        yield
        return
    if start.coordinator is not None and start.process != 0:
        _await_coordinator(start, time_limit)
    try:
        jax.distributed.initialize(
            start.coordinator,
            start.processes,
            start.process,
            local_device_ids=start.local_devices,
            initialization_timeout=time_limit,
            heartbeat_timeout_seconds=_HEARTBEAT_LIMIT,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"the processes of the run did not meet within {time_limit} s ({start.found_by}: process "
            f"{start.process} of {start.processes}, coordinator {start.coordinator}): see that all were "
            f"started and reach that address; {_first_line(error)}"
        ) from None
    global _left_behind
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        _left_behind = True
        raise RunLost(
            f"process {jax.process_index()} cannot go on, another may have been lost "
            f"({_first_line(error)[:200]}): the same command on all hosts resumes from the last checkpoint"
        ) from error
    except BaseException:
        _left_behind = True
        raise
    jax.distributed.shutdown()


def left_behind() -> bool:
    """Whether this process left others that may wait for it, and must end without the usual farewell."""
    return _left_behind


def _checked(found_by: str, given: Mapping[str, str | int | None]) -> Start:
    missing = [name for name, value in given.items() if value in (None, "")]
    if missing:
        raise UserError(f"{', '.join(missing)} missing: give all of {', '.join(given)}, or none")
    address, processes, process = given.values()
    names = list(given)
    if not re.fullmatch(r"\S+:\d+", str(address)):
        raise UserError(f"{names[0]} = {address}: give HOST:PORT of process 0")
    try:
        processes, process = int(str(processes)), int(str(process))
    except ValueError:
        raise UserError(f"{names[1]} and {names[2]} have to be whole numbers") from None
    if not 0 <= process < processes:
        raise UserError(f"{names[2]} = {process}: processes are numbered from 0 to {processes - 1}")
    return Start(found_by, str(address), processes, process)


def _of_slurm(environment: Mapping[str, str]) -> Start:
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise UserError("SLURM_STEP_NODELIST is not set: start the processes by srun")
    # Jobs on one node must not meet at one port.
    port = 61000 + int(environment.get("SLURM_JOB_ID") or 0) % 4000
    return Start(
        "SLURM",
        f"{first_host(nodes)}:{port}",
        int(environment["SLURM_NTASKS"]),
        int(environment["SLURM_PROCID"]),
        _slurm_devices(environment),
    )


def first_host(nodes: str) -> str:
    """The first host of SLURM's list: `gpu[003-006,9],x1` -> `gpu003`."""
    first = re.match(r"([^\[,]+)(?:\[([^,\-\]]+)[^\]]*\])?([^,]*)", nodes)
    assert first is not None
    return first[1] + (first[2] or "") + first[3]


def _slurm_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """The share of a process in the devices that it sees, where several processes of a host see all of them.

    JAX by itself takes SLURM to start one process a device.
    """
    tasks = int(re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE") or "1")[0])  # type: ignore[index]
    visible = [device for device in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    if tasks == 1 or len(visible) < tasks:
        return None
    if len(visible) % tasks:
        raise UserError(
            f"SLURM starts {tasks} processes on a node with {len(visible)} GPUs: choose --ntasks-per-node "
            "that divides them"
        )
    share, local = len(visible) // tasks, int(environment.get("SLURM_LOCALID") or 0)
    return tuple(range(local * share, (local + 1) * share))


def _of_jobset(environment: Mapping[str, str]) -> Start | None:
    name, job = environment["JOBSET_NAME"], environment.get("REPLICATED_JOB_NAME", "workers")
    processes = int(environment.get("JOBSET_PROCESSES") or 1)
    if processes == 1:
        return None
    index = int(environment["JOB_COMPLETION_INDEX"])
    return Start("the JobSet", f"{name}-{job}-0-0.{name}:{PORT}", processes, index)


def _is_tpu_vm(environment: Mapping[str, str]) -> bool:
    """Whether this is one of several hosts of a TPU slice."""
    if "cpu" in environment.get("JAX_PLATFORMS", "") or not any(Path("/dev").glob("accel*")):
        return False
    hosts = environment.get("TPU_WORKER_HOSTNAMES")
    return hosts is None or "," in hosts


def _await_coordinator(start: Start, time_limit: int) -> None:
    """Returns as soon as process 0 listens; JAX's own wait for it ends without a word."""
    assert start.coordinator is not None
    host, _, port = start.coordinator.rpartition(":")
    until = time.monotonic() + time_limit
    problem: Exception | None = None
    while time.monotonic() < until:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            problem = error
            time.sleep(0.5)
        else:
            return
    raise UserError(
        f"process {start.process} of {start.processes} cannot reach the coordinator {start.coordinator} "
        f"({start.found_by}) within {time_limit} s: see that process 0 was started there and that the port "
        f"is open; {problem}"
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
