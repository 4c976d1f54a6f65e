"""Fill one encoder from a weight file of any known format.

Patch kernel, position table and relative positions are resized where the encoder has another patch size,
position grid or number of bands than the file. Everything else has to match.
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
from spectralmoe_jax.config.presets import FAMILIES, PRESETS, Family, preset
from spectralmoe_jax.errors import UserError, shown
from spectralmoe_jax.models.backbone import make_encoder
from spectralmoe_jax.models.encoders.encoder import Encoder
from spectralmoe_jax.models.encoders.galileo import KERNEL as GALILEO_KERNEL
from spectralmoe_jax.models.positions import bicubic_matrix, linear_matrix
from spectralmoe_jax.parameters import fill, leaves, with_values
from spectralmoe_jax.weights.formats import (
    EncoderFile,
    default_leaves,
    file_fields,
    hugging_face_section,
    recognise,
    refusing_misfits,
)
from spectralmoe_jax.weights.name_rules import LeafPath, Shape, stream_tensors
from spectralmoe_jax.weights.reading import WeightFile, manifest

# Leaves that encoders of the families DOFA and Copernicus-FM generate from wavelengths; no file holds them.
GENERATED_LEAVES: tuple[LeafPath, LeafPath] = (("patch_kernel",), ("patch_bias",))
OR = " or "  # joins the names of presets where a file may hold any of them
RGB = ("red", "green", "blue")  # order of the channels in weights made for RGB images
_HEAD_WIDTH = 64  # of every published encoder except SAM-H, whose config.json gives the number of heads
# micrometres; for shapes, which do not depend on them
_ANY_BANDS = {"wavelengths": (0.665, 0.56, 0.49), "bandwidths": (0.03, 0.035, 0.065), "in_channels": 3}
# Fields in which a file and the configuration have to agree.
_ARCHITECTURE = (
    "kind", "width", "layers", "heads", "ffn", "mlp_width", "qkv_bias", "storage_tokens", "window",
    "global_every", "neck_width", "norm_eps", "rope_base", "untied_norms",
)  # fmt: skip
log = logging.getLogger(__name__)


def fill_encoder(encoder: Encoder, file: WeightFile, format_name: str | None = None) -> None:
    """Fill an encoder in place; arguments and errors are those of `read_encoder`."""
    fill(encoder, dict(read_encoder(file, encoder.config, format_name)))


def read_encoder(
    file: WeightFile, config: EncoderConfig, format_name: str | None = None
) -> Iterator[tuple[LeafPath, np.ndarray]]:
    """Yield path and array of every leaf of an encoder, each read on demand.

    Args:
      file: a file that holds this encoder, perhaps among other things of its format.
      config: the encoder to fill. Patch size, position grid and bands may differ from the file's.
      format_name: the format, instead of the one recognised.

    Raises:
      UserError: the file is of no known format, holds another architecture, or has missing, unexpected or
        misshapen tensors; raised before anything large is read.
    """
    encoder_file = recognise(file, format_name, config.kind)
    require_architecture(encoder_file, config)
    return stream_encoder(encoder_file, config)


def stream_encoder(encoder_file: EncoderFile, config: EncoderConfig) -> Iterator[tuple[LeafPath, np.ndarray]]:
    """Yield the leaves as `read_encoder` does, from a file whose format and architecture are checked."""
    wanted = stored_leaves(config)
    spec = encoder_file.file.spec
    stream = stream_tensors(
        encoder_file.rules(config, wanted),
        wanted,
        encoder_file.file,
        file=spec,
        ignored=encoder_file.format.ignored,
        defaults=default_leaves(encoder_file, config),
        resizer=EncoderResizer(config, spec),
    )
    stream = check_bias_masks(stream, spec)
    return with_patch_embedding(config, stream) if config.family.wavelengths else stream


def stored_leaves(config: EncoderConfig) -> dict[LeafPath, Shape]:
    """Return the shapes of the leaves that a file has to fill: all but `GENERATED_LEAVES`."""
    abstract: Any = nnx.eval_shape(lambda: make_encoder(config, rngs=nnx.Rngs(0)))
    generated = GENERATED_LEAVES if config.family.wavelengths else ()
    return {path: tuple(leaf.shape) for path, leaf in leaves(abstract).items() if path not in generated}


def check_bias_masks(
    stream: Iterator[tuple[LeafPath, np.ndarray]], file: str
) -> Iterator[tuple[LeafPath, np.ndarray]]:
    """Yield the leaves of `stream`, the masks of attention biases checked or filled.

    A mask is one for queries and values and zero for keys. DINOv3's code creates it as NaN and fills it
    later; a mask that was saved before that is filled here, with a line in the log.

    Raises:
      UserError: a mask has other values.
    """
    for path, leaf in stream:
        if path[-1] == "bias_mask":
            expected = np.repeat(np.array([1, 0, 1], leaf.dtype), leaf.shape[-1] // 3)
            empty = np.isnan(leaf).any()
            if empty:
                log.info("%s: the mask of the key bias is not filled (NaN); the correct mask is used", file)
            elif not (leaf == expected).all():
                raise UserError(
                    f"{file}: attn.qkv.bias_mask is not one for queries and values and zero for keys; "
                    "the file is damaged or of another model: give another"
                )
            leaf = np.broadcast_to(expected, leaf.shape).copy() if empty else leaf
        yield path, leaf


def with_patch_embedding(
    config: EncoderConfig, stream: Iterator[tuple[LeafPath, np.ndarray]], root: LeafPath = ()
) -> Iterator[tuple[LeafPath, np.ndarray]]:
    """Yield the leaves of `stream`, then the patch embedding generated from the encoder's wavelengths.

    Args:
      config: an encoder whose patch embedding is generated.
      stream: leaves, those of the encoder's kernel generator among them.
      root: path of the encoder.
    """
    generator, weights = (*root, "generator"), {}
    for path, leaf in stream:
        if path[: len(generator)] == generator:
            weights[path[len(generator) :]] = leaf
        yield path, leaf
    kernel, bias = _generate_patch_embedding(config, weights)
    yield (*root, *GENERATED_LEAVES[0]), kernel
    yield (*root, *GENERATED_LEAVES[1]), bias


def _generate_patch_embedding(
    config: EncoderConfig, weights: Mapping[LeafPath, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Return patch kernel (p, p, bands, D) and bias (D,)."""
    abstract: Any = nnx.eval_shape(lambda: make_encoder(config, rngs=nnx.Rngs(0)))
    kernel, bias = with_values(abstract.generator, weights)(config.wavelengths, config.bandwidths)
    return np.asarray(kernel), np.asarray(bias)


def require_architecture(encoder_file: EncoderFile, config: EncoderConfig, where: str = "") -> None:
    """Raise a UserError that names the key where a file holds another architecture than `config`.

    Args:
      encoder_file: the file.
      config: the encoder to fill.
      where: key or option that the user gave the architecture by; by default the encoder's section.
    """
    theirs, where = file_fields(encoder_file), where or f"config.model.{config.name}"
    ours = {**dataclasses.asdict(config), "mlp_width": config.hidden}
    for key in _ARCHITECTURE:
        if key not in theirs or theirs[key] == ours[key] or not _applies(key, config):
            continue
        name = OR.join(candidate_presets(encoder_file, theirs))
        remedy = f"choose the preset {name}" if name else "choose the configuration of the file"
        raise UserError(
            f"{encoder_file.file.spec}: the file ({encoder_file.format.title}) holds {key} {theirs[key]}, "
            f"{where}.{key} is {ours[key]}; {remedy}, or give another file"
        )
    _require_activation(encoder_file, config)


def _applies(key: str, config: EncoderConfig) -> bool:
    """Return whether a setting applies to the encoder's family."""
    if key in ("window", "global_every", "neck_width"):
        return config.kind == "sam"
    return key != "rope_base" or config.family.rope == "centred"


def _require_activation(encoder_file: EncoderFile, config: EncoderConfig) -> None:
    """Raise a UserError where config.json names another activation: models of one shape differ in it."""
    with refusing_misfits(encoder_file.file.spec):
        theirs = hugging_face_section(encoder_file.file.config, "vision_config").get("hidden_act")
    gated = config.ffn == "swiglu"
    if theirs is None or (gated and config.kind != "dinov3"):  # DINOv2's SwiGLU ignores the setting
        return
    ours = "silu" if gated else config.family.activation
    if theirs != ours:
        raise UserError(
            f"{encoder_file.file.spec}: config.json has hidden_act {shown(theirs)}, which this encoder does "
            f"not compute; a {encoder_file.format.title} with {ours} is needed"
        )


def infer_config(
    encoder_file: EncoderFile, preset_name: str | None = None
) -> tuple[dict[str, Any], EncoderConfig]:
    """Infer an encoder's configuration from a file.

    Args:
      encoder_file: the file.
      preset_name: the preset that the file has to hold, where the user gave one.

    Returns:
      The fields that the file or the preset determines, and a configuration that gives every leaf its shape.

    Raises:
      UserError: the file holds another architecture than the preset, or is a native file without a manifest.
    """
    fields = file_fields(encoder_file)
    if encoder_file.names is None and not fields:
        raise UserError(f"{encoder_file.file.spec}: has no manifest; convert the file it came from again")
    chosen = preset_name or next(iter(candidate_presets(encoder_file, fields)), None)
    row = preset(chosen, "--preset") if chosen else {}
    if preset_name:
        fields = {**fields, **row}
    with refusing_misfits(encoder_file.file.spec):
        whole = {"heads": max(1, fields["width"] // _HEAD_WIDTH), **row, **fields}
        if FAMILIES.get(whole["kind"], Family()).wavelengths:
            whole |= _ANY_BANDS
        if whole["kind"] == "galileo":
            whole = {"patch_size": GALILEO_KERNEL, **whole}
        config = EncoderConfig(**whole)
    require_architecture(encoder_file, config, f"--preset {preset_name}")
    if encoder_file.names is None:
        _require_recorded_shapes(encoder_file.file, config)
    return fields, config


def _require_recorded_shapes(file: WeightFile, config: EncoderConfig) -> None:
    """Raise a UserError where a native file's record gives a tensor another shape than it has."""
    with refusing_misfits(file.spec):
        for path, shape in stored_leaves(config).items():
            name = "/".join(path)
            if name in file and file.shape(name) != shape:
                raise ValueError(f"{name} is {file.shape(name)}, its record makes it {shape}")


def candidate_presets(encoder_file: EncoderFile, fields: dict[str, Any]) -> list[str]:
    """List the presets that a file may hold.

    These are the presets of the file's sizes that its format publishes. Where sizes do not tell presets
    apart, the manifest of a native file does, or a tensor beside the encoder, or the weights' published name.
    """
    recorded = manifest(encoder_file.file).get("preset")
    if encoder_file.names is None and recorded:
        return recorded.split(OR)
    presets = encoder_file.format.presets
    names = [name for name in _presets_of_size(fields) if re.fullmatch(presets, name)]
    if any(name.startswith("prompt_") for name in names):
        is_prompt_depth = _is_prompt_depth(encoder_file.file)
        return [name for name in names if name.startswith("prompt_") == is_prompt_depth]
    for pretraining, suffix in (("sat493m", "_sat"), ("lvd1689m", "")):
        if pretraining in encoder_file.file.spec:
            names = [name for name in names if name.endswith("_sat") == bool(suffix)] or names
    return names


def _presets_of_size(fields: dict[str, Any]) -> list[str]:
    """List the presets that agree with all given fields."""
    keys = (
        "kind", "width", "layers", "ffn", "mlp_width", "storage_tokens", "qkv_bias", "patch_size",
        "table_size", "heads", "untied_norms",
    )  # fmt: skip
    defaults = {"ffn": "mlp", "storage_tokens": 0, "qkv_bias": True, "untied_norms": ()}
    rows = {name: {**defaults, "mlp_width": int(row["width"] * 4), **row} for name, row in PRESETS.items()}
    return [
        name
        for name, row in rows.items()
        if all(fields[key] == row[key] for key in keys if key in fields and key in row)
    ]


def _is_prompt_depth(file: WeightFile) -> bool:
    """Return whether a file is Prompt-Depth-Anything's; unlike Depth-Anything's it has the pixels' mean."""
    model = (file.config or {}).get("model_type")
    return model == "prompt_depth_anything" or any(name.endswith("_mean") for name in file)


class EncoderResizer:
    """Resizes patch kernels, position tables and relative positions to the sizes of an encoder.

    Kernels and tables are resampled bicubically, as torch's `interpolate(align_corners=False)`, tables as the
    encoder's family does; relative positions linearly. Bands beyond the file's get kernels according to
    `EncoderConfig.extra_bands`. Every leaf that is resized is logged.

    Args:
      config: the encoder to fill.
      file: name of the weight file in messages.
    """

    def __init__(self, config: EncoderConfig, file: str):
        self.config, self.file = config, file
        self._logged: set[LeafPath] = set()

    def fits(self, path: LeafPath, shape: Shape, wanted: Shape) -> bool:
        """Return whether a leaf of `shape` can be resized to `wanted`.

        Raises:
          UserError: channels would have to be dropped, and it is not known which.
        """
        resize = self._choose(path, shape, wanted)
        if resize == self._resize_kernel and wanted[2] < shape[2]:
            self._kept_channels(shape[2])
        return resize is not None

    def __call__(self, path: LeafPath, value: np.ndarray, wanted: Shape) -> np.ndarray:
        """Resize a leaf for which `fits` is true."""
        resize = self._choose(path, value.shape, wanted)
        assert resize is not None
        if path not in self._logged:
            log.info("%s: %s %s adapted to %s", self.file, "/".join(path), value.shape, wanted)
            self._logged.add(path)
        return resize(value, wanted).astype(value.dtype)

    def _choose(self, path: LeafPath, shape: Shape, wanted: Shape) -> Callable | None:
        """Return the function that resizes this leaf, or None if none can."""
        if len(shape) != len(wanted) or shape[-1] != wanted[-1]:
            return None
        if path == ("patch_kernel",):
            return self._resize_kernel if shape[0] == shape[1] else None
        if path == ("position_table",):
            sides = [rows - self._class_rows for rows in (shape[0], wanted[0])]
            square = all(math.isqrt(rows) ** 2 == rows for rows in sides)
            return self._resize_table if square and shape[0] > self._class_rows else None
        return _resize_relative if path[0].startswith(("window_rel_", "global_rel_")) else None

    @property
    def _class_rows(self) -> int:
        """Rows of the position table for the class token."""
        return 0 if self.config.kind == "sam" else 1

    def _resize_kernel(self, kernel: np.ndarray, wanted: Shape) -> np.ndarray:
        """Resize (p, p, channels, D) to (P, P, bands, D)."""
        if kernel.shape[0] != wanted[0]:
            flat = kernel.reshape(*kernel.shape[:2], -1)  # (p, p, channels * D)
            kernel = _bicubic(flat, wanted[0]).reshape(*wanted[:2], *kernel.shape[2:])
        channels, bands = kernel.shape[2], wanted[2]
        if bands == channels:
            return kernel
        if bands < channels:
            return kernel[:, :, self._kept_channels(channels)]
        if self.config.extra_bands == "modulo":
            return kernel[:, :, np.arange(bands) % channels]
        extra = np.zeros_like(kernel[:, :, :1])  # (P, P, 1, D)
        if self.config.extra_bands == "mean":
            extra = kernel.mean(axis=2, keepdims=True)
        return np.concatenate([kernel, np.repeat(extra, bands - channels, axis=2)], axis=2)

    def _kept_channels(self, channels: int) -> list[int]:
        """Return the channel of the weights for each band, if there are fewer bands than channels.

        Raises:
          UserError: the bands are not known to be channels of RGB weights; dropping some by position could
            go unnoticed.
        """
        names = self.config.band_names
        if channels == len(RGB) and names and set(names) <= set(RGB):
            return [RGB.index(name) for name in names]
        listed = ", ".join(names) or f"{self.config.in_channels} without names"
        raise UserError(
            f"{self.file}: the weights have {channels} channels, and config.model.{self.config.name} reads "
            f"fewer bands ({listed}), so channels would be dropped silently; give the bands of the weights "
            f"or, for RGB weights, bands named {', '.join(RGB)}"
        )

    def _resize_table(self, table: np.ndarray, wanted: Shape) -> np.ndarray:
        """Resize ([1 +] s * s, D) to ([1 +] S * S, D); the row of the class token stays."""
        classes = self._class_rows
        side, target = (math.isqrt(rows - classes) for rows in (len(table), wanted[0]))
        grid = table[classes:].reshape(side, side, -1)  # (s, s, D)
        family = self.config.family
        antialias = self.config.table_antialias or family.table_antialias
        resized = _bicubic(grid, target, antialias, family.table_offset)  # (S, S, D)
        return np.concatenate([table[:classes], resized.reshape(target**2, -1)])


def _bicubic(grid: np.ndarray, size: int, antialias: bool = False, offset: float = 0.0) -> np.ndarray:
    """Resample (s, s, D) to (size, size, D), through float64."""
    matrix = bicubic_matrix(grid.shape[0], size, antialias=antialias, offset=offset)  # (size, s)
    return np.einsum("ih,jw,hwd->ijd", matrix, matrix, grid, optimize=True)


def _resize_relative(table: np.ndarray, wanted: Shape) -> np.ndarray:
    """Resample relative positions (n, D) to (m, D)."""
    return linear_matrix(len(table), wanted[0]) @ table
