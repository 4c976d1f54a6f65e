"""One run of a grid: trained, evaluated on the target, and what is left in its folder.

config.json, checkpoints/, metrics.jsonl, ...   of `spectralmoe train`
evaluation.json, evaluation.npz                 scores, and the confusion matrix of every image
pictures.npz                                    what the report shows
failure.json                                    why it failed, until it is done
attempts.jsonl                                  when it was started and done; nothing else tells of time
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

from spectralmoe_jax.ablation.grid import Cell
from spectralmoe_jax.checkpoints.store import describe_differences
from spectralmoe_jax.config.load import CONFIG_FILE, flatten, read_run_given
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.best_checkpoint import read_evaluation
from spectralmoe_jax.files import atomic_write

FAILURE, ATTEMPTS, LOG = "failure.json", "attempts.jsonl", "log.txt"
LOST = 75  # exit status: another process was lost
_LOCK = ".running"
_LOCK_SECONDS = 20.0
# Where data lies and how fast it is read may change between the starts of a grid, and files may state more.
_FREE = ("data.root", "data.workers", "data.threads", "data.cache_bytes", "stated_wavelengths", "parallel",
         "model.remat", "model.adapter.strategy")  # fmt: skip


def is_done(cell: Cell) -> bool:
    """Whether its scores are there, which are written last, and are those of the whole training.

    `spectralmoe report` may have judged a run that was not trained to its end.
    """
    judged = read_evaluation(cell.folder)
    return judged is not None and judged.get("trained", 0) >= cell.config.train.steps


def failure_of(cell: Cell) -> str | None:
    """Why it failed when it was last tried, in one line, or None."""
    try:
        return json.loads((cell.folder / FAILURE).read_text())["error"]
    except FileNotFoundError:
        return None


def check_folder(cell: Cell) -> None:
    """Raises UserError where the folder holds a run of other settings: a grid never mixes two."""
    if not (cell.folder / CONFIG_FILE).exists():
        return
    there, here = (_fixed(flatten(given)) for given in (read_run_given(cell.folder), cell.config.given))
    if differing := describe_differences(there, here):
        raise UserError(f"{cell.folder} holds a run of other settings: {differing}; choose another --workdir")


def _fixed(flat: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in flat.items() if not any(k == free or k.startswith(f"{free}.") for free in _FREE)}


def run_cell(cell: Cell) -> bool:
    """Train and evaluate one run, or go on where it was interrupted.

    Returns: whether it is done; False where it was asked to stop and saved.

    Raises UserError where the folder is another run's or another process is at it; and whatever the run
    raises, which is also recorded.
    """
    check_folder(cell)
    cell.folder.mkdir(parents=True, exist_ok=True)
    with _locked(cell.folder):
        if is_done(cell):
            return True
        forget_failure(cell)
        _note(cell, "started")
        try:
            done = _run(cell)
        except Exception as problem:
            if not isinstance(problem, UserError):
                traceback.print_exc()
            record_failure(cell, _one_line(problem))
            raise
        if done:
            _note(cell, "done")
        return done


def _run(cell: Cell) -> bool:
    from spectralmoe_jax.evaluation.best_checkpoint import evaluate_best_checkpoint
    from spectralmoe_jax.training.train import train

    result = train(cell.config, cell.folder)
    if result["step"] < cell.config.train.steps:
        return False
    evaluate_best_checkpoint(cell.folder, cell.config)
    return True


def forget_failure(cell: Cell) -> None:
    """What it failed of before is not what it fails of now."""
    (cell.folder / FAILURE).unlink(missing_ok=True)


def record_failure(cell: Cell, error: str) -> None:
    """Note why a run failed, for the tables."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    write_json({"error": error}, cell.folder / FAILURE)


def _one_line(problem: BaseException) -> str:
    text = " ".join(str(problem).split())
    return text if isinstance(problem, UserError) else f"{type(problem).__name__}: {text}"


def _note(cell: Cell, what: str) -> None:
    """Appends to the run's times."""
    line = {"what": what, "time": time.time(), "host": platform.node(), "processors": os.cpu_count()}
    with (cell.folder / ATTEMPTS).open("a") as file:
        file.write(json.dumps(line) + "\n")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone at a folder; a lock ends with its process, however that ends.

    One that was left by a grid that was killed is about to end (see `end_with_parent`) and is waited for.
    """
    with (folder / _LOCK).open("w") as file:
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
    """End this process as soon as its standard input does, which a killed parent's pipe does at once.

    Without it a run would go on after its grid was killed, beside the one that the next start makes.
    """

    def watch() -> None:
        while os.read(0, 1024):  # sys.stdin would be locked at the interpreter's end
            pass
        os._exit(LOST)

    threading.Thread(target=watch, daemon=True).start()


def write_json(value: Any, path: Path) -> None:
    """Whole or not at all."""
    with atomic_write(path) as aside:
        aside.write_text(json.dumps(value, indent=2) + "\n")
