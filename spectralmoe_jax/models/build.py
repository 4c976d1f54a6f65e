"""Segmenters from configurations: abstract, with random weights, or for another set of bands."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from spectralmoe_jax.adapters.registry import adapter_class
from spectralmoe_jax.config.adapters import OwnAdapterConfig
from spectralmoe_jax.config.fields import build
from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.segmenter import Segmenter, SegmenterConfig
from spectralmoe_jax.parameters import Path, leaves, with_values
from spectralmoe_jax.sensors import place_of, visible, wavelengths


def for_bands(
    segmenter: Segmenter,
    wavelengths: Sequence[float],
    *,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    depth_bands: Sequence[int] = (0, 1, 2),
) -> Segmenter:
    """Return the same segmenter for another sensor: parameters are shared, not copied.

    The patch embedding is generated here, once for the band set, and is a constant of every later step.

    Args:
      segmenter: with an encoder that generates its patch embedding (dofa).
      wavelengths: one for each band, in micrometres.
      pixel_mean: one value for each band, in raw pixel units.
      pixel_std: one value for each band, in raw pixel units.
      depth_bands: indices of the bands that the depth encoder sees: red, green, blue.

    Raises:
      UserError: the encoder's patch embedding belongs to one band set, or wavelengths and statistics do not
        fit each other.
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
        depth_bands=tuple(depth_bands),
        pixel_mean=tuple(pixel_mean),
        pixel_std=tuple(pixel_std),
    )
    kernel, bias = segmenter.backbone.visual.generator(config.visual.wavelengths)  # type: ignore[attr-defined]
    stem = ("backbone", "visual")
    replaced = {
        (*stem, "patch_kernel"): kernel,
        (*stem, "patch_bias"): bias,
        ("pixel_mean",): jnp.asarray(config.pixel_mean, config.param_dtype),
        ("pixel_std",): jnp.asarray(config.pixel_std, config.param_dtype),
    }
    return with_values(abstract_segmenter(config), leaves(segmenter) | replaced)


def segmenter_config(config: RunConfig) -> SegmenterConfig:
    """Return the settings of a configuration's segmenter, with what follows from bands, sensor and classes.

    Raises:
      UserError: parts do not fit each other, or a user's own adapter is not one; names the key.
    """
    model, bands = config.model, config.bands
    depth: EncoderConfig | None = None
    depth_bands: tuple[int, ...] = ()
    if model.depth is not None:
        depth_bands = _depth_bands(model.depth.bands, bands, config.sensor)
        depth = model.depth.encoder(tuple(bands[place] for place in depth_bands))
    adapter = _adapter(model.adapter)
    visual = model.visual.encoder(bands, wavelengths=_wavelengths(config))
    _check_encoder(visual, model.adapter.kind)
    return SegmenterConfig(
        visual=visual,
        depth=depth,
        adapter=adapter,
        adapter_kind=model.adapter.kind,
        head=dataclasses.replace(model.head, num_classes=len(config.classes.names)),
        depth_bands=depth_bands,
        out_layers=model.out_layers,
        dtype=model.dtype,
        remat=model.remat,
        pixel_mean=model.pixel_mean,
        pixel_std=model.pixel_std,
    )


def abstract_segmenter(config: SegmenterConfig) -> Segmenter:
    """Return the segmenter with shapes and dtypes in place of arrays; nothing is allocated."""
    return nnx.eval_shape(lambda: Segmenter(config, rngs=nnx.Rngs(0)))


def make_segmenter(config: SegmenterConfig, seed: int) -> Segmenter:
    """Make a segmenter with random weights, inside one jitted call."""
    graph = nnx.graphdef(abstract_segmenter(config))
    make = jax.jit(lambda key: nnx.state(Segmenter(config, rngs=nnx.Rngs(key))))
    return nnx.merge(graph, make(jax.random.key(seed)))


def random_leaves(
    config: SegmenterConfig,
    seed: int,
    paths: Collection[Path],
    shardings: Mapping[Path, jax.sharding.Sharding] | None = None,
) -> dict[Path, jax.Array]:
    """Make single leaves of `make_segmenter(config, seed)`; the others are never allocated.

    Args:
      config: settings of the segmenter.
      seed: of the random weights. It is an argument of the compiled function: a constant would compile every
        seed anew.
      paths: the leaves to make.
      shardings: placement of each leaf; None for the default device.
    """
    if not paths:
        return {}

    def make(key: jax.Array) -> dict[str, jax.Array]:
        found = leaves(Segmenter(config, rngs=nnx.Rngs(key)))
        return {"/".join(path): found[path] for path in paths}

    where = None if shardings is None else {"/".join(path): shardings[path] for path in paths}
    made = jax.jit(make, out_shardings=where)(jax.random.key(seed))
    return {path: made["/".join(path)] for path in paths}


def _depth_bands(names: Sequence[str] | None, bands: tuple[str, ...], sensor: str | None) -> tuple[int, ...]:
    """Return the indices of the depth encoder's bands: those named, else red, green and blue.

    Args:
      names: of the bands, by any of their names on the sensor; None for red, green and blue.
      bands: of the configuration.
      sensor: of the configuration.

    Raises:
      UserError: a band is not there, or it is not known which bands are red, green and blue.
    """
    if names is None:
        found = visible(bands, sensor)
        if found is None:
            raise UserError(
                f"config.model.depth.bands: which of {', '.join(bands)} are red, green and blue is not "
                "known: name three of them, or give config.sensor"
            )
        return found
    places = []
    for name in names:
        place = place_of(name, bands, sensor)
        if place is None:
            raise UserError(
                f"config.model.depth.bands names {name!r}, which config.bands does not have: "
                f"choose from {', '.join(bands)}"
            )
        places.append(place)
    return tuple(places)


def _wavelengths(config: RunConfig) -> tuple[float, ...]:
    """Return the wavelengths of the bands, for an encoder that takes them.

    The configuration's own come first, then those that its files stated, then those of the sensor.
    """
    visual = config.model.visual
    if visual.wavelengths or not visual.takes_wavelengths:
        return visual.wavelengths
    return config.wavelengths_of_files or wavelengths(config.bands, config.sensor or "generic")


def _adapter(section: Any) -> Any:
    """Return the adapter's settings; the class of a user's own adapter checks its section."""
    if not isinstance(section, OwnAdapterConfig):
        return section
    return build(adapter_class(section.kind).Config, section.settings, "config.model.adapter")


def _check_encoder(visual: EncoderConfig, kind: str) -> None:
    """Raise a UserError where the adapter cannot act in the encoder."""
    adapter = adapter_class(kind)
    if getattr(adapter, "adds_tokens", False) and visual.kind == "sam":
        raise UserError(
            f"config.model.adapter.kind = {kind!r} adds tokens, for which the windows of "
            f"config.model.visual.kind = {visual.kind!r} have no place: choose another of the two"
        )
    if hasattr(adapter, "trains") and visual.trainable and kind != "full":
        raise UserError(
            f"config.model.visual.trainable is True but config.model.adapter.kind = {kind!r} says which of "
            "the encoder's weights train: set it to False"
        )
