"""How far to trust a model: a temperature for its probabilities, and the features it saw on the source.

`spectralmoe calibrate` fits both on source images and keeps them with the model, see
`evaluation.calibrate`. Here they are read, written and applied.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.inference.model_files import weight_specs
from spectralmoe_jax.inference.sliding_window import Predict
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.npz import read_npz
from spectralmoe_jax.parameters import named_leaves, split
from spectralmoe_jax.resampling import resize_bilinear
from spectralmoe_jax.weights.hub import HUB

log = logging.getLogger(__name__)

FILE = "calibration.npz"
_KEPT = 8  # calibrations in a file: of the streams of a run, and of earlier weights
_TINY = float(np.finfo(np.float32).tiny)


class Calibration(NamedTuple):
    """What `spectralmoe calibrate` fitted to source images.

    Attributes:
      weights: digest of the weights that it belongs to.
      temperature: of the probabilities; above 1 it makes them less certain.
      mean: mean of the last features over source patches, (D,) float32.
      whitening: (D, D) float32, which makes deviations from the mean uncorrelated, of deviation one.
      distance: the distance from the mean that 95 % of the held-out patches stay within.
    """

    weights: str
    temperature: float
    mean: np.ndarray
    whitening: np.ndarray
    distance: float


def calibration_file(model: str | os.PathLike[str]) -> Path | None:
    """Return where the calibration of a model is kept: in a run's folder, or beside the first weight file.

    None for a name on the hub.
    """
    specs = weight_specs(model)
    if not specs:
        return Path(model) / FILE
    if specs[0].startswith(HUB):
        return None
    first = Path(specs[0])
    return first / FILE if first.is_dir() else first.with_name(f"{first.stem}.{FILE}")


def calibration_of(path: Path | None, weights: Callable[[], str]) -> Calibration | None:
    """Read the calibration of a model; None if it has none.

    Calibrations of other weights do not count, which is said if there is no other.

    Args:
      path: where it is kept, or None.
      weights: computes the digest of the model's weights; called if there is a file.

    Raises:
      UserError: the file is damaged.
    """
    if path is None or not path.is_file():
        return None
    digest = weights()
    for found in read_calibrations(path):
        if found.weights == digest:
            return found
    log.warning("%s: is of other weights, and not used; run `spectralmoe calibrate` again", path)
    return None


def weights_digest(segmenter: Segmenter) -> str:
    """Return a digest of all weights of a segmenter, the same however they are sharded."""
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(split(segmenter)).items()):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()[:32]


def add_calibration(found: Calibration, path: Path) -> None:
    """Write a calibration beside those of other weights in a file, whole or not at all.

    The streams of a run have pixel statistics, and so weights, of their own.

    Raises:
      UserError: the file is damaged, or cannot be written.
    """
    others = read_calibrations(path) if path.is_file() else []
    kept = [found, *(other for other in others if other.weights != found.weights)][:_KEPT]
    arrays = {f"{i}/{name}": value for i, each in enumerate(kept) for name, value in each._asdict().items()}
    try:
        with atomic_write(path) as aside, aside.open("wb") as file:
            np.savez_compressed(file, **arrays)
    except OSError as problem:
        raise UserError(f"{path}: cannot be written ({problem.strerror})") from None


def read_calibrations(path: Path) -> list[Calibration]:
    """Read the file that `add_calibration` wrote, the newest first.

    Raises:
      UserError: it is not such a file.
    """
    remedy = "remove it, and run `spectralmoe calibrate` again"
    stored = read_npz(path, remedy, what="calibration")
    count = len({name.partition("/")[0] for name in stored})
    try:
        found = [
            Calibration(
                str(stored[f"{i}/weights"]),
                float(stored[f"{i}/temperature"]),
                np.asarray(stored[f"{i}/mean"], np.float32),
                np.asarray(stored[f"{i}/whitening"], np.float32),
                float(stored[f"{i}/distance"]),
            )
            for i in range(count)
        ]
    except (KeyError, TypeError, ValueError):
        found = []
    if not found or not all(_is_sound(each) for each in found):
        raise UserError(f"{path}: not a readable calibration: {remedy}")
    return found


def _is_sound(found: Calibration) -> bool:
    """Return whether a calibration has a mean, a square matrix and positive numbers, all of them finite."""
    mean, whitening = found.mean, found.whitening
    is_square = mean.ndim == 1 and whitening.shape == (*mean.shape, *mean.shape)
    numbers = (found.temperature, found.distance)
    is_finite = all(np.isfinite(each).all() for each in (mean, whitening, *numbers))
    return is_square and is_finite and min(numbers) > 0


def probabilities_of(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Turn scores into probabilities: a softmax of their logarithms over a temperature.

    With a temperature of 1 they are shares of the sum of the scores. A common factor of the scores of a pixel
    has no effect.

    Args:
      scores: (..., C), not negative.
      temperature: positive.

    Returns:
      (..., C) float32, which add up to one.
    """
    powers = np.maximum(np.asarray(scores, np.float32), _TINY)
    if temperature != 1:
        powers /= powers.max(axis=-1, keepdims=True)
        powers **= np.float32(1 / temperature)
    return powers / powers.sum(axis=-1, keepdims=True)


def entropy_of(probabilities: np.ndarray) -> np.ndarray:
    """Return the entropy of probabilities (..., C) over its largest value log C: (...) float32 in 0..1."""
    surprise = -probabilities * np.log(np.maximum(probabilities, _TINY))
    return (surprise.sum(axis=-1) / np.log(max(probabilities.shape[-1], 2))).astype(np.float32)


def make_distance(features: Predict, calibration: Calibration) -> Predict:
    """Make a function from raw tiles (B, S, S, bands) to the distance from the source (B, S, S, 1).

    The Mahalanobis distance of the features of every patch, over the one that 95 % of held-out source patches
    stay within, resized bilinearly to pixels.

    Args:
      features: raw tiles -> features (B, h, w, D).
      calibration: of the model.
    """

    def distance(pixels: np.ndarray) -> np.ndarray:
        """Measure the distance of every pixel of some tiles."""
        of_patches = patch_distances(features(pixels), calibration.mean, calibration.whitening)
        side = pixels.shape[1]
        return np.asarray(resize_bilinear(of_patches[..., None] / calibration.distance, (side, side)))

    return distance


@jax.jit
def patch_distances(features: jax.Array, mean: jax.Array, whitening: jax.Array) -> jax.Array:
    """Return the root of the mean square of whitened features: (..., D) -> (...)."""
    return jnp.sqrt(jnp.square((features - mean) @ whitening).mean(axis=-1))
