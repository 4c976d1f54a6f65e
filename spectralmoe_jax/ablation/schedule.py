"""Runs of a grid as processes, as many at a time as there are devices."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple, Self

from spectralmoe_jax.ablation.grid import GridRun
from spectralmoe_jax.ablation.run import (
    LOG_FILE,
    PARENT_LOST,
    failure_of,
    forget_failure,
    is_done,
    record_failure,
)
from spectralmoe_jax.errors import bad_value
from spectralmoe_jax.escapes import printable
from spectralmoe_jax.part_files import scratch_folder

_CACHE = "JAX_COMPILATION_CACHE_DIR"
_CACHED_FROM = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"  # JAX's default of 1 would skip small programs
_LONGEST_QUERY = 20  # seconds


def run_all(runs: Sequence[GridRun], command: Sequence[str], shares: Sequence[Share]) -> bool:
    """Run those that are not done, each in its own process; one that fails does not stop the others.

    The first seed of every variant comes first, so that a rough but complete table is there early. Later
    seeds find their programs compiled, in a folder that the runs share and that is removed at the end.

    Args:
      runs: runs of a grid.
      command: of this program; `--task INDEX` is added for each run.
      shares: resources of each of the processes that run at a time.

    Returns:
      True if all were tried; False after SIGTERM, upon which the running ones save and end.
    """
    waiting = [run for run in _by_seed(runs) if not is_done(run)]
    if len(waiting) < len(runs):
        _print(f"{len(runs) - len(waiting)} of {len(runs)} runs are done already")
    running: dict[int, _Process] = {}
    with (
        _StopRequest() as stop,
        scratch_folder() as compiled,
    ):
        cache = {
            _CACHE: os.environ.get(_CACHE) or str(compiled),
            _CACHED_FROM: os.environ.get(_CACHED_FROM, "0"),
        }
        while running or (waiting and not stop.requested):
            for slot, share in enumerate(shares):
                if slot not in running and waiting and not stop.requested:
                    running[slot] = _Process(waiting.pop(0), command, share, cache)
            for slot in list(running):
                if stop.requested:
                    running[slot].ask_to_stop()
                if running[slot].ended():
                    del running[slot]
            time.sleep(0.05)
        return not stop.requested


def _by_seed(runs: Sequence[GridRun]) -> list[GridRun]:
    """Sort by seed, then in the grid's order of variants."""
    seeds = list(dict.fromkeys(run.seed for run in runs))
    return sorted(runs, key=lambda run: seeds.index(run.seed))


class _Process:
    """The process of one run."""

    def __init__(self, run: GridRun, command: Sequence[str], share: Share, cache: dict[str, str]):
        run.folder.mkdir(parents=True, exist_ok=True)
        forget_failure(run)
        self._run, self._asked, self._since = run, False, time.monotonic()
        with (run.folder / LOG_FILE).open("ab") as log, _on_cores(share.cores):
            # its standard input ends with this process: see `run.end_with_parent`
            self._process = subprocess.Popen(
                [*command, "--task", str(run.number), "--end-with-parent"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | share.environment | cache,
            )
        _print(f"{run.name}: started, log in {run.folder / LOG_FILE}")

    def ask_to_stop(self) -> None:
        """Send SIGTERM, once."""
        if not self._asked:
            self._process.send_signal(signal.SIGTERM)
        self._asked = True

    def ended(self) -> bool:
        """Return whether it has ended; if so, print how, and record a failure that it could not record."""
        status = self._process.poll()
        if status is None:
            return False
        assert self._process.stdin is not None
        self._process.stdin.close()
        run, seconds = self._run, time.monotonic() - self._since
        if is_done(run):
            _print(f"{run.name}: done in {seconds:.0f} s")
        elif status == 0 or self._asked or status == PARENT_LOST:
            _print(f"{run.name}: interrupted; the same command resumes it")
        else:
            if status < 0:
                record_failure(run, f"killed by {signal.Signals(-status).name}")
            elif failure_of(run) is None:
                record_failure(run, _last_line(run.folder / LOG_FILE) or f"ended with status {status}")
            _print(f"{run.name}: failed: {failure_of(run)}")
        return True


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("error: ") if lines else ""


class _StopRequest:
    """SIGTERM as a flag."""

    requested = False

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True


class Share(NamedTuple):
    """Resources of one of the processes that run at a time.

    Attributes:
      environment: variables that name its devices.
      cores: its CPU cores; None for all.
    """

    environment: dict[str, str]
    cores: frozenset[int] | None = None


def divide_devices(side_by_side: int | None) -> list[Share]:
    """Divide the devices among the processes that run at a time.

    GPUs are shared evenly. Without GPUs (a CPU, or a TPU, whose chips are not shared) a process has the whole
    machine, unless more are asked for: then each has its own cores, as threads of two runs that share cores
    wait for each other, and small models train hardly slower on one core.

    Args:
      side_by_side: number of processes; None for one for each GPU, or one.

    Raises:
      UserError: the GPUs cannot be divided evenly.
    """
    gpus = visible_gpus()
    count = max(1, len(gpus)) if side_by_side is None else side_by_side
    if count < 1:
        raise bad_value("--side-by-side", count, "must be at least 1")
    if not gpus:
        return [Share({}, cores) for cores in _divided_cores(count)]
    if len(gpus) % count:
        must = f"must be a divisor of the {len(gpus)} GPUs; or hide some of them in CUDA_VISIBLE_DEVICES"
        raise bad_value("--side-by-side", count, must)
    size = len(gpus) // count
    return [Share({"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * size : (i + 1) * size])}) for i in range(count)]


def _divided_cores(count: int) -> list[frozenset[int] | None]:
    """Divide the cores that this process may use; None for each where they cannot be divided."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if count == 1 or len(cores) < count:
        return [None] * count
    return [frozenset(cores[len(cores) * i // count : len(cores) * (i + 1) // count]) for i in range(count)]


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=False, timeout=_LONGEST_QUERY)
    except (OSError, subprocess.TimeoutExpired):  # of a broken driver
        return []
    return found.stdout.split() if found.returncode == 0 else []


@contextlib.contextmanager
def _on_cores(cores: frozenset[int] | None) -> Iterator[None]:
    """Restrict this thread to `cores` inside the block; a process started there inherits them."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def own_command(arguments: Sequence[str]) -> list[str]:
    """Return the command that runs this program in a process of its own."""
    return [sys.executable, "-m", "spectralmoe_jax", *arguments]


def _print(line: str) -> None:
    print(printable(line), flush=True)
