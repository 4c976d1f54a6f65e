"""The authors' released state dict: which tensor stands where, for the whole segmenter or any part of it.

The names are those of the released segmenter, `backbone.*`, `decode_head.*` and `data_preprocessor.*`. The
merged backbone file has those of the backbone, the training checkpoint those of adapter and head alone.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from spectralmoe_jax.checkpoints import format_rules as rows
from spectralmoe_jax.checkpoints.adapt import EncoderAdapt
from spectralmoe_jax.checkpoints.encoder_file import GENERATED, require_architecture, with_generated
from spectralmoe_jax.checkpoints.format_rules import encoder_rules
from spectralmoe_jax.checkpoints.formats import (
    DEPTH_REST,
    FORMATS,
    Found,
    default_leaves,
    native_rules,
    recognise,
)
from spectralmoe_jax.checkpoints.released_head import head_rules
from spectralmoe_jax.checkpoints.rules import Path, Rule, Shape, stream_tensors, write_tensors
from spectralmoe_jax.checkpoints.sources import Source, open_source
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.encoder import EncoderConfig
from spectralmoe_jax.models.segmenter import Segmenter, SegmenterConfig
from spectralmoe_jax.models.state import fill, leaves

ADAPTER = [
    Rule("experts_a.{layer}.{expert}", ("experts_a",)),
    Rule("experts_b.{layer}.{expert}", ("experts_b",)),
    Rule("w_gate.{layer}.{modality}", ("w_gate",)),
    Rule("w_noise.{layer}.{modality}", ("w_noise",)),
    Rule("scale", ("scale",)),
    Rule("mlp_token2feat.weight", ("token_to_feature", "kernel"), "linear"),
    Rule("mlp_token2feat.bias", ("token_to_feature", "bias")),
    Rule("mlp_delta_f.weight", ("delta_to_feature", "kernel"), "linear"),
    Rule("mlp_delta_f.bias", ("delta_to_feature", "bias")),
    Rule("transform.weight", ("transform", "kernel"), "linear"),
    Rule("transform.bias", ("transform", "bias")),
    Rule("merge.weight", ("merge", "kernel"), "linear"),
    Rule("merge.bias", ("merge", "bias")),
]
# mean and deviation of the normal distribution behind the smooth load
ADAPTER_CONSTANTS = {"mean": 0.0, "std": 1.0}

PIXELS = [
    Rule("data_preprocessor.mean", ("pixel_mean",), "per_band"),
    Rule("data_preprocessor.std", ("pixel_std",), "per_band"),
]


NAMES = {
    "dinov3": rows.META_DINOV3,
    "dinov2": rows.META_DINOV2,
    "dofa": rows.DOFA,
    "eva02": rows.EVA02,
}  # families whose names the released code shares with their publishers
# part -> (what its released names start with, where it stands in our model), the more specific first
PARTS: dict[str, tuple[str, Path]] = {
    "depth": ("backbone.depth_anything.", ("backbone", "depth")),
    "adapter": ("backbone.depthmoe.", ("backbone", "adapter")),
    "visual": ("backbone.", ("backbone", "visual")),
    "head": ("decode_head.", ("head",)),
    "pixels": ("data_preprocessor.", ()),
}
ENCODERS = {
    "visual": ("backbone.", ("backbone", "visual")),
    "depth": ("backbone.depth_anything.pretrained.", ("backbone", "depth")),
}
DEFINED = ("bias_mask", "rope_periods")  # leaves that some formats define instead of storing
SEGMENTER_CONSTANTS = {"backbone.depthmoe." + name: value for name, value in ADAPTER_CONSTANTS.items()}
_WITHOUT_ROOT = ("depth_anything.pretrained.", "depthmoe.")
_IGNORED_DEPTH = tuple(rf"backbone\.depth_anything\.{rest}" for rest in DEPTH_REST)


def under(prefix: str, path: Path, rules: list[Rule]) -> list[Rule]:
    """The same rules for a module that stands at `path` in ours and at `prefix` in the released names."""
    return [rule.under(prefix, path) for rule in rules]


def segmenter_rules(visual: EncoderConfig | None = None, depth: EncoderConfig | None = None) -> list[Rule]:
    """The rules of the whole segmenter; by default those for plain DINOv3 and DINOv2 encoders.

    Raises UserError for an encoder that the released code does not have.
    """
    visual, depth = visual or EncoderConfig("dinov3"), depth or EncoderConfig("dinov2", name="depth")
    encoders = [
        rule
        for config in (visual, depth)
        for rule in under(*ENCODERS[config.name], encoder_rules(_names(config), config))
    ]
    return [
        *encoders,
        *under("backbone.depthmoe.", ("backbone", "adapter"), ADAPTER),
        *head_rules("decode_head.", ("head",)),
        *PIXELS,
    ]


def _names(config: EncoderConfig) -> rows.Names:
    if config.kind not in NAMES:
        raise UserError(
            f"config.model.{config.name}.kind = {config.kind!r}: the released names are for "
            f"{', '.join(NAMES)}; read or write this one by our own names (--to safetensors)"
        )
    return NAMES[config.kind]


def is_segmenter(source: Source) -> bool:
    """Whether a file holds a segmenter or parts of one, under the released names or ours; an encoder's own
    file is none."""
    return is_native(source) or any(
        name.startswith(("decode_head.", "backbone.depth_anything.", "backbone.depthmoe.", *_WITHOUT_ROOT))
        for name in source
    )


def is_native(source: Source) -> bool:
    return any(name.startswith(("backbone/", "head/")) for name in source)


def parts_of(source: Source) -> set[str]:
    """The parts of a segmenter that a file holds, named as in `PARTS`."""
    return {part_of(name) for name in canonical(source)} - {""}


def canonical(source: Source) -> Source:
    """The file under the names of the whole released segmenter, or as it is where the names are ours."""
    roots = tuple(root for root, _ in PARTS.values())
    if is_native(source) or any(name.startswith(roots) for name in source):
        return source
    return source.renamed(lambda name: "backbone." + name)


def part_of(name: str | Path) -> str:
    """The part that a released name, one of ours, or a path belongs to; "" for none."""
    if isinstance(name, str) and "/" not in name and "." in name:
        return next((part for part, (root, _) in PARTS.items() if name.startswith(root)), "")
    path = tuple(name.split("/")) if isinstance(name, str) else name
    if path[0].startswith("pixel_"):
        return "pixels"
    return next((part for part, (_, own) in PARTS.items() if own and path[: len(own)] == own), "")


class _Adapt:
    """`EncoderAdapt` for the encoders of a segmenter."""

    def __init__(self, config: SegmenterConfig, source: str):
        self._encoders: dict[Path, EncoderAdapt] = {
            ENCODERS[encoder.name][1]: EncoderAdapt(encoder, source)
            for encoder in (config.visual, config.depth)
            if encoder is not None
        }

    def fits(self, path: Path, shape: Shape, wanted: Shape) -> bool:
        encoder = self._encoders.get(path[:2])
        return encoder is not None and encoder.fits(path[2:], shape, wanted)

    def __call__(self, path: Path, value: np.ndarray, wanted: Shape) -> np.ndarray:
        return self._encoders[path[:2]](path[2:], value, wanted)


def stream_segmenter(
    source: Source, config: SegmenterConfig, shapes: dict[Path, Shape], parts: Collection[str]
) -> Iterator[tuple[Path, np.ndarray]]:
    """(path, array) of every leaf of `parts`, each read as it is asked for.

    Args:
      source: a file that holds these parts under the released names or ours.
      shapes: of all leaves of the segmenter.

    Raises UserError, listing all problems together, before anything large is read.
    """
    named = canonical(source).renamed(lambda name: name if part_of(name) in (*parts, "") else "")
    wanted = {path: shape for path, shape in shapes.items() if part_of(path) in parts}
    wanted = {path: shape for path, shape in wanted.items() if path not in generated_leaves(config)}
    native = is_native(named)
    if not native:
        _require_architectures(named, config, parts)
    rules = native_rules(wanted) if native else segmenter_rules(config.visual, config.depth)
    stream = stream_tensors(
        rules, wanted, named, source=source.describe, constants=SEGMENTER_CONSTANTS,
        ignored=_ignored(config), defaults={} if native else _defaults(named, config),
        adapt=_Adapt(config, source.describe),
    )  # fmt: skip
    if config.visual.family.wavelengths and "visual" in parts:
        return with_generated(config.visual, stream, ("backbone", "visual"))
    return stream


def generated_leaves(config: SegmenterConfig) -> list[Path]:
    """Leaves that no file holds: what is made of the bands' wavelengths."""
    return [("backbone", "visual", *path) for path in GENERATED] if config.visual.family.wavelengths else []


def _require_architectures(source: Source, config: SegmenterConfig, parts: Collection[str]) -> None:
    """Raises UserError, naming the key, where an encoder in the file is of another architecture."""
    for encoder in (config.visual, config.depth):
        if encoder is None or encoder.name not in parts:
            continue
        try:
            found = recognise(_encoder_of(source, encoder.name))
        except UserError:
            continue  # what is missing is reported leaf by leaf
        require_architecture(found, encoder)


def _encoder_of(source: Source, part: str) -> Source:
    """An encoder alone, under its publisher's names."""
    root = ENCODERS[part][0]
    return source.renamed(lambda name: name[len(root) :] if part_of(name) == part else "")


def _ignored(config: SegmenterConfig) -> list[str]:
    formats = {format.kind: format for format in reversed(FORMATS) if format.names[0] in NAMES.values()}
    patterns = formats[config.visual.kind].ignored if config.visual.kind in formats else ()
    return [*_IGNORED_DEPTH, *(rf"backbone\.(?:{pattern})" for pattern in patterns)]


def _defaults(source: Source, config: SegmenterConfig) -> dict[Path, np.ndarray]:
    defaults: dict[Path, np.ndarray] = {}
    for encoder in (config.visual, config.depth):
        if encoder is None or encoder.kind not in NAMES:
            continue
        found = Found(FORMATS[0], _names(encoder), "", source)
        own = default_leaves(found, encoder)
        defaults |= {(*ENCODERS[encoder.name][1], *path): value for path, value in own.items()}
    return defaults


def released_tensors(config: SegmenterConfig, values: Mapping[Path, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """The state dict that the released code loads with strict=True, tensor by tensor.

    Raises UserError for an encoder that the released code does not have.
    """
    rules = segmenter_rules(config.visual, config.depth)
    stored = {rule.path for rule in rules}
    for path, leaf in values.items():
        defined = path[-1] in DEFINED and path not in stored
        if not defined and path not in generated_leaves(config):
            yield from write_tensors(rules, {path: np.asarray(leaf)}).items()
    for name, value in SEGMENTER_CONSTANTS.items():
        yield name, np.full((1,), value, np.float32)


def load_released(segmenter: Segmenter, file: str | os.PathLike[str]) -> None:
    """Fill a segmenter with a file that holds all of it, under the released names or ours, strictly.

    Raises UserError where the file is missing or broken, or, listing all problems together, where a leaf
    stays empty, a tensor is left over or a shape differs; the segmenter is then unchanged.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves(segmenter).items()}
    fill(segmenter, dict(stream_segmenter(open_source(file), segmenter.config, shapes, list(PARTS))))
