"""Strict reading of the results of a grid, which may be damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.stored_files import NUMBER, OPTIONAL_NUMBER, has_form, read_form

RESULTS_FILE = "results.json"

_REMEDY = "`spectralmoe ablate` with --collect writes it anew"
_OVER_SEEDS = {"mean": OPTIONAL_NUMBER, "std": OPTIONAL_NUMBER, "runs": int}
_RUN = {
    "seed": int,
    "miou?": OPTIONAL_NUMBER,
    "mean_miou?": OPTIONAL_NUMBER,
    "held_out?": OPTIONAL_NUMBER,
    "overall_accuracy?": OPTIONAL_NUMBER,
    "iou?": {"*": OPTIONAL_NUMBER},
    "domains?": {"*": OPTIONAL_NUMBER},
    "trainable?": int,
    "error?": str,
}
_FORM = {
    "title": str,
    "base": str,
    "reference": str,
    "seeds": [int],
    "classes": [str],
    "images": int,
    "bootstrap": {"level": NUMBER, "over?": [str]},
    "variants": {
        "*": {
            "settings": dict,
            "runs": [_RUN],
            "miou": _OVER_SEEDS,
            "held_out?": {"mean": OPTIONAL_NUMBER},
            "iou": {"*": _OVER_SEEDS},
            "difference": (dict, type(None)),
        }
    },
}
_DIFFERENCE = {"mean": OPTIONAL_NUMBER, "interval": (list, type(None))}


def read_results(workdir: Path) -> dict[str, Any]:
    """Read the `results.json` of a grid's folder.

    Raises:
      UserError: it is damaged.
      OSError: it cannot be read.
    """
    path = workdir / RESULTS_FILE
    found = read_form(path, _FORM, _REMEDY)
    is_whole = found["reference"] in found["variants"] and all(
        _is_whole(variant) for variant in found["variants"].values()
    )
    if not is_whole:
        raise UserError(f"{path}: damaged, values are missing or of another kind: {_REMEDY}")
    return found


def _is_whole(variant: dict[str, Any]) -> bool:
    """Return whether scores that belong together are all there."""
    difference = variant["difference"]
    if difference:
        if not has_form(difference, _DIFFERENCE):
            return False
        interval = difference["interval"]
        if interval is not None and (len(interval) != 2 or not has_form(interval, [OPTIONAL_NUMBER])):
            return False
    done = [run for run in variant["runs"] if "miou" in run]
    return all("trainable" in run and "domains" in run for run in done)
