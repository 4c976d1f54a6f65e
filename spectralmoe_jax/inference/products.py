"""The rasters that `predict` writes beside a map: confidence, probabilities and uncertainty.

Each is computed from the blended scores of some rows, so that a scene of any size fits in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from spectralmoe_jax.inference.calibration import entropy_of, probabilities_of
from spectralmoe_jax.inference.sliding_window import Predict

PRODUCTS = ("confidence", "probabilities", "uncertainty")
"""Names of the rasters, which end the names of their files."""


class Product(NamedTuple):
    """A raster beside a map.

    Attributes:
      name: one of `PRODUCTS`.
      bands: descriptions of its bands.
      further: number of channels that it needs behind those of the classes.
      values: blended scores (rows, W, K) -> (bands, rows, W) float32.
    """

    name: str
    bands: tuple[str, ...]
    further: int
    values: Callable[[np.ndarray], np.ndarray]


def product_file(output: Path, name: str) -> Path:
    """Return the file of a product beside a map."""
    return output.with_name(f"{output.stem}_{name}.tif")


def make_products(wanted: Collection[str], classes: Sequence[str], temperature: float = 1.0) -> list[Product]:
    """Make some products.

    Args:
      wanted: their names.
      classes: names of the classes.
      temperature: of the probabilities, which all products are made from.
    """
    count = len(classes)

    def probabilities(scores: np.ndarray) -> np.ndarray:
        """Compute the probabilities (rows, W, C)."""
        return probabilities_of(scores[..., :count], temperature)

    def uncertainty(scores: np.ndarray) -> np.ndarray:
        """Compute the entropy, and the mean of the distances of the windows."""
        distance = scores[..., count] / np.maximum(scores[..., count + 1], np.finfo(np.float32).tiny)
        return np.stack([entropy_of(probabilities(scores)), distance])

    made = {
        "confidence": Product(
            "confidence",
            ("confidence: probability of the chosen class",),
            0,
            lambda scores: probabilities(scores).max(axis=-1)[None],
        ),
        "probabilities": Product(
            "probabilities",
            tuple(f"probability: {i} {name}" for i, name in enumerate(classes)),
            0,
            lambda scores: np.moveaxis(probabilities(scores), -1, 0),
        ),
        "uncertainty": Product(
            "uncertainty",
            (
                "entropy of the probabilities, over its largest value",
                "distance from the source's features, over that of 95 % of held-out source patches",
            ),
            2,
            uncertainty,
        ),
    }
    return [made[name] for name in PRODUCTS if name in wanted]


def with_distance(predict: Predict, distance: Predict) -> Predict:
    """Return a predictor with two further channels, the distance from the source and the number 1.

    Both are blended as scores are, and their quotient is then the weighted mean of the distances.
    """

    def both(pixels: np.ndarray) -> np.ndarray:
        """Predict scores, distance and 1: (B, S, S, C + 2)."""
        far = distance(pixels)
        return np.concatenate([predict(pixels), far, np.ones_like(far)], axis=-1)

    return both
