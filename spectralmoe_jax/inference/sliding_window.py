"""Sliding windows with blended overlaps, for images of any size and a predictor of one shape.

A predictor (`Predict`) takes a full batch of raw tiles and returns scores that are not negative. It is always
called with the same shape, so it compiles once.

Letters of shapes here: B windows in a call, S side of a window in pixels, H, W side lengths of an image, C
classes; L, J, N as in `adapters.base`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from einops import rearrange

from spectralmoe_jax.config.schema import EvaluateConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.host_memory import require_memory
from spectralmoe_jax.models.windows import window_starts

Predict = Callable[[np.ndarray], np.ndarray]
"""Raw tiles (B, S, S, bands) -> scores (B, S, S, C)."""
RoutedStep = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Raw tiles (B, S, S, bands) -> scores (B, S, S, C) and each token's strongest expert (L, J, B, N)."""
Place = TypeVar("Place")
"""What tells one window from another."""
Tile = tuple[tuple[int, int], np.ndarray]
"""((row, column), array): a window's first pixel in the image, and its pixels or scores."""


def predict_image(image: np.ndarray, predict: Predict, settings: EvaluateConfig) -> np.ndarray:
    """Predict a whole image that fits in memory, overlapping windows blended.

    Args:
      image: raw pixels (H, W, bands).
      predict: the predictor.
      settings: side and overlap of the windows, windows in a call.

    Returns:
      Scores (H, W, C) float32.

    Raises:
      UserError: a score is not finite.
    """
    return predict_images([image], predict, settings)[0]


def predict_images(
    images: Sequence[np.ndarray], predict: Predict, settings: EvaluateConfig
) -> list[np.ndarray]:
    """Predict whole images as `predict_image` does, with windows of several images in a call."""
    weight = blending_weight(settings.window)[..., None]
    totals: list[np.ndarray | None] = [None] * len(images)
    weights = [np.zeros((*image.shape[:2], 1), np.float32) for image in images]
    tiles = (
        ((index, *place), tile)
        for index, image in enumerate(images)
        for place, tile in overlapping_tiles(image, settings)
    )
    for (index, row, column), scores in predict_tiles(tiles, predict, settings.batch_size):
        height, width = images[index].shape[:2]
        if max(height, width) <= settings.window:  # one window, nothing to blend
            totals[index], weights[index] = scores[:height, :width], np.ones((1, 1, 1), np.float32)
            continue
        total = totals[index]
        if total is None:
            total = totals[index] = np.zeros((height, width, scores.shape[-1]), np.float32)
        rows, columns = min(settings.window, height - row), min(settings.window, width - column)
        inside = (slice(row, row + rows), slice(column, column + columns))
        total[inside] += (scores * weight)[:rows, :columns]
        weights[index][inside] += weight[:rows, :columns]
    return [total / own for total, own in zip(totals, weights, strict=True) if total is not None]


def fitted_batch(settings: EvaluateConfig, shape: tuple[int, ...], images: int = 1) -> EvaluateConfig:
    """Return the windows of a configuration, in calls no larger than images of a height and width need.

    The number of windows in a call is a power of two, or that of the configuration, so that few programs are
    compiled.
    """
    sides = (window_starts(side, settings.window, settings.overlap) for side in shape[:2])
    needed = images * math.prod(len(starts) for starts in sides)
    size = min(settings.batch_size, 2 ** math.ceil(math.log2(needed)))
    return dataclasses.replace(settings, batch_size=size)


def mean_over_windows(image: np.ndarray, encode: Predict, settings: EvaluateConfig, patch: int) -> np.ndarray:
    """Average features over the windows that contain a place.

    Args:
      image: raw pixels (H, W, bands).
      encode: raw tiles (B, S, S, bands) -> features (B, S / patch, S / patch, ...).
      settings: side and overlap of the windows, multiples of the patch; windows in a call.
      patch: side of a patch in pixels.

    Returns:
      (h, w, ...) float32, h = H / patch, rounded up.
    """
    # 1. whole patches: a remainder is mirrored, as windows are at the edges
    missing = [-side % patch for side in image.shape[:2]]
    image = np.pad(image, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="symmetric")
    # 2. mean over the windows
    h, w = image.shape[0] // patch, image.shape[1] // patch
    tiles = overlapping_tiles(image, settings)
    total: np.ndarray | None = None
    for (row, column), found in predict_tiles(tiles, encode, settings.batch_size):
        if total is None:
            total = np.zeros((h, w, *found.shape[2:]), np.float32)
            count = np.zeros((h, w) + (1,) * (found.ndim - 2), np.float32)
        top, left = row // patch, column // patch
        part = found[: h - top, : w - left]
        inside = (slice(top, top + part.shape[0]), slice(left, left + part.shape[1]))
        total[inside] += part
        count[inside] += 1
    assert total is not None
    return total / count


def expert_maps(step: RoutedStep, image: np.ndarray, *, window: int, batch_size: int) -> np.ndarray:
    """Map the strongest expert of every token of an image.

    Args:
      step: see `inference.predict_step.make_routed_step`.
      image: raw pixels (H, W, bands).
      window: side of the windows, which lie edge to edge; a multiple of the patch size.
      batch_size: windows in a call.

    Returns:
      (L, J, h, w) int32, experts numbered from 0, J modalities with the visual first, one entry for each
      patch of the image.

    Raises:
      UserError: the adapter has no experts.
    """
    height, width = image.shape[:2]
    rows, columns = math.ceil(height / window), math.ceil(width / window)
    tiles = (
        ((row, column), padded_tile(image, row * window, column * window, window))
        for row in range(rows)
        for column in range(columns)
    )
    # (L, J, B, N) -> (B, L, J, N)
    by_tile = predict_tiles(tiles, lambda batch: np.moveaxis(step(batch)[1], 2, 0), batch_size)
    experts = np.stack([found for _, found in by_tile])  # (windows, L, J, N)
    if not experts.shape[2]:
        raise UserError("config.model.adapter.kind: this adapter has no experts")
    side = math.isqrt(experts.shape[3])
    patch = window // side
    whole = rearrange(experts, "(r c) l j (h w) -> l j (r h) (c w)", r=rows, h=side)
    return whole[:, :, : math.ceil(height / patch), : math.ceil(width / patch)]


def overlapping_tiles(image: np.ndarray, settings: EvaluateConfig) -> Iterator[Tile]:
    """Yield the overlapping windows that cover an image (H, W, bands), row by row."""
    for row in window_starts(image.shape[0], settings.window, settings.overlap):
        for column in window_starts(image.shape[1], settings.window, settings.overlap):
            yield (row, column), padded_tile(image, row, column, settings.window)


def padded_tile(image: np.ndarray, row: int, column: int, window: int) -> np.ndarray:
    """Cut the window of an image (H, W, bands) at (row, column); missing rows and columns are mirrored."""
    tile = image[row : row + window, column : column + window]
    missing = [(0, window - side) for side in tile.shape[:2]]
    if not any(after for _, after in missing):
        return tile
    return np.pad(tile, [*missing, (0, 0)], mode="symmetric")


def blending_weight(window: int) -> np.ndarray:
    """Return the weight of each pixel of a window where windows overlap: (S, S) float32.

    A pyramid that falls from 1 in the middle to just above 0 at the edge.
    """
    ramp = 1 - np.abs((np.arange(window) + 0.5) / window * 2 - 1)
    return np.minimum.outer(ramp, ramp).astype(np.float32)


def predict_tiles(
    tiles: Iterable[tuple[Place, np.ndarray]], predict: Predict, batch_size: int
) -> Iterator[tuple[Place, np.ndarray]]:
    """Yield the scores of tiles in order, predicted `batch_size` at a time.

    The last batch is filled up with copies whose scores are dropped.

    Raises:
      UserError: a score is not finite, or a batch does not fit into the memory.
    """
    places: list[Place] = []
    batch: list[np.ndarray] = []
    for place, tile in tiles:
        if not batch:
            require_room_for_windows(batch_size, tile.nbytes)
        places.append(place)
        batch.append(tile)
        if len(batch) == batch_size:
            yield from zip(places, require_finite(predict(np.stack(batch))), strict=True)
            places, batch = [], []
    if batch:
        filled = batch + [batch[-1]] * (batch_size - len(batch))
        yield from zip(places, require_finite(predict(np.stack(filled))), strict=False)


def require_room_for_windows(batch_size: int, window: int) -> None:
    """Check that `batch_size` windows of `window` bytes fit into the memory.

    Raises:
      UserError: they do not.
    """
    require_memory("config.evaluate.batch_size", batch_size, batch_size * window, "a batch of windows")


def require_finite(scores: np.ndarray) -> np.ndarray:
    """Return the scores if all are finite.

    The argmax of scores with a NaN is a class like any other, so the map would look right.

    Raises:
      UserError: a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise UserError(
            "the model's scores are not finite: its training diverged or config.model.dtype is too narrow; "
            "use another checkpoint or config.model.dtype=float32"
        )
    return scores
