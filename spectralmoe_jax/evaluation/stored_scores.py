"""Scores of a run's best checkpoint, as its folder keeps them: written with a checksum, read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.metrics import read_images
from spectralmoe_jax.evaluation.score_table import without_nan, write_report
from spectralmoe_jax.inference.pictures import read_pictures
from spectralmoe_jax.stored_files import NUMBER, OPTIONAL_NUMBER, read_form, with_checksum

EVALUATION_FILE, IMAGES_FILE = "evaluation.json", "evaluation.npz"

_REMEDY = "remove it, and `spectralmoe report` makes it anew"
_OF_CLASSES = {"*": OPTIONAL_NUMBER}
_SCORES = {
    "miou": OPTIONAL_NUMBER,
    "overall_accuracy": OPTIONAL_NUMBER,
    "kappa?": OPTIONAL_NUMBER,
    "iou": _OF_CLASSES,
    "accuracy": _OF_CLASSES,
    "f1?": _OF_CLASSES,
    "boundary_iou?": _OF_CLASSES,
    "confusion": [[int]],
}
_FORM = {
    "classes": [str],
    "images": int,
    "miou": OPTIONAL_NUMBER,
    "mean_miou": OPTIONAL_NUMBER,
    "all": _SCORES,
    "domains": {"*": _SCORES},
    "routing?": [{"layer": int, "modality": str, "nmi": OPTIONAL_NUMBER, "counts": [[NUMBER]]}],
    "reliability?": [
        {
            "temperature": NUMBER,
            "expected_calibration_error": OPTIONAL_NUMBER,
            "brier": OPTIONAL_NUMBER,
            "pixels": [NUMBER],
            "confidence": [OPTIONAL_NUMBER],
            "accuracy": [OPTIONAL_NUMBER],
        }
    ],
    "trainable": int,
    "step": (int, type(None)),
    "trained?": (int, type(None)),
    "complete?": bool,
}
_BY_CLASS = ("iou", "accuracy", "f1", "boundary_iou")


def write_evaluation(report: dict[str, Any], workdir: Path) -> None:
    """Write the scores of a run's best checkpoint; see `evaluate.evaluate_best_checkpoint`."""
    write_report(with_checksum(without_nan(report)), workdir / EVALUATION_FILE)


def read_evaluation(workdir: Path) -> dict[str, Any] | None:
    """Read what `write_evaluation` wrote; None if there is nothing.

    Raises:
      UserError: it is damaged.
    """
    path = workdir / EVALUATION_FILE
    if not path.is_file():
        return None
    found = read_form(path, _FORM, _REMEDY)
    if not _is_consistent(found):
        raise UserError(f"{path}: damaged, its scores are of other classes than it names: {_REMEDY}")
    return found


def _is_consistent(evaluation: dict[str, Any]) -> bool:
    """Return whether all scores are of the same classes, and lists that belong together equally long."""
    names = evaluation["classes"]
    for scores in (evaluation["all"], *evaluation["domains"].values()):
        if any(set(scores[key]) != set(names) for key in _BY_CLASS if key in scores):
            return False
        if np.shape(_square(scores["confusion"])) != (len(names), len(names)):
            return False
    routing = evaluation.get("routing", ())
    if any(_columns(entry["counts"]) != len(names) or entry["layer"] < 1 for entry in routing):
        return False
    lists = ("pixels", "confidence", "accuracy")
    return all(len({len(entry[key]) for key in lists}) == 1 for entry in evaluation.get("reliability", ()))


def _square(rows: list[list[int]]) -> list[list[int]]:
    return rows if len({len(row) for row in rows}) == 1 else []


def _columns(rows: list[list[float]]) -> int | None:
    """Return the number of columns of a table; None if it is none."""
    lengths = {len(row) for row in rows}
    return lengths.pop() if len(lengths) == 1 else None


def damage_to_evaluation(workdir: Path) -> str | None:
    """Return in one line what is wrong with the stored evaluation of a run; None if it is whole or not there.

    All of it can be made anew from the checkpoint.
    """
    try:
        read_evaluation(workdir)
        read_pictures(workdir)
        if (workdir / IMAGES_FILE).is_file():
            read_images(workdir / IMAGES_FILE)
    except UserError as problem:
        return str(problem)
    return None
