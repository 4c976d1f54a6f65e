"""The runs of a grid, one process each, side by side as far as there are devices."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple, Self

from spectralmoe_jax.ablation.grid import Cell
from spectralmoe_jax.ablation.run import (
    LOG,
    LOST,
    failure_of,
    forget_failure,
    is_done,
    record_failure,
)
from spectralmoe_jax.errors import require

_CACHE = "JAX_COMPILATION_CACHE_DIR"
_CACHED_FROM = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"  # 1, left alone: not the many small programs


class Share(NamedTuple):
    """What one of the processes that run at a time gets: its environment, and its CPU cores; None, all."""

    environment: dict[str, str]
    cores: frozenset[int] | None = None


def shares(side_by_side: int | None) -> list[Share]:
    """One entry for each process that runs at a time.

    GPUs are shared evenly: by default one a process. Without GPUs (a CPU, or a TPU, whose chips are not
    shared) a process has the machine to itself, unless more are asked for: then each has cores of its own,
    since threads of two runs that share cores wait for each other, and small models train hardly slower on
    one core.

    Raises UserError where so many cannot share the GPUs.
    """
    gpus = visible_gpus()
    count = max(1, len(gpus)) if side_by_side is None else side_by_side
    require(count > 0, "--side-by-side", f"is {count}: give 1 or more")
    if not gpus:
        return [Share({}, cores) for cores in _divided_cores(count)]
    require(len(gpus) % count == 0, "--side-by-side",
            f"is {count}, which cannot share {len(gpus)} GPUs evenly: choose a divisor, or hide some in "
            "CUDA_VISIBLE_DEVICES")  # fmt: skip
    share = len(gpus) // count
    return [
        Share({"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * share : (i + 1) * share])}) for i in range(count)
    ]


def _divided_cores(count: int) -> list[frozenset[int] | None]:
    """The cores that this process may use in `count` parts, or None where they cannot be divided."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if count == 1 or len(cores) < count:
        return [None] * count
    return [frozenset(cores[len(cores) * i // count : len(cores) * (i + 1) // count]) for i in range(count)]


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    asked = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    found = subprocess.run(asked, capture_output=True, text=True, check=False)
    return found.stdout.split() if found.returncode == 0 else []


def run_all(cells: Sequence[Cell], command: Sequence[str], slots: Sequence[Share]) -> bool:
    """Run those that are not done, a process each; one that fails does not stop the others.

    The first seed of every variant comes first: a whole, if rough, table early. The seeds that follow find
    the programs compiled, in a folder that the runs share and that is removed at the end.

    Args:
      command: to which `--task INDEX` is added for a run.
      slots: what each of those that run at a time gets.

    Returns: whether all were tried; False after SIGTERM, at which the running ones save and end.
    """
    waiting = [cell for cell in _by_seed(cells) if not is_done(cell)]
    if len(waiting) < len(cells):
        _say(f"{len(cells) - len(waiting)} of {len(cells)} runs are done already")
    running: dict[int, _Running] = {}
    with (
        _Stop() as stop,
        tempfile.TemporaryDirectory(prefix="spectralmoe_compiled_", ignore_cleanup_errors=True) as compiled,
    ):
        cache = {_CACHE: os.environ.get(_CACHE) or compiled, _CACHED_FROM: os.environ.get(_CACHED_FROM, "0")}
        while running or (waiting and not stop.requested):
            for slot, share in enumerate(slots):
                if slot not in running and waiting and not stop.requested:
                    running[slot] = _Running(waiting.pop(0), command, share, cache)
            for slot in list(running):
                if stop.requested:
                    running[slot].ask_to_stop()
                if running[slot].ended():
                    del running[slot]
            time.sleep(0.05)
        return not stop.requested


def _by_seed(cells: Sequence[Cell]) -> list[Cell]:
    """One seed of every variant after the other, in the grid's order of both."""
    seeds = list(dict.fromkeys(cell.seed for cell in cells))
    return sorted(cells, key=lambda cell: seeds.index(cell.seed))


class _Running:
    """The process of one run."""

    def __init__(self, cell: Cell, command: Sequence[str], share: Share, cache: dict[str, str]):
        cell.folder.mkdir(parents=True, exist_ok=True)
        forget_failure(cell)
        self._cell, self._asked, self._since = cell, False, time.monotonic()
        with (cell.folder / LOG).open("ab") as log, _on_cores(share.cores):
            # its standard input ends with this process: see `cell.end_with_parent`
            self._process = subprocess.Popen(
                [*command, "--task", str(cell.number), "--end-with-parent"],
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                env=os.environ | share.environment | cache,
            )  # fmt: skip
        _say(f"{_name(cell)}: started, log in {cell.folder / LOG}")

    def ask_to_stop(self) -> None:
        if not self._asked:
            self._process.send_signal(signal.SIGTERM)
        self._asked = True

    def ended(self) -> bool:
        """Whether it has; if so, says how, and records what it could not itself."""
        status = self._process.poll()
        if status is None:
            return False
        assert self._process.stdin is not None
        self._process.stdin.close()
        cell, seconds = self._cell, time.monotonic() - self._since
        if is_done(cell):
            _say(f"{_name(cell)}: done in {seconds:.0f} s")
        elif status == 0 or self._asked or status == LOST:
            _say(f"{_name(cell)}: interrupted; the same command goes on")
        else:
            if status < 0:
                record_failure(cell, f"killed by {signal.Signals(-status).name}")
            elif failure_of(cell) is None:
                record_failure(cell, _last_line(cell.folder / LOG) or f"ended with status {status}")
            _say(f"{_name(cell)}: failed: {failure_of(cell)}")
        return True


@contextlib.contextmanager
def _on_cores(cores: frozenset[int] | None) -> Iterator[None]:
    """A process that is started within inherits the `cores` of this thread."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _Stop:
    """Turns SIGTERM into a request."""

    requested = False

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _request(self, signum: int, frame: FrameType | None) -> None:
        self.requested = True


def _name(cell: Cell) -> str:
    return f"{cell.variant}, seed {cell.seed}"


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("error: ") if lines else ""


def own_command(arguments: Sequence[str]) -> list[str]:
    """This program in a process of its own."""
    return [sys.executable, "-m", "spectralmoe_jax", *arguments]


def _say(line: str) -> None:
    print(line, flush=True)
