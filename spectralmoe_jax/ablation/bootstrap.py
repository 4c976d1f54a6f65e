"""How far a difference between two variants may be chance of the images: the paired bootstrap."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
