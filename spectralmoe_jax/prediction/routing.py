"""Which expert every token of an image went to."""

from __future__ import annotations

import math

import numpy as np
from einops import rearrange

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.prediction.windows import RoutedStep, in_batches, padded_tile


def has_experts(segmenter: Segmenter) -> bool:
    """Whether the adapter sends tokens to experts."""
    return hasattr(segmenter.config.adapter, "num_experts")


def expert_maps(step: RoutedStep, image: np.ndarray, *, window: int, batch_size: int) -> np.ndarray:
    """The strongest expert of every token, layer by layer.

    Args:
      step: see `checkpoints.trained.make_routed_step`.
      image: raw pixels (H, W, C).
      window: side of the windows, laid edge to edge, that the image is seen through; a multiple of the
        patch size. batch_size: windows a call.

    Returns: (L, J, h, w) int32, experts numbered from 0, J modalities with the visual first, one entry a
    patch of the image.

    Raises UserError for an adapter without experts.
    """
    height, width = image.shape[:2]
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    tiles = (
        ((row, column), padded_tile(image, row * window, column * window, window))
        for row in range(rows)
        for column in range(columns)
    )
    by_tile = in_batches(tiles, lambda batch: np.moveaxis(step(batch)[1], 2, 0), batch_size)
    experts = np.stack([found for _, found in by_tile])  # (windows, L, J, N)
    if not experts.shape[2]:
        raise UserError("config.model.adapter.kind: this adapter has no experts")
    side = math.isqrt(experts.shape[3])
    patch = window // side
    whole = rearrange(experts, "(r c) l j (h w) -> l j (r h) (c w)", r=rows, h=side)
    return whole[:, :, : math.ceil(height / patch), : math.ceil(width / patch)]
