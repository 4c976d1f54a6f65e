"""One run of a grid: trained, evaluated on the target, and recorded in its folder.

config.json, checkpoints/, metrics.jsonl, ...   written by `spectralmoe train`
evaluation.json, evaluation.npz                 scores, and the confusion matrix of every image
pictures.npz                                    pictures for the report
failure.json                                    why it failed last, until it is done
attempts.jsonl                                  when it was started and done; no other file records time
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spectralmoe_jax.ablation.grid import GridRun
from spectralmoe_jax.checkpoints.store import describe_differences
from spectralmoe_jax.config.load import CONFIG_FILE, flatten, read_run_given
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.evaluate import evaluate_best_checkpoint, is_complete, read_evaluation
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.training.train import train

FAILURE_FILE, ATTEMPTS_FILE, LOG_FILE = "failure.json", "attempts.jsonl", "log.txt"
PARENT_LOST = 75
"""Exit status of a run whose parent process is gone."""

_LOCK_FILE = ".running"
_LOCK_SECONDS = 20.0
# Settings that may change between two starts of a grid: where data is and how fast it is read, how the same
# function is computed, and what the files state.
_MAY_CHANGE = (
    "data.root",
    "data.workers",
    "data.threads",
    "data.cache_bytes",
    "stated_wavelengths",
    "stated_acquisition",
    "stated_values",
    "data.check_values",
    "parallel",
    "model.remat",
    "model.adapter.strategy",
)


def execute(run: GridRun) -> bool:
    """Train and evaluate one run, or resume it where it was interrupted.

    Returns:
      True if it is done; False if it was asked to stop, and saved.

    Raises:
      UserError: the folder holds a run of other settings, or another process works on it.
      Exception: whatever training or evaluation raises; it is also recorded in the folder.
    """
    check_folder(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    with _locked(run.folder):
        if is_done(run):
            return True
        forget_failure(run)
        _record_attempt(run, "started")
        try:
            done = _train_and_evaluate(run)
        except Exception as problem:
            if not isinstance(problem, UserError):
                traceback.print_exc()
            record_failure(run, _one_line(problem))
            raise
        if done:
            _record_attempt(run, "done")
        return done


def _train_and_evaluate(run: GridRun) -> bool:
    train(run.config, run.folder)
    if not is_complete(run.folder, run.config):
        return False
    evaluate_best_checkpoint(run.folder, run.config)
    return True


def is_done(run: GridRun) -> bool:
    """Return whether a run has scores, which are written last, after the whole of its training.

    `spectralmoe report` may have evaluated a run that was not trained to its end.
    """
    evaluation = read_evaluation(run.folder)
    if evaluation is None:
        return False
    return evaluation.get("complete", False) or evaluation.get("trained", 0) >= run.config.train.steps


def check_folder(run: GridRun) -> None:
    """Check that a run's folder is empty or its own: a grid never mixes two.

    Raises:
      UserError: the folder holds a run of other settings.
    """
    if not (run.folder / CONFIG_FILE).exists():
        return
    there, here = (_fixed(flatten(given)) for given in (read_run_given(run.folder), run.config.given))
    if differing := describe_differences(there, here):
        raise UserError(f"{run.folder} holds a run of other settings: {differing}; choose another --workdir")


def _fixed(flat: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in flat.items()
        if not any(key == free or key.startswith(f"{free}.") for free in _MAY_CHANGE)
    }


def failure_of(run: GridRun) -> str | None:
    """Return in one line why a run failed when it was last tried, or None."""
    try:
        return json.loads((run.folder / FAILURE_FILE).read_text())["error"]
    except FileNotFoundError:
        return None


def record_failure(run: GridRun, error: str) -> None:
    """Record why a run failed, for the tables."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_json({"error": error}, run.folder / FAILURE_FILE)


def forget_failure(run: GridRun) -> None:
    """Remove the record of an earlier failure before a new attempt."""
    (run.folder / FAILURE_FILE).unlink(missing_ok=True)


def _one_line(problem: BaseException) -> str:
    text = " ".join(str(problem).split())
    return text if isinstance(problem, UserError) else f"{type(problem).__name__}: {text}"


def _record_attempt(run: GridRun, what: str) -> None:
    """Append to the run's times."""
    line = {"what": what, "time": time.time(), "host": platform.node(), "processors": os.cpu_count()}
    with (run.folder / ATTEMPTS_FILE).open("a") as file:
        file.write(json.dumps(line) + "\n")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; it ends with its process, however that ends.

    A run left over from a killed grid is about to end (see `end_with_parent`), so its lock is waited for.

    Raises:
      UserError: another process holds the lock.
    """
    with (folder / _LOCK_FILE).open("w") as file:
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise UserError(f"{folder}: another process is at this run") from None
                time.sleep(0.1)
        yield


def end_with_parent() -> None:
    """End this process as soon as its standard input ends: a killed parent's pipe does at once.

    Otherwise a run would continue after its grid was killed, beside the one that the next start makes.
    """

    def watch() -> None:
        """Wait for the end of standard input, then exit."""
        while os.read(0, 1024):  # os.read, as sys.stdin would be locked at the interpreter's end
            pass
        os._exit(PARENT_LOST)

    threading.Thread(target=watch, daemon=True).start()


def write_json(value: Any, path: Path) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(value, indent=2) + "\n")
