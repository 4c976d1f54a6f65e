"""One encoder's weights from a file of any known format."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import nnx

from spectralmoe_jax.checkpoints.adapt import EncoderAdapt
from spectralmoe_jax.checkpoints.formats import Found, default_leaves, file_fields, recognise
from spectralmoe_jax.checkpoints.rules import Path, Shape, stream_tensors
from spectralmoe_jax.checkpoints.sources import Source
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.backbone import make_encoder
from spectralmoe_jax.models.encoder import Encoder, EncoderConfig
from spectralmoe_jax.models.presets import PRESETS
from spectralmoe_jax.models.state import fill, leaves, with_values
from spectralmoe_jax.models.wavelengths import KernelGenerator

GENERATED: tuple[Path, ...] = (
    ("patch_kernel",),
    ("patch_bias",),
)  # of encoders that make them of wavelengths
_ARCHITECTURE = (
    "kind", "width", "layers", "heads", "ffn", "mlp_width", "qkv_bias", "storage_tokens", "window",
    "global_every", "norm_eps", "rope_base", "untied_norms",
)  # fmt: skip


def abstract_encoder(config: EncoderConfig) -> Encoder:
    """The encoder with shapes in place of arrays."""
    return nnx.eval_shape(lambda: make_encoder(config, rngs=nnx.Rngs(0)))


def stored_leaves(config: EncoderConfig) -> dict[Path, Shape]:
    """Shapes of the leaves that a file has to fill: all but those made from wavelengths."""
    everything = leaves(abstract_encoder(config))  # type: ignore[arg-type]
    left_out = GENERATED if config.family.wavelengths else ()
    return {path: tuple(leaf.shape) for path, leaf in everything.items() if path not in left_out}


def read_encoder(
    source: Source, config: EncoderConfig, format_name: str | None = None
) -> Iterator[tuple[Path, np.ndarray]]:
    """(path, array) of every leaf of an encoder, each read as it is asked for.

    Args:
      source: a file that holds this encoder, perhaps among other things of its format.
      config: what the encoder should be. Patch size, position grid and bands may differ from the file's, and
        are adapted.
      format_name: a format instead of the one recognised.

    Raises UserError, before anything large is read, where the file is of no known format, holds another
    architecture, or does not fit leaf by leaf.
    """
    found = recognise(source, format_name)
    require_architecture(found, config)
    return stream_found(found, config)


def stream_found(found: Found, config: EncoderConfig) -> Iterator[tuple[Path, np.ndarray]]:
    wanted = stored_leaves(config)
    stream = stream_tensors(
        found.rules(config, wanted), wanted, found.source, source=found.source.describe,
        ignored=found.format.ignored, defaults=default_leaves(found, config),
        adapt=EncoderAdapt(config, found.source.describe),
    )  # fmt: skip
    return with_generated(config, stream) if config.family.wavelengths else stream


def with_generated(
    config: EncoderConfig, stream: Iterator[tuple[Path, np.ndarray]], root: Path = ()
) -> Iterator[tuple[Path, np.ndarray]]:
    """The leaves of `stream`, then the patch embedding that the generator among them, of the encoder at
    `root`, makes of the wavelengths."""
    generator, kept = (*root, "generator"), {}
    for path, leaf in stream:
        if path[: len(generator)] == generator:
            kept[path[len(generator) :]] = leaf
        yield path, leaf
    kernel, bias = generated(config, kept)
    yield (*root, *GENERATED[0]), kernel
    yield (*root, *GENERATED[1]), bias


def generated(config: EncoderConfig, weights: Mapping[Path, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Patch kernel (p, p, C, D) and bias (D,) from the generator's leaves."""
    abstract = nnx.eval_shape(lambda: KernelGenerator(config.patch_size, config.width, rngs=nnx.Rngs(0)))
    kernel, bias = with_values(abstract, weights)(config.wavelengths)
    return np.asarray(kernel), np.asarray(bias)


def require_architecture(found: Found, config: EncoderConfig, where: str = "") -> None:
    """Raises UserError, naming the key, where a file holds another architecture than `config`, which the user
    set at `where`."""
    theirs, where = file_fields(found), where or f"config.model.{config.name}"
    ours = {**dataclasses.asdict(config), "mlp_width": config.hidden}
    for key in _ARCHITECTURE:
        if key not in theirs or theirs[key] == ours[key] or not _matters(key, config):
            continue
        name = matching_preset(theirs)
        remedy = f"choose the preset {name}" if name else "choose the configuration of the file"
        raise UserError(
            f"{found.source.describe}: the file ({found.format.title}) holds {key} {theirs[key]}, "
            f"{where}.{key} is {ours[key]}; {remedy}, or give another file"
        )
    _require_activation(found, config)


def _require_activation(found: Found, config: EncoderConfig) -> None:
    """Models of one shape differ in it, as CLIP's copies do."""
    settings = found.source.config or {}
    theirs = settings.get("vision_config", settings).get("hidden_act")
    gated = config.ffn == "swiglu"
    if theirs is None or (gated and config.kind != "dinov3"):  # DINOv2's gate does not look at the setting
        return
    ours = "silu" if gated else config.family.activation
    if theirs != ours:
        raise UserError(
            f"{found.source.describe}: config.json has hidden_act {theirs}, which this encoder does not "
            f"compute; a {found.format.title} with {ours} is needed"
        )


def _matters(key: str, config: EncoderConfig) -> bool:
    """Whether a setting means anything for the family; tables of relative positions can be resampled."""
    if key in ("window", "global_every"):
        return config.kind == "sam"
    return key != "rope_base" or config.family.rope == "centred"


def matching_preset(fields: dict[str, Any]) -> str | None:
    """The first preset that these fields, as a file has them, do not contradict."""

    def complete(row: dict[str, Any]) -> dict[str, Any]:
        width = int(row["width"] * 4)
        return {
            "ffn": "mlp",
            "mlp_width": width,
            "storage_tokens": 0,
            "qkv_bias": True,
            "untied_norms": (),
            **row,
        }

    keys = ("kind", "width", "layers", "ffn", "mlp_width", "storage_tokens", "qkv_bias", "patch_size",
            "table_size", "heads", "untied_norms")  # fmt: skip
    for name, row in PRESETS.items():
        whole = complete(row)
        if all(fields[key] == whole[key] for key in keys if key in fields and key in whole):
            return name
    return None


def fill_encoder(encoder: Encoder, source: Source, format_name: str | None = None) -> None:
    """Fill an encoder in place; see `read_encoder` for what is raised."""
    fill(encoder, dict(read_encoder(source, encoder.config, format_name)))  # type: ignore[arg-type]
