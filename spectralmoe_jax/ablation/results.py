"""From the runs of a grid to `results.json`: nothing in it depends on when, where or how often they ran."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spectralmoe_jax.ablation.bootstrap import LEVEL, RESAMPLES, mean_iou, paired_interval
from spectralmoe_jax.ablation.cell import ATTEMPTS, failure_of, is_done
from spectralmoe_jax.ablation.grid import Cell, Grid
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.judged import EVALUATION, IMAGES
from spectralmoe_jax.evaluation.tally import ImageCounts, read_images

Results = dict[str, Any]


def collect(grid: Grid, cells: Sequence[Cell]) -> Results:
    """The scores of a grid as far as its runs are done.

    Returns: JSON values. For each variant its settings, its runs (`seed` with scores, or `error`, or neither
    where it has not run), mean and sample standard deviation of `miou` and of each class's IoU over the
    seeds, and `difference` to the reference: the mean over the seeds that both have, and the paired
    bootstrap interval over the target's images.

    Raises UserError where runs were evaluated on different images.
    """
    runs = {(cell.variant, cell.seed): _run(cell) for cell in cells}
    images = {(c.variant, c.seed): read_images(c.folder / IMAGES) for c in cells if is_done(c)}
    classes: list[str] = next((list(run["iou"]) for run in runs.values() if "iou" in run), [])
    variants = {}
    for name in grid.variants:
        own = [runs[name, seed] for seed in grid.seeds]
        variants[name] = {
            "settings": {key: _plain(value) for key, value in grid.variants[name].items()},
            "runs": own,
            "miou": _over_seeds([run.get("miou") for run in own]),
            "iou": {each: _over_seeds([run.get("iou", {}).get(each) for run in own]) for each in classes},
            "difference": _difference(grid, name, images) if name != grid.reference else None,
        }
    return {
        "title": grid.title,
        "base": grid.base,
        "reference": grid.reference,
        "seeds": list(grid.seeds),
        "classes": classes,
        "images": max((len(found) for found in images.values()), default=0),
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL},
        "variants": variants,
    }


def _run(cell: Cell) -> Results:
    if not is_done(cell):
        error = failure_of(cell)
        return {"seed": cell.seed} | ({} if error is None else {"error": error})
    stored = json.loads((cell.folder / EVALUATION).read_text())
    return {
        "seed": cell.seed,
        "miou": stored["miou"],
        "mean_miou": stored["mean_miou"],
        "overall_accuracy": stored["all"]["overall_accuracy"],
        "iou": stored["all"]["iou"],
        "domains": {name: scores["miou"] for name, scores in stored["domains"].items()},
        "trainable": stored["trainable"],
        "step": stored["step"],
        "nmi": [
            {key: entry[key] for key in ("layer", "modality", "nmi")} for entry in stored.get("routing", ())
        ],
    }


def _over_seeds(values: Sequence[float | None]) -> Results:
    """Mean and sample standard deviation of what is there; None where that takes more."""
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "runs": len(known),
    }


def _difference(grid: Grid, name: str, images: dict[tuple[str, int], list[ImageCounts]]) -> Results | None:
    seeds = [s for s in grid.seeds if (name, s) in images and (grid.reference, s) in images]
    if not seeds:
        return None
    ours, theirs = ([images[variant, seed] for seed in seeds] for variant in (name, grid.reference))
    for one, other in zip(ours, theirs, strict=True):
        if [image[:2] for image in one] != [image[:2] for image in other]:
            raise UserError(
                f"{name!r} and {grid.reference!r} were evaluated on different images of the target"
            )
    stacked = [[np.stack([image.counts for image in run]) for run in side] for side in (ours, theirs)]
    by_seed = [
        float(mean_iou(one.sum(axis=0)) - mean_iou(other.sum(axis=0)))
        for one, other in zip(*stacked, strict=True)
    ]
    interval = paired_interval(*stacked)
    return {
        "mean": _known(float(np.mean(by_seed))),
        "by_seed": [_known(value) for value in by_seed],
        "interval": None if interval is None else [_known(value) for value in interval],
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _plain(value: Any) -> Any:
    """A setting as JSON has it."""
    return dict(value) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else value


def timings(cells: Sequence[Cell]) -> Results:
    """Wall seconds from the last start of every run to its end, how often it was started, and where."""
    found = {}
    for cell in cells:
        path: Path = cell.folder / ATTEMPTS
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        starts = [line for line in lines if line["what"] == "started"]
        ends = [line for line in lines if line["what"] == "done"]
        if starts:
            found[f"{cell.variant}, seed {cell.seed}"] = {
                "seconds": round(ends[-1]["time"] - starts[-1]["time"], 1) if ends else None,
                "starts": len(starts),
                "host": starts[-1]["host"],
                "processors": starts[-1]["processors"],
            }
    return found
