"""Which expert every token of an image went to."""

from __future__ import annotations

import math

import jax
import numpy as np

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.models.state import join, split
from spectralmoe_jax.prediction.windows import padded_tile


def has_experts(segmenter: Segmenter) -> bool:
    """Whether the adapter sends tokens to experts."""
    return hasattr(segmenter.config.adapter, "num_experts")


def expert_maps(segmenter: Segmenter, image: np.ndarray, window: int) -> np.ndarray:
    """The strongest expert of every token, layer by layer.

    Args:
      image: raw pixels (H, W, C).
      window: side of the windows, laid edge to edge, that the image is seen through; a multiple of the
        patch size.

    Returns: (L, J, h, w) int32, experts numbered from 0, J modalities with the visual first, one entry a
    patch of the image.

    Raises UserError for an adapter without experts.
    """
    if not has_experts(segmenter):
        raise UserError(f"config.model.adapter.kind = {segmenter.config.adapter_kind!r} has no experts")
    patch = segmenter.config.visual.patch_size
    side = window // patch
    height, width = image.shape[:2]
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    trainable, frozen = split(segmenter)

    @jax.jit
    def strongest(trainable, frozen, pixels):
        model = join(segmenter, trainable, frozen)
        experts = model.features(model.normalise(pixels)).experts
        assert experts is not None
        return experts[:, :, 0]  # (L, J, N)

    grid: np.ndarray | None = None
    for row in range(rows):
        for column in range(columns):
            tile = padded_tile(image, row * window, column * window, window)
            experts = np.asarray(strongest(trainable, frozen, tile[None]))
            if grid is None:
                grid = np.zeros((*experts.shape[:2], rows * side, columns * side), np.int32)
            here = (slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
            grid[:, :, here[0], here[1]] = experts.reshape(*experts.shape[:2], side, side)
    assert grid is not None
    return grid[:, :, : math.ceil(height / patch), : math.ceil(width / patch)]
