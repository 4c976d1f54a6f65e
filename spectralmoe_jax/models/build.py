"""From a configuration file to a segmenter, abstract or with arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import jax
from flax import nnx
from ml_collections import ConfigDict

from spectralmoe_jax.adapters.settings import AdapterConfig
from spectralmoe_jax.configuration import from_config, require
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.mask2former.head import HeadConfig
from spectralmoe_jax.models.encoder import EncoderConfig
from spectralmoe_jax.models.presets import preset
from spectralmoe_jax.models.segmenter import Segmenter, SegmenterConfig
from spectralmoe_jax.models.state import Path, leaves
from spectralmoe_jax.sensors import wavelengths

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
    visual = _encoder(model.visual, "visual", len(bands), config)
    depth: EncoderConfig | None = None
    depth_bands: tuple[int, ...] = ()
    if model.get("depth") is not None:
        section = model.depth.to_dict()
        names = tuple(section.pop("bands", ("red", "green", "blue")))
        for name in names:
            if name not in bands:
                raise UserError(
                    f"config.model.depth.bands names {name!r}, which config.bands does not have: "
                    f"choose from {', '.join(bands)}"
                )
        depth, depth_bands = (
            _encoder(ConfigDict(section), "depth", len(names)),
            tuple(bands.index(n) for n in names),
        )
    return SegmenterConfig(
        visual=visual,
        depth=depth,
        adapter=from_config(AdapterConfig, model.adapter, "model.adapter"),
        head=from_config(HeadConfig, _with(model.head, num_classes=len(classes)), "model.head"),
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
    make = jax.jit(lambda: nnx.state(Segmenter(config, rngs=nnx.Rngs(seed))))
    return nnx.merge(graph, make())


def random_leaves(
    config: SegmenterConfig,
    seed: int,
    paths: Collection[Path],
    shardings: Mapping[Path, jax.sharding.Sharding] | None = None,
) -> dict[Path, jax.Array]:
    """The leaves at `paths` of `make_segmenter(config, seed)`, each made where `shardings` wants it; the
    others are never made."""
    if not paths:
        return {}

    def make() -> dict[str, jax.Array]:
        found = leaves(Segmenter(config, rngs=nnx.Rngs(seed)))
        return {"/".join(path): found[path] for path in paths}

    where = None if shardings is None else {"/".join(path): shardings[path] for path in paths}
    made = jax.jit(make, out_shardings=where)()
    return {path: made["/".join(path)] for path in paths}


def _encoder(
    section: ConfigDict, name: str, channels: int, config: ConfigDict | None = None
) -> EncoderConfig:
    """`preset` gives a published encoder's sizes, which the section's other keys override; `config` gives the
    wavelengths, of `config.bands` on `config.sensor`, to an encoder that needs them and has none."""
    place, own = f"model.{name}", section.to_dict()
    named = own.pop("preset", None)
    own.pop("weights", None)
    fields = {} if named is None else preset(named, f"config.{place}.preset")
    derived = {"in_channels": channels, "name": name}
    whole = {**fields, **own, **derived}
    if config is not None and whole.get("kind") == "dofa" and not whole.get("wavelengths"):
        whole["wavelengths"] = wavelengths(tuple(config.bands), config.get("sensor", "generic"))
    return from_config(EncoderConfig, ConfigDict(whole), place)


def _with(section: ConfigDict, **derived) -> ConfigDict:
    """The section plus values that follow from elsewhere in the configuration."""
    return ConfigDict({**section.to_dict(), **derived})
