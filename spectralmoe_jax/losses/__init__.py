"""The segmentation loss: bipartite matching, class, mask and dice terms."""

from spectralmoe_jax.losses.mask2former import SegmentationLoss, mask2former_loss
from spectralmoe_jax.losses.settings import LossConfig

__all__ = ["LossConfig", "SegmentationLoss", "mask2former_loss"]
