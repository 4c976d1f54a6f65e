"""Counting truth against prediction."""

from __future__ import annotations

import numpy as np


class ConfusionMatrix:
    """Pixels by true class (row) and predicted class (column), (K, K) int64.

    Pixels whose truth is not in 0..K-1, such as the ignore label 255, are left out.
    """

    def __init__(self, num_classes: int):
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count two integer arrays of one shape; predictions must lie in 0..K-1 where truth does.

        Raises ValueError where they do not, or where the shapes differ.
        """
        classes = len(self.counts)
        if truth.shape != prediction.shape:
            raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
        known = (truth >= 0) & (truth < classes)
        rows, columns = truth[known].astype(np.int64), prediction[known].astype(np.int64)
        if columns.size and not 0 <= columns.min() <= columns.max() < classes:
            raise ValueError(f"predictions must lie in 0..{classes - 1}")
        self.counts += np.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes)

    def __iadd__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Merge the counts of another domain or host."""
        self.counts += other.counts
        return self

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union a class (K,); NaN for a class neither in the truth nor predicted."""
        hit = np.diag(self.counts)
        return _ratio(hit, self.counts.sum(axis=0) + self.counts.sum(axis=1) - hit)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of a class's true pixels that are found (K,); NaN for a class that is not in the truth."""
        return _ratio(np.diag(self.counts), self.counts.sum(axis=1))

    @property
    def miou(self) -> float:
        """Mean of `iou` over the classes that have one; NaN without any."""
        iou = self.iou
        return float(np.mean(iou[~np.isnan(iou)])) if not np.all(np.isnan(iou)) else float("nan")

    @property
    def overall_accuracy(self) -> float:
        """Share of labelled pixels that are right; NaN without any."""
        return float(_ratio(np.trace(self.counts), self.counts.sum()))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    whole = np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
