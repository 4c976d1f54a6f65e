"""One run of a grid: trained, evaluated on the target, and recorded in its folder.

config.json, checkpoints/, metrics.jsonl, ...   written by `spectralmoe train`
evaluation.json, evaluation.npz                 scores, and the confusion matrix of every image
pictures.npz                                    pictures for the report
failure.json                                    why it failed last, until it is done
attempts.jsonl                                  when it was started and done; no other file records time
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from spectralmoe_jax.ablation.grid import GridRun
from spectralmoe_jax.checkpoints.same_model import describe_differences
from spectralmoe_jax.config.given import flatten
from spectralmoe_jax.config.stored import CONFIG_FILE, read_run_given
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.evaluate import evaluate_best_checkpoint, is_complete
from spectralmoe_jax.evaluation.stored_scores import damage_to_evaluation, read_evaluation
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.one_writer import one_writer
from spectralmoe_jax.stored_files import read_form
from spectralmoe_jax.training.train import train

log = logging.getLogger(__name__)

FAILURE_FILE, ATTEMPTS_FILE, LOG_FILE = "failure.json", "attempts.jsonl", "log.txt"
PARENT_LOST = 75
"""Exit status of a run whose parent process is gone."""

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
    # a run left over from a killed grid is about to end, see `end_with_parent`
    with one_writer(run.folder, "trains", _LOCK_SECONDS):
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

    `spectralmoe report` may have evaluated a run that was not trained to its end. An evaluation that is
    damaged does not count: it is made anew.
    """
    if problem := damage_to_evaluation(run.folder):
        log.warning("%s", problem)
        return False
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
    path = run.folder / FAILURE_FILE
    try:
        return read_form(path, {"error": str}, "the run is tried again")["error"]
    except FileNotFoundError:
        return None
    except UserError as problem:  # of a record that the next attempt replaces
        return str(problem)


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
    with (run.folder / ATTEMPTS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


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
        aside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
