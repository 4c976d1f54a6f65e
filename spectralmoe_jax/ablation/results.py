"""From the runs of a grid to `results.json`: scores, means over seeds, and differences with their intervals.

Nothing in it depends on when, where or how often the runs were started. The interval of a difference is the
paired bootstrap over the target's images and the seeds: how far it may be due to their choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from spectralmoe_jax.ablation.grid import Grid, GridRun
from spectralmoe_jax.ablation.run import ATTEMPTS_FILE, failure_of, is_done
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.metrics import ImageCounts, read_images
from spectralmoe_jax.evaluation.stored_scores import IMAGES_FILE, read_evaluation
from spectralmoe_jax.stored_files import NUMBER, has_form
from spectralmoe_jax.training.logging import read_lines, read_metrics

Results = dict[str, Any]
"""JSON values; see `collect`."""

_ATTEMPT = {"what": str, "time": NUMBER, "host": str, "processors": (int, type(None))}
RESAMPLES = 2000
LEVEL = 0.95


def collect(grid: Grid, runs: Sequence[GridRun]) -> Results:
    """Collect the scores of a grid from the runs that are done.

    Returns:
      JSON values. For each variant its settings, its runs (`seed` with scores, or `error`, or neither where
      it has not run), mean and sample standard deviation of `miou` and of each class's IoU over the seeds,
      and `difference` to the reference: the mean over the seeds that both have, and the paired bootstrap
      interval over the target's images and the seeds. `held_out` is the mIoU over held-out source
      images of the checkpoint that is scored.

    Raises:
      UserError: runs were evaluated on different images.
    """
    scores = {(run.variant, run.seed): _scores(run) for run in runs}
    images = {(run.variant, run.seed): read_images(run.folder / IMAGES_FILE) for run in runs if is_done(run)}
    classes: list[str] = next((list(own["iou"]) for own in scores.values() if "iou" in own), [])
    variants = {}
    for name in grid.variants:
        own = [scores[name, seed] for seed in grid.seeds]
        variants[name] = {
            "settings": {key: _plain(value) for key, value in grid.variants[name].items()},
            "runs": own,
            "miou": _over_seeds([run.get("miou") for run in own]),
            "held_out": _over_seeds([run.get("held_out") for run in own]),
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
        "bootstrap": {"resamples": RESAMPLES, "level": LEVEL, "over": ["images", "seeds"]},
        "variants": variants,
    }


def _scores(run: GridRun) -> Results:
    """Return the scores of one run, or its error."""
    if not is_done(run):
        error = failure_of(run)
        return {"seed": run.seed} | ({} if error is None else {"error": error})
    stored = read_evaluation(run.folder)
    assert stored is not None  # as the run is done
    return {
        "seed": run.seed,
        "miou": stored["miou"],
        "mean_miou": stored["mean_miou"],
        "held_out": _held_out(run, stored["step"]),
        "overall_accuracy": stored["all"]["overall_accuracy"],
        "iou": stored["all"]["iou"],
        "domains": {name: scores["miou"] for name, scores in stored["domains"].items()},
        "trainable": stored["trainable"],
        "step": stored["step"],
        "nmi": [
            {key: entry[key] for key in ("layer", "modality", "nmi")} for entry in stored.get("routing", ())
        ],
    }


def _held_out(run: GridRun, step: int | None) -> float | None:
    """Return the mIoU over held-out source images of a run's best checkpoint; None without any."""
    records = read_metrics(run.folder).get("evaluate", [])
    return next((record.get("miou") for record in records if record["step"] == step), None)


def _over_seeds(values: Sequence[float | None]) -> Results:
    """Return mean and sample standard deviation of the known values; None where there are too few."""
    known = [value for value in values if value is not None]
    return {
        "mean": float(np.mean(known)) if known else None,
        "std": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "runs": len(known),
    }


def _difference(grid: Grid, name: str, images: dict[tuple[str, int], list[ImageCounts]]) -> Results | None:
    """Compare a variant with the reference over the seeds that both have; None without any."""
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
    """Return a setting as JSON has it."""
    return dict(value) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else value


def timings(runs: Sequence[GridRun]) -> Results:
    """Collect wall seconds of every run since its last start, its number of starts, and its host."""
    found = {}
    for run in runs:
        path = run.folder / ATTEMPTS_FILE
        lines = read_lines(path, lambda line: has_form(line, _ATTEMPT))
        starts = [line for line in lines if line["what"] == "started"]
        ends = [line for line in lines if line["what"] == "done"]
        if starts:
            found[run.name] = {
                "seconds": round(ends[-1]["time"] - starts[-1]["time"], 1) if ends else None,
                "starts": len(starts),
                "host": starts[-1]["host"],
                "processors": starts[-1]["processors"],
            }
    return found


def paired_interval(
    ours: Sequence[np.ndarray],
    theirs: Sequence[np.ndarray],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Compute the percentile interval of a difference in mIoU under resampled images and runs (Efron 1979).

    In each draw both variants and all their runs see the same images, so what is common to an image cancels;
    and runs are drawn in pairs of one seed, so that the interval covers the chance in training as far as the
    seeds show it.

    Args:
      ours: one entry for each run, (I, C, C) int, the confusion matrix of every image.
      theirs: the same of the other variant, paired with `ours`.
      resamples: draws of I images, and of as many runs as there are, with replacement.
      level: of the interval, in 0..1.
      seed: of the draws.

    Returns:
      (low, high) of the mean over runs of mIoU(ours) - mIoU(theirs), or None for fewer than two images.
    """
    images = len(ours[0])
    if images < 2:
        return None
    # float64 holds these sums of whole numbers exactly, in any order of summation
    rng, runs = np.random.default_rng(seed), len(ours)
    weights = rng.multinomial(images, np.full(images, 1 / images), resamples).astype(np.float64)
    shares = rng.multinomial(runs, np.full(runs, 1 / runs), resamples) / runs  # (resamples, runs)
    by_run = [
        mean_iou(_resampled(weights, one)) - mean_iou(_resampled(weights, other))
        for one, other in zip(ours, theirs, strict=True)
    ]
    return _percentiles(np.einsum("dr,rd->d", shares, np.stack(by_run)), level)


def image_interval(
    counts: np.ndarray, *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> tuple[float, float] | None:
    """Compute the percentile interval of one run's mIoU under resampled images; see `paired_interval`.

    Args:
      counts: (I, C, C) int, the confusion matrix of every image.
      resamples: draws of I images with replacement.
      level: of the interval, in 0..1.
      seed: of the draws.

    Returns:
      (low, high), or None for fewer than two images.
    """
    images = len(counts)
    if images < 2:
        return None
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(images, np.full(images, 1 / images), resamples).astype(np.float64)
    return _percentiles(mean_iou(_resampled(weights, counts)), level)


def _percentiles(values: np.ndarray, level: float) -> tuple[float, float]:
    """Return the quantiles between which a share `level` of the known values is."""
    tail = (1 - level) / 2
    known = values[~np.isnan(values)]
    low, high = np.quantile(known, (tail, 1 - tail)) if len(known) else (np.nan, np.nan)
    return float(low), float(high)


def _resampled(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sum confusion matrices (I, C, C) by weights (resamples, I): (resamples, C, C)."""
    images, classes = counts.shape[:2]
    return (weights @ counts.reshape(images, -1)).reshape(-1, classes, classes)


def mean_iou(counts: np.ndarray) -> np.ndarray:
    """Compute mIoU of matrices (..., C, C) over the classes that occur in each: (...), NaN without any."""
    hit = np.diagonal(counts, axis1=-2, axis2=-1)
    union = counts.sum(axis=-1) + counts.sum(axis=-2) - hit
    occurs = union > 0
    iou = np.divide(hit, union, out=np.zeros(union.shape), where=occurs)
    number = occurs.sum(axis=-1)
    return np.divide(iou.sum(axis=-1), number, out=np.full(number.shape, np.nan), where=number > 0)
