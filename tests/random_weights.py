"""Segmenters with random weights drawn by numpy: compiling an initialisation takes longer than most tests."""

import jax.numpy as jnp
import numpy as np

from spectralmoe_jax.models.build import abstract_segmenter
from spectralmoe_jax.models.segmenter import Segmenter, SegmenterConfig
from spectralmoe_jax.parameters import leaves, with_values


def random_segmenter(settings: SegmenterConfig, seed: int = 0) -> Segmenter:
    """Make a segmenter with normal weights, and the pixel statistics of `settings`."""
    structure, rng = abstract_segmenter(settings), np.random.default_rng(seed)
    values = {path: 0.3 * rng.normal(size=leaf.shape) for path, leaf in leaves(structure).items()}
    values["pixel_mean",], values["pixel_std",] = settings.pixel_mean, settings.pixel_std
    dtypes = {path: leaf.dtype for path, leaf in leaves(structure).items()}
    return with_values(structure, {path: jnp.asarray(x, dtypes[path]) for path, x in values.items()})
