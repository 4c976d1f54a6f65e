"""Which expert tokens of each class go to, and how much the one tells of the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectralmoe_jax.inference.sliding_window import RoutedStep

MODALITIES = ("visual", "depth")


class RoutedPredict:
    """A predictor (see `prediction.windows`) that keeps which experts were used until they are taken."""

    def __init__(self, step: RoutedStep):
        self._step = step
        self._kept: list[np.ndarray] = []

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        scores, experts = self._step(tiles)
        self._kept.append(experts)
        return scores

    def take(self) -> np.ndarray:
        """The experts (L, J, B, N) of all tiles since they were last taken, in order."""
        taken = np.concatenate(self._kept, axis=2)
        self._kept = []
        return taken


class RoutingCounts:
    """Tokens by layer, modality, expert and class, (L, J, E, K) int64, or None before the first.

    A token's class is the most frequent one among the labelled pixels of its patch, the lower number of
    equals; a token without a labelled pixel is left out.
    """

    def __init__(self, experts: int, classes: int):
        self._experts, self._classes = experts, classes
        self.counts: np.ndarray | None = None

    def add(self, experts: np.ndarray, labels: np.ndarray) -> None:
        """Count the tokens of some tiles.

        Args:
          experts: (L, J, B, N), the strongest expert of every token; J may be 0 for an adapter without.
          labels: (B, T, T), 255 for ignore, T a multiple of the side of the token grid.
        """
        layers, modalities, _, tokens = experts.shape
        if not modalities:
            return
        token_class = patch_classes(labels, round(tokens**0.5), self._classes).reshape(-1)
        known = token_class >= 0
        token_class, chosen = token_class[known], experts.reshape(layers, modalities, -1)[..., known]
        if self.counts is None:
            self.counts = np.zeros((layers, modalities, self._experts, self._classes), np.int64)
        shape = self.counts.shape[2:]
        for place in np.ndindex(layers, modalities):
            together = chosen[place] * self._classes + token_class
            self.counts[place] += np.bincount(together, minlength=shape[0] * shape[1]).reshape(shape)


def patch_classes(labels: np.ndarray, side: int, classes: int) -> np.ndarray:
    """The most frequent class of every patch, (B, side, side) int64, -1 where no pixel is labelled.

    Args:
      labels: (B, T, T); what is not in 0..classes-1 does not count.
      side: patches along an edge; divides T.
    """
    batch, size = labels.shape[:2]
    patch = size // side
    assert side * patch == size
    rows = labels.reshape(batch, side, patch, side, patch).transpose(0, 1, 3, 2, 4).reshape(-1, patch**2)
    known = rows < classes
    place = np.broadcast_to(np.arange(len(rows))[:, None] * classes, rows.shape)
    counted = np.bincount((place + rows)[known], minlength=len(rows) * classes).reshape(-1, classes)
    chosen = np.where(counted.any(axis=1), counted.argmax(axis=1), -1)
    return chosen.reshape(batch, side, side)


def mutual_information(counts: np.ndarray) -> float:
    """Normalised mutual information of rows and columns of a table of counts (E, K), in 0..1.

    I(row; column) over the mean of the two entropies. 0 where either takes one value only, for then
    knowing it tells nothing of the other; NaN where nothing was counted.
    """
    total = counts.sum()
    if not total:
        return float("nan")
    joint = counts / total
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    entropies = _entropy(rows), _entropy(columns)
    if min(entropies) == 0:
        return 0.0
    shared = sum(entropies) - _entropy(joint.reshape(-1))
    return float(max(shared, 0.0) / np.mean(entropies))


def _entropy(shares: np.ndarray) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum()) if len(positive) > 1 else 0.0


def routing_report(counts: np.ndarray) -> list[dict[str, Any]]:
    """One entry a layer and modality, layers numbered from 1: `nmi` between expert and class, and `counts`
    (E, K) of the tokens.

    Args:
      counts: (L, J, E, K) of `RoutingCounts`.
    """
    return [
        {
            "layer": layer + 1,
            "modality": MODALITIES[modality],
            "nmi": mutual_information(counts[layer, modality]),
            "counts": counts[layer, modality].tolist(),
        }
        for layer, modality in np.ndindex(*counts.shape[:2])
    ]
