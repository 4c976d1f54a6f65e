"""Which expert every token of an image went to."""

from __future__ import annotations

import math

import numpy as np

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.prediction.windows import RoutedStep, padded_tile


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
    places = [(row, column) for row in range(rows) for column in range(columns)]
    tiles = [padded_tile(image, row * window, column * window, window) for row, column in places]
    found = []
    for start in range(0, len(tiles), batch_size):
        batch = tiles[start : start + batch_size]
        filled = batch + [batch[-1]] * (batch_size - len(batch))  # one shape compiles once
        found.append(step(np.stack(filled))[1][:, :, : len(batch)])
    experts = np.concatenate(found, axis=2)  # (L, J, windows, N)
    layers, modalities, _, tokens = experts.shape
    if not modalities:
        raise UserError("config.model.adapter.kind: this adapter has no experts")
    side = math.isqrt(tokens)
    patch = window // side
    grid = experts.reshape(layers, modalities, rows, columns, side, side).swapaxes(3, 4)
    whole = grid.reshape(layers, modalities, rows * side, columns * side)
    return whole[:, :, : math.ceil(height / patch), : math.ceil(width / patch)]
