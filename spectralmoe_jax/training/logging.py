"""Records of a training run: metrics on disk, a heartbeat file and progress lines.

`MetricsLog` writes `metrics.jsonl` (one JSON object per line) and TensorBoard events. `Heartbeat` keeps a
small file for an external watchdog. `ProgressReport` prints a live line on a terminal and plain lines
elsewhere.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from spectralmoe_jax.escapes import plain
from spectralmoe_jax.files import atomic_write, naming_file, require_ordinary
from spectralmoe_jax.stored_files import OPTIONAL_NUMBER, has_form
from spectralmoe_jax.training.tensorboard import EventFile
from spectralmoe_jax.training.trackers import Trackers

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
HEARTBEAT_FOLDER = "heartbeat"
HEARTBEAT_SECONDS = 10.0
_LONGEST_LINE = 1 << 22  # bytes


def read_metrics(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the records of a run's `metrics.jsonl` by kind; none if there is no file.

    Damaged lines are left out, which a warning says; a killed run may leave its last line unfinished.
    """
    metrics: dict[str, list[dict[str, Any]]] = {}
    for record in read_lines(folder / METRICS_FILE, _is_record):
        metrics.setdefault(record["kind"], []).append(record)
    return metrics


def read_lines(path: Path, is_sound: Callable[[Any], bool]) -> list[Any]:
    """Read a file of one JSON object a line; none if there is no file.

    Damaged lines are left out, which a warning says.

    Args:
      path: the file.
      is_sound: whether an object is one of those that the file should hold.
    """
    return [value for _, value in _lines_of(path, is_sound)]


def _lines_of(path: Path, is_sound: Callable[[Any], bool]) -> list[tuple[bytes, Any]]:
    """Return the sound lines of a file with their objects; see `read_lines`."""
    if not path.exists():
        return []
    require_ordinary(path, "remove it, and the run begins a new one")
    found, damaged = [], []
    number, is_inside = 1, False  # whether the part before ended inside a line
    with path.open("rb") as file:
        while part := file.readline(_LONGEST_LINE):
            is_ended = part.endswith(b"\n")
            is_whole = not is_inside and (is_ended or len(part) < _LONGEST_LINE)
            line = part.rstrip(b"\n")
            value = _value_of(line) if is_whole else None
            if value is not None and is_sound(value):
                found.append((line, value))
            elif line.strip() and not is_inside and (is_ended or not is_whole):
                damaged.append(number)  # but not if unfinished, as a killed run leaves the last one
            is_inside = not is_ended
            number += is_ended
    if damaged:
        log.warning("%s: line %d is damaged and left out (%d of its lines)", path, damaged[0], len(damaged))
    return found


def _value_of(line: bytes) -> Any:
    """Return the value of a line; None if it is damaged."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_record(value: Any) -> bool:
    """Return whether a value is a record as `MetricsLog` writes it."""
    if not has_form(value, {"step": int, "kind": str}):
        return False
    rest = [item for key, item in value.items() if key not in ("step", "kind")]
    return all(has_form(item, OPTIONAL_NUMBER) or _is_array(item) for item in rest)


def _is_array(value: Any) -> bool:
    """Return whether nested lists are an array of numbers."""
    try:
        return isinstance(value, list) and np.array(value).dtype.kind in "if"
    except (ValueError, OverflowError, RecursionError):
        return False


class MetricsLog:
    """Metrics by step, appended to `metrics.jsonl` and TensorBoard.

    After a resume the file has one record for each step and kind.

    Args:
      workdir: the run's folder; must exist.
      step: the step the run starts from. Records of later steps, left by a run that was killed after its last
        checkpoint, are dropped.
      silent: write nothing, as on all hosts but the first.
      trackers: further readers of the numbers, or None.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        step: int,
        silent: bool = False,
        trackers: Trackers | None = None,
    ):
        self._silent, self._trackers = silent, trackers
        if silent:
            return
        path = Path(workdir) / METRICS_FILE
        self._dropped = _drop_records_after(path, step)
        self._file = path.open("a", encoding="utf-8")
        self._tensorboard = EventFile(Path(workdir) / TENSORBOARD_FOLDER, purge_step=step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._silent:
            return
        try:
            with naming_file(self._file.name):  # closing flushes what a full disk refused before
                self._file.close()
        finally:
            self._tensorboard.close()

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Write one record `{"step": ..., "kind": ..., **values}`; a non-finite value becomes null.

        Raises:
          OSError: the file cannot be written; has the file's name.
        """
        if self._silent:
            return
        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._append({"step": step, "kind": kind, **finite})
        self._tensorboard.add(step, {f"{kind}/{name}": value for name, value in numbers.items()})
        if self._trackers is not None:
            self._trackers.log(step, kind, numbers, was_sent=(step, kind) in self._dropped)

    def write_arrays(self, step: int, kind: str, values: Mapping[str, np.ndarray]) -> None:
        """Write one record of nested lists, rounded to four decimals, to the file; none without values.

        Raises:
          OSError: the file cannot be written; has the file's name.
        """
        if self._silent or not values:
            return
        rounded = {
            name: np.round(np.asarray(value, np.float64), 4).tolist() for name, value in values.items()
        }
        self._append({"step": step, "kind": kind, **rounded})

    def _append(self, record: Mapping[str, Any]) -> None:
        with naming_file(self._file.name):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()


def _drop_records_after(path: Path, step: int) -> set[tuple[int, str]]:
    """Drop records beyond `step`, and damaged lines, such as a last one that a killed run left unfinished.

    Returns:
      Step and kind of the whole records among them.
    """
    if not path.exists():
        return set()
    records = _lines_of(path, lambda value: has_form(value, {"step": int, "kind": str}))
    with atomic_write(path) as aside:
        aside.write_bytes(b"".join(line + b"\n" for line, value in records if value["step"] <= step))
    return {(value["step"], value["kind"]) for _, value in records if value["step"] > step}


class Heartbeat:
    """Heartbeat file for an external watchdog; collectives hang forever if a host dies.

    `WORKDIR/heartbeat/PROCESS.json` holds this process's step, time (seconds since 1970), host and pid. It is
    renewed when training starts and then after steps, at most once every `HEARTBEAT_SECONDS`. It is removed
    when training ends, unless the process is killed: an old file means a stuck or dead process.
    """

    def __init__(self, workdir: str | os.PathLike[str]):
        self.path = Path(workdir) / HEARTBEAT_FOLDER / f"{jax.process_index()}.json"
        self._next = 0.0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.beat(None)
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)

    def beat(self, step: int | None) -> None:
        """Renew the file if it is due; `step` is the last step done, None before the first."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + HEARTBEAT_SECONDS
        state = {"step": step, "time": time.time(), "host": os.uname().nodename, "pid": os.getpid()}
        with naming_file(self.path), atomic_write(self.path) as aside:
            aside.write_text(json.dumps(state) + "\n", encoding="utf-8")


class ProgressReport:
    """Progress on the console: step, loss, images per second and time left.

    Args:
      start: step the run starts from.
      steps: step it ends at.
      batch_size: images per step.
      console: where to write; standard output by default.
      silent: write nothing, as on all hosts but the first.
    """

    def __init__(
        self, start: int, steps: int, batch_size: int, console: Console | None = None, silent: bool = False
    ):
        self._console = console or Console(highlight=False, soft_wrap=True, quiet=silent)
        self._steps, self._batch_size = steps, batch_size
        self._at, self._since = start, time.monotonic()
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=silent or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("compiling", total=steps, completed=start)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Move the live line; print nothing off a terminal."""
        self._bar.update(self._task, completed=step)

    def report(self, step: int, metrics: Mapping[str, float]) -> float:
        """Show a step's loss; return images per second since the last report or restart of the clock."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        rate = (step - self._at) / seconds
        text = f"loss {metrics['loss']:.4f}  {rate * self._batch_size:.1f} images/s"
        self._bar.update(self._task, completed=step, description=text)
        if not self._console.is_terminal:
            left = int((self._steps - step) / rate) if rate else 0
            minutes, clock = divmod(left, 60)
            hours, minutes = divmod(minutes, 60)
            self.print(f"step {step}/{self._steps}  {text}  left {hours}:{minutes:02d}:{clock:02d}")
        self.restart_clock(step)
        return rate * self._batch_size

    def restart_clock(self, step: int) -> None:
        """Restart the clock, so that an evaluation does not count as training time."""
        self._at, self._since = step, time.monotonic()

    def print(self, line: str) -> None:
        """Print one line, above the live one on a terminal."""
        self._console.print(plain(line))
