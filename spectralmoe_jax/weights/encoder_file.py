"""One encoder's weights from a file of any known format.

Published weights made to fit another patch size, position grid or number of bands.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from flax import nnx

from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.config.presets import PRESETS
from spectralmoe_jax.config.presets import preset as published
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.backbone import make_encoder
from spectralmoe_jax.models.encoders.dofa import KernelGenerator
from spectralmoe_jax.models.encoders.encoder import Encoder
from spectralmoe_jax.models.positions import antialias_matrix, bicubic_matrix, linear_matrix
from spectralmoe_jax.parameters import fill, leaves, with_values
from spectralmoe_jax.weights.formats import Found, default_leaves, file_fields, manifest, recognise
from spectralmoe_jax.weights.name_rules import Path, Shape, stream_tensors
from spectralmoe_jax.weights.reading import Source

RGB = ("red", "green", "blue")  # the order of the channels of weights made for colour images
log = logging.getLogger(__name__)


class EncoderAdapt:
    """Resamples patch kernels and position tables bicubically, as torch's `interpolate(align_corners=False)`,
    relative positions linearly, and gives further bands a kernel; see `EncoderConfig.extra_bands`.

    Each adaptation is logged in a line.
    """

    def __init__(self, config: EncoderConfig, source: str):
        self.config, self.source = config, source
        self._logged: set[Path] = set()

    def fits(self, path: Path, shape: Shape, wanted: Shape) -> bool:
        how = self._how(path, shape, wanted)
        if how == self._kernel and wanted[2] < shape[2]:
            self._chosen(shape[2])  # refused before anything is read
        return how is not None

    def __call__(self, path: Path, value: np.ndarray, wanted: Shape) -> np.ndarray:
        how = self._how(path, value.shape, wanted)
        assert how is not None
        if path not in self._logged:
            log.info("%s: %s %s adapted to %s", self.source, "/".join(path), value.shape, wanted)
            self._logged.add(path)
        return how(value, wanted).astype(value.dtype)

    def _how(self, path: Path, shape: Shape, wanted: Shape) -> Callable | None:
        if len(shape) != len(wanted) or shape[-1] != wanted[-1]:
            return None
        if path == ("patch_kernel",):
            return self._kernel if shape[0] == shape[1] else None
        if path == ("position_table",):
            classes = 0 if self.config.kind == "sam" else 1
            square = all(math.isqrt(rows - classes) ** 2 == rows - classes for rows in (shape[0], wanted[0]))
            return self._table if square and shape[0] > classes else None
        return _linear if path[0].startswith(("window_rel_", "global_rel_")) else None

    def _kernel(self, kernel: np.ndarray, wanted: Shape) -> np.ndarray:
        """(p, p, C, D) -> (P, P, bands, D)."""
        if kernel.shape[0] != wanted[0]:
            flat = kernel.reshape(*kernel.shape[:2], -1)
            kernel = _bicubic(flat, wanted[0]).reshape(*wanted[:2], *kernel.shape[2:])
        channels, bands = kernel.shape[2], wanted[2]
        if bands == channels:
            return kernel
        if bands < channels:
            return kernel[:, :, self._chosen(channels)]
        if self.config.extra_bands == "modulo":
            return kernel[:, :, np.arange(bands) % channels]
        extra = np.zeros_like(kernel[:, :, :1])
        if self.config.extra_bands == "mean":
            extra = kernel.mean(axis=2, keepdims=True)
        return np.concatenate([kernel, np.repeat(extra, bands - channels, axis=2)], axis=2)

    def _chosen(self, channels: int) -> list[int]:
        """Which of the weights' channels the bands are, where there are fewer of them.

        Raises UserError where that cannot be told: channels must not be dropped by their order.
        """
        names = self.config.band_names
        if channels == len(RGB) and names and set(names) <= set(RGB):
            return [RGB.index(name) for name in names]
        listed = ", ".join(names) or f"{self.config.in_channels} without names"
        raise UserError(
            f"{self.source}: the weights have {channels} channels, and config.model.{self.config.name} reads "
            f"fewer bands ({listed}), so channels would be dropped unseen; give the bands of the weights, or "
            f"where they are made for RGB, bands named {', '.join(RGB)}"
        )

    def _table(self, table: np.ndarray, wanted: Shape) -> np.ndarray:
        """([1 +] s * s, D) -> ([1 +] S * S, D); the class row stays."""
        classes = 0 if self.config.kind == "sam" else 1
        side, target = (math.isqrt(rows - classes) for rows in (len(table), wanted[0]))
        grid = table[classes:].reshape(side, side, -1)
        resized = _bicubic(grid, target, self.config.table_antialias)
        return np.concatenate([table[:classes], resized.reshape(target**2, -1)])


def _bicubic(grid: np.ndarray, size: int, antialias: bool = False) -> np.ndarray:
    """(s, s, D) -> (size, size, D), through float64."""
    matrix = (antialias_matrix if antialias else bicubic_matrix)(grid.shape[0], size)
    return np.einsum("ih,jw,hwd->ijd", matrix, matrix, grid, optimize=True)


def _linear(table: np.ndarray, wanted: Shape) -> np.ndarray:
    """(n, D) -> (m, D)."""
    return linear_matrix(len(table), wanted[0]) @ table


GENERATED: tuple[Path, ...] = (
    ("patch_kernel",),
    ("patch_bias",),
)  # of encoders that make them of wavelengths
OR = " or "  # between the names of presets that a file may hold
_HEAD_WIDTH = 64  # of every published encoder but SAM-H, which says so
_ANY_BANDS = (0.665, 0.56, 0.49)  # stand in where shapes alone are asked for
_ARCHITECTURE = (
    "kind", "width", "layers", "heads", "ffn", "mlp_width", "qkv_bias", "storage_tokens", "window",
    "global_every", "neck_width", "norm_eps", "rope_base", "untied_norms",
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
    stream = right_masks(stream, found.source.describe)
    return with_generated(config, stream) if config.family.wavelengths else stream


def right_masks(stream: Iterator[tuple[Path, np.ndarray]], source: str) -> Iterator[tuple[Path, np.ndarray]]:
    """The leaves of `stream`, masks of attention biases checked: one for queries and values, zero for keys.

    DINOv3's code makes the mask of NaN and fills it later; a file written before that gets the right one, and
    a line of the log says so. Raises UserError for any other mask.
    """
    for path, leaf in stream:
        if path[-1] == "bias_mask":
            right = np.repeat(np.array([1, 0, 1], leaf.dtype), leaf.shape[-1] // 3)
            empty = np.isnan(leaf).any()
            if empty:
                log.info("%s: the mask of the key bias is not filled (NaN); the right one is used", source)
            elif not (leaf == right).all():
                raise UserError(
                    f"{source}: attn.qkv.bias_mask is not one for queries and values and zero for keys; "
                    "the file is damaged or of another model: give another"
                )
            leaf = np.broadcast_to(right, leaf.shape).copy() if empty else leaf
        yield path, leaf


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
        name = OR.join(presets_of(found, theirs))
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
    if key in ("window", "global_every", "neck_width"):
        return config.kind == "sam"
    return key != "rope_base" or config.family.rope == "centred"


def matching_presets(fields: dict[str, Any]) -> list[str]:
    """The presets that these fields, as a file has them, do not contradict."""

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
    rows = {name: complete(row) for name, row in PRESETS.items()}
    return [
        name
        for name, row in rows.items()
        if all(fields[key] == row[key] for key in keys if key in fields and key in row)
    ]


def presets_of(found: Found, fields: dict[str, Any]) -> list[str]:
    """The presets that a file may hold: what its sizes allow, of those that its format publishes.

    Where sizes do not tell them apart, the record in a file of ours does, or what stands beside the encoder,
    or the published name of the weights.
    """
    recorded = manifest(found.source).get("preset")
    if found.names is None and recorded:
        return recorded.split(OR)
    names = [name for name in matching_presets(fields) if re.fullmatch(found.format.presets, name)]
    if any(name.startswith("prompt_") for name in names):
        return [name for name in names if name.startswith("prompt_") == _is_prompt_depth(found.source)]
    for pretraining, suffix in (("sat493m", "_sat"), ("lvd1689m", "")):
        if pretraining in found.source.describe:
            names = [name for name in names if name.endswith("_sat") == bool(suffix)] or names
    return names


def _is_prompt_depth(source: Source) -> bool:
    """Of the two, Prompt-Depth-Anything alone stores the mean of its pixels."""
    model = (source.config or {}).get("model_type")
    return model == "prompt_depth_anything" or any(name.endswith("_mean") for name in source)


def described(found: Found, preset: str | None = None) -> tuple[dict[str, Any], EncoderConfig]:
    """What the file or `preset` says of the encoder, and a configuration that gives every leaf its shape.

    Raises UserError where the file is of another architecture than the preset, or one of ours says nothing.
    """
    fields = file_fields(found)
    if found.names is None and not fields:
        raise UserError(f"{found.source.describe}: has no manifest; convert the file it came from again")
    chosen = preset or next(iter(presets_of(found, fields)), None)
    row = published(chosen, "--preset") if chosen else {}
    if preset:
        fields = {**fields, **row}
    whole = {"heads": max(1, fields["width"] // _HEAD_WIDTH), **row, **fields}
    if whole["kind"] == "dofa":
        whole |= {"wavelengths": _ANY_BANDS, "in_channels": len(_ANY_BANDS)}
    config = EncoderConfig(**whole)
    require_architecture(found, config, f"--preset {preset}")
    return fields, config


def fill_encoder(encoder: Encoder, source: Source, format_name: str | None = None) -> None:
    """Fill an encoder in place; see `read_encoder` for what is raised."""
    fill(encoder, dict(read_encoder(source, encoder.config, format_name)))  # type: ignore[arg-type]
