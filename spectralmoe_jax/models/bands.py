"""One segmenter for several band sets: the same parameters, another patch embedding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.build import abstract_segmenter
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.models.state import leaves, with_values


def for_bands(segmenter: Segmenter, wavelengths: Sequence[float], *, pixel_mean: Sequence[float],
              pixel_std: Sequence[float], depth_bands: Sequence[int] = (0, 1, 2)) -> Segmenter:  # fmt: skip
    """The same segmenter for another sensor: every parameter is shared, none copied.

    The patch embedding is generated here, once for the band set, and is a constant of every step after that.

    Args:
      segmenter: with an encoder that generates its patch embedding (dofa).
      wavelengths: of the bands, micrometres. pixel_mean, pixel_std: one value a band, in raw pixel units.
      depth_bands: numbers of the bands that the depth encoder sees, red, green, blue.

    Raises UserError for an encoder whose patch embedding belongs to one band set, or for wavelengths or
    statistics that do not fit each other.
    """
    visual = segmenter.config.visual
    if not visual.family.wavelengths:
        raise UserError(
            f"config.model.visual.kind = {visual.kind!r}: its patch embedding belongs to its own "
            f"{visual.in_channels} bands; only dofa makes one for any bands"
        )
    config = dataclasses.replace(
        segmenter.config,
        visual=dataclasses.replace(visual, in_channels=len(wavelengths), wavelengths=tuple(wavelengths)),
        depth_bands=tuple(depth_bands), pixel_mean=tuple(pixel_mean), pixel_std=tuple(pixel_std),
    )  # fmt: skip
    kernel, bias = segmenter.backbone.visual.generator(config.visual.wavelengths)  # type: ignore[attr-defined]
    stem = ("backbone", "visual")
    replaced = {
        (*stem, "patch_kernel"): kernel,
        (*stem, "patch_bias"): bias,
        ("pixel_mean",): jnp.asarray(config.pixel_mean, config.param_dtype),
        ("pixel_std",): jnp.asarray(config.pixel_std, config.param_dtype),
    }
    return with_values(abstract_segmenter(config), leaves(segmenter) | replaced)
