"""From the runs of a grid to `results.json`: nothing in it depends on when, where or how often they ran.

How far a difference between two variants may be chance of the images: the paired bootstrap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spectralmoe_jax.ablation.grid import Cell, Grid
from spectralmoe_jax.ablation.run import ATTEMPTS, failure_of, is_done
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.best_checkpoint import EVALUATION, IMAGES
from spectralmoe_jax.evaluation.metrics import ImageCounts, read_images

RESAMPLES = 2000
LEVEL = 0.95


def paired_interval(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], *, resamples: int = RESAMPLES,
                    level: float = LEVEL, seed: int = 0) -> tuple[float, float] | None:  # fmt: skip
    """Percentile interval of a difference in mIoU under images drawn anew (Efron 1979).

    Both variants see the same images in a draw, and all runs do: what is common to an image cancels. The
    draws say nothing of the chance in training; that is what several seeds are for.

    Args:
      ours, theirs: one entry a run, paired: (I, K, K) int, the confusion matrix of every image.
      resamples: draws of I images with replacement.

    Returns: (low, high) of mean over runs of mIoU(ours) - mIoU(theirs), or None for fewer than two images.
    """
    images = len(ours[0])
    if images < 2:
        return None
    # float64 holds these sums of whole numbers exactly, in whatever order they are added
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), resamples)
    weights = drawn.astype(np.float64)
    differences = np.mean(
        [mean_iou(_resampled(weights, one)) - mean_iou(_resampled(weights, other))
         for one, other in zip(ours, theirs, strict=True)],
        axis=0,
    )  # fmt: skip
    tail = (1 - level) / 2
    known = differences[~np.isnan(differences)]
    low, high = np.quantile(known, (tail, 1 - tail)) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def _resampled(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    images, classes = counts.shape[:2]
    return (weights @ counts.reshape(images, -1)).reshape(-1, classes, classes)


def mean_iou(counts: np.ndarray) -> np.ndarray:
    """mIoU of confusion matrices (..., K, K) over the classes that occur in each, (...); NaN without any."""
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(axis=-1) + counts.sum(axis=-2) - hit
    occurs = union > 0
    iou = np.divide(hit, union, out=np.zeros(union.shape), where=occurs)
    number = occurs.sum(axis=-1)
    return np.divide(iou.sum(axis=-1), number, out=np.full(number.shape, np.nan), where=number > 0)


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
