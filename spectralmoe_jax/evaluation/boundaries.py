"""Boundary IoU: how well the edges of classes agree.

The IoU of two masks reduced to their pixels near their own edge, after Cheng et al. (2021),
https://arxiv.org/abs/2103.16562. Unlike the IoU, it does not grow with the size of objects.
"""

from __future__ import annotations

import cv2
import numpy as np

from data_pipelines.records import IGNORE

WIDTH = 0.02
"""Width of an edge, as a share of the image's diagonal."""


class BoundaryCounts:
    """Pixels near the edges of classes, in truth and prediction.

    Attributes:
      both: (C,) int64, pixels near the edge in both.
      either: (C,) int64, pixels near the edge in at least one.
    """

    def __init__(self, classes: int):
        self.both, self.either = np.zeros(classes, np.int64), np.zeros(classes, np.int64)

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count one image.

        Pixels without a label count nowhere, and make no edge: a class does not end where the labels do. The
        border of the image is an edge, as in the publication.

        Args:
          truth: (H, W), 255 for ignore.
          prediction: (H, W).
        """
        unlabelled = (truth < 0) | (truth >= len(self.both)) | (truth == IGNORE)
        width = max(1, round(WIDTH * float(np.hypot(*truth.shape))))
        for number in np.unique(np.concatenate([truth[~unlabelled], prediction[~unlabelled]])):
            true, found = (
                edge_of(image == number, unlabelled, width) & ~unlabelled for image in (truth, prediction)
            )
            self.both[number] += np.count_nonzero(true & found)
            self.either[number] += np.count_nonzero(true | found)

    @property
    def iou(self) -> np.ndarray:
        """Boundary IoU by class (C,); NaN for a class neither in the truth nor predicted."""
        known = self.either > 0
        return np.divide(self.both, self.either, out=np.full(len(known), np.nan), where=known)


def edge_of(mask: np.ndarray, unlabelled: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of a mask (H, W) that are at most `width` pixels from its outside, along both axes.

    Args:
      mask: (H, W) bool.
      unlabelled: (H, W) bool, pixels that are not outside whatever they are.
      width: in pixels.
    """
    # erosion by a square of 2 width + 1 pixels, beyond the image is outside
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    inside = (mask | unlabelled).astype(np.uint8)
    eroded = cv2.erode(inside, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return mask & (eroded == 0)
