"""Compile a segmenter into functions from raw tiles to scores, on one device or sharded over a mesh.

Segmenters with equal settings share a step, so that a process that trains, evaluates and maps compiles it
once per shape. Tiles are checked to be what the encoder needs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator
from typing import Any

import jax
import numpy as np

from spectralmoe_jax.inference.averaged_views import averaged
from spectralmoe_jax.inference.sliding_window import Predict, RoutedStep
from spectralmoe_jax.models.build import abstract_segmenter
from spectralmoe_jax.models.encoders.galileo import require_reflectance
from spectralmoe_jax.models.segmenter import Segmenter, SegmenterConfig
from spectralmoe_jax.parallel import Layout
from spectralmoe_jax.parallel.mesh import put
from spectralmoe_jax.parameters import join, split


def make_predict(segmenter: Segmenter, layout: Layout | None = None, tta: str = "none") -> Predict:
    """Make a predictor: raw tiles (B, S, S, bands) -> scores (B, S, S, C) float32, compiled once per shape.

    Args:
      segmenter: segmenter with weights.
      layout: mesh to shard the tiles over; all hosts pass the same tiles and get all scores. None for one
        device.
      tta: kind of test-time augmentation; see `inference.averaged_views`.
    """
    trainable, frozen = split(segmenter)
    scores = make_scores(segmenter, layout)
    patch = segmenter.config.visual.patch_size
    return averaged(lambda pixels: scores(trainable, frozen, pixels), tta, patch)


def make_routed_step(segmenter: Segmenter, layout: Layout | None = None, tta: str = "none") -> RoutedStep:
    """Make a predictor that also returns each token's strongest expert.

    Arguments are those of `make_predict`. Experts are those of the tiles as they are, (L, J, B, N) int32,
    with J = 0 if the adapter has none.
    """
    trainable, frozen = split(segmenter)
    step = _spread(make_predict_step(segmenter, layout), layout, segmenter.config)

    def routed(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict scores (B, S, S, C) and experts (L, J, B, N) of tiles (B, S, S, bands)."""
        scores, experts = step(trainable, frozen, pixels)
        if experts is None:
            experts = np.zeros((1, 0, len(pixels), 1), np.int32)
        return np.asarray(scores)[: len(pixels)], np.asarray(experts)[:, :, : len(pixels)]

    def averaged_routed(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Average the scores over the views, and keep the experts of the first: the tiles as they are."""
        of_views: list[np.ndarray] = []

        def scores_of(tiles: np.ndarray) -> np.ndarray:
            """Predict the scores of one view."""
            scores, experts = routed(tiles)
            of_views.append(experts)
            return scores

        return averaged(scores_of, tta, segmenter.config.visual.patch_size)(pixels), of_views[0]

    return routed if tta == "none" else averaged_routed


def make_features(segmenter: Segmenter, layout: Layout | None = None) -> Predict:
    """Make an encoder: raw tiles (B, S, S, bands) -> adapted features (B, h, w, D) float32.

    Features are the last of those that the head reads, without the adapter's noise. Arguments are those of
    `make_predict`.
    """
    trainable, frozen = split(segmenter)

    def encode(trainable: Any, frozen: Any, pixels: jax.Array) -> jax.Array:
        """Compute the features of some tiles."""
        model = join(segmenter, trainable, frozen)
        return model.features(model.normalise(pixels)).maps[-1].astype(np.float32)

    traced = encode if layout is None else layout.traced(encode)
    step = jax.jit(traced, out_shardings=None if layout is None else layout.sharding())
    spread = _spread(step, layout, segmenter.config)
    return lambda pixels: np.asarray(spread(trainable, frozen, pixels))[: len(pixels)]


def make_scores(
    structure: Segmenter, layout: Layout | None = None
) -> Callable[[Any, Any, np.ndarray], np.ndarray]:
    """Make a function (trainable, frozen, tiles) -> scores; see `make_predict`.

    Args:
      structure: read for its structure only; may be abstract.
      layout: as in `make_predict`.
    """
    step = _spread(make_predict_step(structure, layout), layout, structure.config)
    return lambda trainable, frozen, pixels: np.asarray(step(trainable, frozen, pixels)[0])[: len(pixels)]


def _spread(step: Any, layout: Layout | None, settings: SegmenterConfig) -> Any:
    """Wrap a step so that it checks its tiles and shards them over a layout, padded with the last tile."""
    if layout is None:
        return checked(step, settings)
    sharding, parts = layout.sharding(("batch", None, None, None)), layout.size("batch")

    def padded(trainable: Any, frozen: Any, pixels: np.ndarray) -> Any:
        """Pad the tiles to a multiple of the number of devices, and predict."""
        missing = -len(pixels) % parts
        filled = np.pad(pixels, ((0, missing), (0, 0), (0, 0), (0, 0)), mode="edge")
        return step(trainable, frozen, put(filled, sharding))

    return checked(padded, settings)


def checked(step: Any, settings: SegmenterConfig) -> Any:
    """Wrap a step so that its first tiles with data are checked to be what the encoder needs."""
    told = False

    def check_first(trainable: Any, frozen: Any, pixels: np.ndarray) -> Any:
        """Check until some tiles tell, and predict."""
        nonlocal told
        told = told or check_pixels(settings, pixels)
        return step(trainable, frozen, pixels)

    return check_first


def check_pixels(settings: SegmenterConfig, pixels: np.ndarray) -> bool:
    """Check that stored pixels are what the encoder needs: reflectance, for galileo.

    Args:
      settings: structure of the segmenter.
      pixels: tiles as stored, (B, S, S, bands).

    Returns:
      Whether the pixels tell; False if most hold no data.

    Raises:
      UserError: they cannot be what the encoder needs.
    """
    if settings.visual.kind != "galileo":
        return True
    return require_reflectance(np.asarray(pixels), settings.pixel_mean[0], settings.pixel_std[0])


def checked_batches(batches: Generator[Any], settings: SegmenterConfig) -> Generator[Any]:
    """Yield training batches; the first one with data is checked as by `check_pixels`."""
    told = False
    with contextlib.closing(batches):
        for batch in batches:
            told = told or check_pixels(settings, batch["image"])
            yield batch


def make_predict_step(structure: Segmenter, layout: Layout | None = None) -> Any:
    """Make the jitted step (trainable, frozen, tiles) -> (scores, experts (L, J, B, N) or None).

    With a layout, tiles are sharded over it and results are replicated. Segmenters with equal settings share
    the step, so that a process that trains, evaluates and maps compiles it once per shape.
    """
    try:
        return _predict_step(structure.config, layout)
    except TypeError:  # the settings of a user's own adapter may not be hashable
        return _predict_step.__wrapped__(structure.config, layout)


@functools.lru_cache(maxsize=4)
def _predict_step(settings: SegmenterConfig, layout: Layout | None) -> Any:
    structure = abstract_segmenter(settings)

    def scores(trainable: Any, frozen: Any, pixels: jax.Array) -> Any:
        """Predict with the given weights."""
        return join(structure, trainable, frozen).scores_and_experts(pixels)

    if layout is None:
        return jax.jit(scores)
    return jax.jit(layout.traced(scores), out_shardings=layout.sharding())
