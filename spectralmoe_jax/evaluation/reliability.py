"""Whether probabilities mean what they say: reliability diagram, calibration error and Brier score."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectralmoe_jax.inference.calibration import probabilities_of

BINS = 15
"""Bins of equal width of the confidence, as Guo et al. (2017), https://arxiv.org/abs/1706.04599."""


class Reliability:
    """Counts of labelled pixels by their confidence, the probability of the chosen class.

    Args:
      temperature: of the probabilities.

    Attributes:
      temperature: of the probabilities.
      pixels: (bins,) int64, labelled pixels.
      right: (bins,) int64, those that are predicted correctly.
      confidence: (bins,) float64, sums of the confidence.
      squares: sum over the pixels of the squared deviations of all probabilities from the truth.
    """

    def __init__(self, temperature: float = 1.0):
        self.temperature = temperature
        self.pixels, self.right = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
        self.confidence, self.squares = np.zeros(BINS), 0.0

    def add(self, truth: np.ndarray, scores: np.ndarray) -> None:
        """Count some pixels.

        Args:
          truth: (n,) integer; those that are not in 0..C-1 are left out.
          scores: (n, C), not negative.
        """
        known = (truth >= 0) & (truth < scores.shape[-1])
        truth, scores = truth[known], scores[known]
        # 1. bin of every pixel
        probabilities = probabilities_of(scores, self.temperature)  # (n, C)
        sure = probabilities.max(axis=-1)
        places = np.minimum((sure * BINS).astype(np.int64), BINS - 1)
        # 2. sums by bin
        self.pixels += np.bincount(places, minlength=BINS)
        is_right = scores.argmax(axis=-1) == truth
        self.right += np.bincount(places[is_right], minlength=BINS)
        self.confidence += np.bincount(places, sure, minlength=BINS)
        # 3. |p - e_y|^2 = |p|^2 - 2 p_y + 1
        of_truth = np.take_along_axis(probabilities, truth[:, None].astype(np.int64), axis=-1)
        squares = np.square(probabilities).sum(axis=-1) - 2 * of_truth[:, 0] + 1
        self.squares += float(squares.sum(dtype=np.float64))

    @property
    def expected_error(self) -> float:
        """Expected calibration error: mean over the pixels of |share right - confidence| of their bin."""
        total = self.pixels.sum()
        return float(np.abs(self.right - self.confidence).sum() / total) if total else float("nan")

    @property
    def brier(self) -> float:
        """Brier score: mean squared deviation of the probabilities, summed over the classes, in 0..2."""
        total = self.pixels.sum()
        return self.squares / float(total) if total else float("nan")

    def report(self) -> dict[str, Any]:
        """Return the scores and the bins as JSON values; a bin without pixels has null for its means."""
        means = [
            [float(v / n) if n else None for v, n in zip(values, self.pixels, strict=True)]
            for values in (self.confidence, self.right)
        ]
        return {
            "temperature": self.temperature,
            "expected_calibration_error": self.expected_error,
            "brier": self.brier,
            "pixels": self.pixels.tolist(),
            "confidence": means[0],
            "accuracy": means[1],
        }
