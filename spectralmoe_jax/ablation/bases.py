"""What the shipped grids ask of the configuration that they vary."""

from __future__ import annotations

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from spectralmoe_jax.adapters.settings import PRESETS
from spectralmoe_jax.configuration import load_config
from spectralmoe_jax.models.build import segmenter_config

PAPER: dict[str, Any] = {"model.adapter.preset": "paper"} | {
    f"model.adapter.{switch}": None for switch in (*PRESETS["paper"], "fusion_value")
}
"""Settings of the publication's reading, whatever a configuration says of the switches between the two."""


class Sizes(NamedTuple):
    """Of the visual encoder, the tokens along an edge of a crop, and its published size (s, b, l) or ""."""

    width: int
    layers: int
    heads: int
    patch_size: int
    grid: int
    published: str


_PUBLISHED = {(384, 12): "s", (768, 12): "b", (1024, 24): "l"}


def base_config(base: str) -> ConfigDict:
    """The configuration `FILE[:args]` that a grid varies; a bare name is one of those shipped."""
    return load_config(base)


def sizes_of(config: ConfigDict) -> Sizes:
    """What another encoder needs to stand in the place of the visual one, or beside it."""
    visual = segmenter_config(config).visual
    published = _PUBLISHED.get((visual.width, visual.layers), "")
    grid = config.data.crop // visual.patch_size
    return Sizes(visual.width, visual.layers, visual.heads, visual.patch_size, grid, published)


def depth_encoder(config: ConfigDict) -> dict[str, Any]:
    """Settings that give a configuration the depth modality.

    One that has a depth encoder keeps it. Another gets one of random weights that stay as they are, of the
    visual encoder's sizes: enough to compare how the modalities are gated and fused, not to learn what depth
    is worth.
    """
    use = {"model.adapter.use_depth": True}
    if config.model.get("depth") is not None:
        return use
    return {"model.depth": random_encoder("dinov3", sizes_of(config)), **use}


def own_weights(encoder: ConfigDict | None) -> dict[str, str]:
    """Weights by preset: those that an encoder of the base has of its own, where it names any."""
    encoder = encoder or ConfigDict()
    return {encoder.preset: encoder.weights} if encoder.get("preset") and encoder.get("weights") else {}


def random_encoder(kind: str, sizes: Sizes) -> dict[str, Any]:
    """The section of an encoder of a family, in given sizes and without weights."""
    section = {
        "kind": kind,
        "width": sizes.width,
        "layers": sizes.layers,
        "heads": sizes.heads,
        "patch_size": sizes.patch_size,
        "table_size": sizes.grid,
        "layer_scale": 1.0,
    }
    return section | ({"global_every": 2} if kind == "sam" else {})
