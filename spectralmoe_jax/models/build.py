"""From a configuration file to a segmenter, abstract or with arrays.

One segmenter for several band sets: the same parameters, another patch embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from spectralmoe_jax.adapters.registry import DEFAULT, adapter_class
from spectralmoe_jax.configuration import choose, from_config, require
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.mask2former.head import HeadConfig
from spectralmoe_jax.models.encoders.encoder import EncoderConfig
from spectralmoe_jax.models.linear_head import LinearConfig
from spectralmoe_jax.models.presets import preset
from spectralmoe_jax.models.segmenter import Segmenter, SegmenterConfig
from spectralmoe_jax.parameters import Path, leaves, with_values
from spectralmoe_jax.sensors import place_of, visible, wavelengths
from spectralmoe_jax.sensors.stated import stated


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


MODEL_KEYS = (
    "weights",
    "dtype",
    "remat",
    "pixel_mean",
    "pixel_std",
    "out_layers",
    "visual",
    "depth",
    "adapter",
    "head",
)


def segmenter_config(config: ConfigDict) -> SegmenterConfig:
    """Read `config.bands`, `config.classes` and `config.model`.

    Raises UserError naming the key for an unknown key, a wrong type, a value that is not allowed, or
    parts that do not fit each other.
    """
    model = config.model
    for key in model:
        if key not in MODEL_KEYS:
            raise UserError(f"config.model.{key}: unknown key; allowed are {', '.join(MODEL_KEYS)}")
    bands, classes = tuple(config.bands), tuple(config.classes.names)
    require(len(bands) > 0, "config.bands", "name at least one band")
    colours = config.classes.get("palette")
    require(
        colours is None or len(colours) == len(classes),
        "config.classes.palette",
        f"has {len(colours or ())} colours for {len(classes)} config.classes.names: give each class one",
    )
    visual = _encoder(model.visual, "visual", bands, config)
    depth: EncoderConfig | None = None
    depth_bands: tuple[int, ...] = ()
    if model.get("depth") is not None:
        section = model.depth.to_dict()
        depth_bands = _depth_bands(section.pop("bands", None), bands, config.get("sensor"))
        depth = _encoder(ConfigDict(section), "depth", tuple(bands[place] for place in depth_bands))
    kind, adapter = _adapter(model.adapter)
    _check_encoder(visual, kind)
    return SegmenterConfig(
        visual=visual,
        depth=depth,
        adapter=adapter,
        adapter_kind=kind,
        head=_head(model.head, len(classes)),
        depth_bands=depth_bands,
        out_layers=tuple(model.out_layers),
        dtype=model.dtype,
        remat=model.remat,
        pixel_mean=tuple(model.pixel_mean),
        pixel_std=tuple(model.pixel_std),
    )


def abstract_segmenter(config: SegmenterConfig) -> Segmenter:
    """The segmenter with shapes and dtypes in place of arrays: nothing is allocated."""
    return nnx.eval_shape(lambda: Segmenter(config, rngs=nnx.Rngs(0)))


def make_segmenter(config: SegmenterConfig, seed: int) -> Segmenter:
    """A segmenter with random weights, made inside one jitted call."""
    graph = nnx.graphdef(abstract_segmenter(config))
    make = jax.jit(lambda key: nnx.state(Segmenter(config, rngs=nnx.Rngs(key))))
    return nnx.merge(graph, make(jax.random.key(seed)))


def random_leaves(
    config: SegmenterConfig,
    seed: int,
    paths: Collection[Path],
    shardings: Mapping[Path, jax.sharding.Sharding] | None = None,
) -> dict[Path, jax.Array]:
    """The leaves at `paths` of `make_segmenter(config, seed)`, each made where `shardings` wants it; the
    others are never made.

    The seed is an argument of what is compiled: a constant would have every seed compiled anew.
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
    """Places of the bands that the depth encoder sees: those named, by any name on the sensor, or else red,
    green and blue."""
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


def _encoder(
    section: ConfigDict, name: str, bands: tuple[str, ...], config: ConfigDict | None = None
) -> EncoderConfig:
    """`preset` gives a published encoder's sizes, which the section's other keys override; `config` gives the
    wavelengths to an encoder that needs them and has none: those that its files stated, or else of
    `config.bands` on `config.sensor`."""
    place, own = f"model.{name}", section.to_dict()
    named = own.pop("preset", None)
    own.pop("weights", None)
    fields = {} if named is None else preset(named, f"config.{place}.preset")
    derived = {"in_channels": len(bands), "band_names": tuple(bands), "name": name}
    whole = {**fields, **own, **derived}
    if config is not None and whole.get("kind") == "dofa" and not whole.get("wavelengths"):
        whole["wavelengths"] = stated(config) or wavelengths(
            tuple(config.bands), config.get("sensor") or "generic"
        )
    return from_config(EncoderConfig, ConfigDict(whole), place)


def _adapter(section: ConfigDict) -> tuple[str, Any]:
    """The kind of adapter and its settings."""
    own = section.to_dict()
    kind = own.pop("kind", DEFAULT)
    require(isinstance(kind, str), "config.model.adapter.kind", f"takes a name, not {kind!r}")
    return kind, from_config(adapter_class(kind).Config, ConfigDict(own), "model.adapter")


def _check_encoder(visual: EncoderConfig, kind: str) -> None:
    """Raises UserError where the encoder is none that the adapter can act in."""
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


HEADS: dict[str, Any] = {"mask2former": HeadConfig, "linear": LinearConfig}


def _head(section: ConfigDict, classes: int) -> HeadConfig | LinearConfig:
    """The settings of the head, whose kind is their type."""
    own = section.to_dict()
    kind = choose("config.model.head.kind", own.pop("kind", "mask2former"), HEADS)
    return from_config(HEADS[kind], ConfigDict({**own, "num_classes": classes}), "model.head")
