"""Sliding windows with blended overlaps, for images of any size and a predictor of one shape.

A predictor takes a full batch of raw tiles (B, T, T, C) and gives scores (B, T, T, K), not negative. It
is always called with the same shape, so that it compiles once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from spectralmoe_jax.config.schema import EvaluateConfig
from spectralmoe_jax.errors import UserError

Predict = Callable[[np.ndarray], np.ndarray]
RoutedStep = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Raw tiles (B, T, T, C) -> scores (B, T, T, K) and each token's strongest expert (L, J, B, N)."""


def window_starts(length: int, window: int, overlap: int) -> list[int]:
    """First pixels of windows that cover `length` pixels: evenly `window - overlap` apart, the last one
    moved back to end with the image. An image smaller than a window gets one window, at 0."""
    if length <= window:
        return [0]
    starts = list(range(0, length - window, window - overlap))
    return [*starts, length - window]


def blending_weight(window: int) -> np.ndarray:
    """How much each pixel of a window counts where windows overlap: (T, T) float32, a pyramid that
    falls from 1 in the middle to a little above 0 at the edge."""
    ramp = 1 - np.abs((np.arange(window) + 0.5) / window * 2 - 1)
    return np.minimum.outer(ramp, ramp).astype(np.float32)


def in_batches(tiles: Iterable[tuple[tuple[int, int], np.ndarray]], predict: Predict,
               batch_size: int) -> Iterator[tuple[tuple[int, int], np.ndarray]]:  # fmt: skip
    """Scores of ((row, column), tile (T, T, C)) pairs, in order; the last batch is filled up with
    copies whose scores are dropped. Raises UserError for scores that are not finite."""
    places: list[tuple[int, int]] = []
    batch: list[np.ndarray] = []
    for place, tile in tiles:
        places.append(place)
        batch.append(tile)
        if len(batch) == batch_size:
            yield from zip(places, finite(predict(np.stack(batch))), strict=True)
            places, batch = [], []
    if batch:
        filled = batch + [batch[-1]] * (batch_size - len(batch))
        yield from zip(places, finite(predict(np.stack(filled))), strict=False)


def finite(scores: np.ndarray) -> np.ndarray:
    """The scores. Raises UserError where one is not finite: the largest of scores with a NaN is a class like
    any other, so that the map would look right."""
    if not np.isfinite(scores).all():
        raise UserError(
            "the model's scores are not finite: its training diverged or config.model.dtype is too narrow; "
            "use another checkpoint or config.model.dtype=float32"
        )
    return scores


def padded_tile(image: np.ndarray, row: int, column: int, window: int) -> np.ndarray:
    """The window of an image (H, W, C) at (row, column), its missing rows and columns mirrored."""
    tile = image[row : row + window, column : column + window]
    missing = [(0, window - side) for side in tile.shape[:2]]
    if not any(after for _, after in missing):
        return tile
    return np.pad(tile, [*missing, (0, 0)], mode="symmetric")


def predict_image(image: np.ndarray, predict: Predict, settings: EvaluateConfig) -> np.ndarray:
    """Blended scores (H, W, K) float32 of a whole image (H, W, C) that fits in memory."""
    height, width = image.shape[:2]
    size = settings.window
    weight = blending_weight(size)[..., None]
    tiles = (
        ((row, column), padded_tile(image, row, column, size))
        for row in window_starts(height, size, settings.overlap)
        for column in window_starts(width, size, settings.overlap)
    )
    total: np.ndarray | None = None
    for (row, column), scores in in_batches(tiles, predict, settings.batch_size):
        if total is None:
            total = np.zeros((height, width, scores.shape[-1]), np.float32)
            counted = np.zeros((height, width, 1), np.float32)
        rows, columns = min(size, height - row), min(size, width - column)
        here = (slice(row, row + rows), slice(column, column + columns))
        total[here] += (scores * weight)[:rows, :columns]
        counted[here] += weight[:rows, :columns]
    assert total is not None
    return total / counted
