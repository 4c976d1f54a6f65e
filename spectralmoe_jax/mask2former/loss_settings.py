"""Weights and points of the segmentation loss."""

from __future__ import annotations

import dataclasses

from spectralmoe_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Settings of the loss; the defaults are Mask2Former's (arXiv 2112.01527, section 3.3).

    Attributes:
      class_weight, mask_weight, dice_weight: of the three terms, in the loss and in the matching.
      no_object_weight: of queries without a target in the class term.
      num_points: P, points a mask in the loss, and points an image in the matching.
      oversample_ratio: candidates drawn for every point of the loss.
      importance_sample_ratio: share of the points taken where the prediction is least certain; the
        rest is uniform.
    """

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75

    def __post_init__(self):
        for key in ("class_weight", "mask_weight", "dice_weight", "no_object_weight"):
            _require(key, getattr(self, key), 0 <= getattr(self, key) < float("inf"), "at least 0")
        _require("num_points", self.num_points, self.num_points >= 1, "at least 1")
        _require("oversample_ratio", self.oversample_ratio, self.oversample_ratio >= 1, "at least 1")
        share = self.importance_sample_ratio
        _require("importance_sample_ratio", share, 0 <= share <= 1, "between 0 and 1")

    @property
    def candidates(self) -> int:
        """Points drawn for a mask before the least certain are kept."""
        return int(self.num_points * self.oversample_ratio)

    @property
    def uncertain_points(self) -> int:
        """Points of a mask that are taken for their uncertainty."""
        return int(self.num_points * self.importance_sample_ratio)


def _require(key: str, value: float, holds: bool, allowed: str) -> None:
    if not holds:
        raise UserError(f"config.loss.{key} = {value!r}: must be {allowed}")
