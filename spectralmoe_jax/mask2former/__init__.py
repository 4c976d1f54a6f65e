"""The Mask2Former head: deformable pixel decoder and masked-attention decoder."""

from spectralmoe_jax.mask2former.head import Mask2FormerHead, semantic_scores
from spectralmoe_jax.mask2former.resize import resize_bilinear, resize_by_scale
from spectralmoe_jax.mask2former.settings import HeadConfig

__all__ = ["HeadConfig", "Mask2FormerHead", "resize_bilinear", "resize_by_scale", "semantic_scores"]
