"""Translation of assignments and points between our slots, one a class, and the released order.

The released code numbers the ground truths of an image by the sorted classes present in it, and lists
masks image by image, in each image by query. Needed wherever its recorded numbers are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def released_assignment(assignment: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, B, Q) of class + 1 -> (K, B, Q) of index among the sorted classes of the image, + 1.

    Args:
      assignment: as `mask2former_loss` returns it. labels: (B, H, W), values from `num_classes` up are
        ignored.
    """
    ranks = _ranks(labels, num_classes)  # (B, C+1)
    assignment = np.asarray(assignment)
    return np.stack([ranks[b][assignment[:, b]] for b in range(len(ranks))], axis=1)


def class_assignment(released: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The inverse of `released_assignment`."""
    codes = [np.concatenate([[0], np.flatnonzero(row[1:]) + 1]) for row in _ranks(labels, num_classes)]
    released = np.asarray(released)
    return np.stack([code[released[:, b]] for b, code in enumerate(codes)], axis=1)


def slot_points(points: Sequence[np.ndarray], released: np.ndarray, labels: np.ndarray,
                num_classes: int) -> np.ndarray:  # fmt: skip
    """Loss points in the released order -> (K, B, C, P, 2), one slot a class; empty slots are zero.

    Args:
      points: for each of K layers (masks, P, 2), masks ordered by image, then by query.
      released: (K, B, Q), the assignment they were recorded with.
    """
    classes = class_assignment(released, labels, num_classes)
    layers, batch, _ = classes.shape
    slots = np.zeros((layers, batch, num_classes, *points[0].shape[1:]), points[0].dtype)
    for layer in range(layers):
        image, query = np.nonzero(classes[layer])
        slots[layer, image, classes[layer, image, query] - 1] = points[layer]
    return slots


def _ranks(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """(B, C+1): for class + 1, its rank + 1 among the image's classes, 0 where it is absent; 0 for 0."""
    present = np.stack([np.isin(np.arange(num_classes), image) for image in np.asarray(labels)])
    ranks = np.where(present, np.cumsum(present, axis=1), 0)
    return np.concatenate([np.zeros((len(ranks), 1), ranks.dtype), ranks], axis=1)
