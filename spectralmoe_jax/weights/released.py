"""The authors' released state dict: which tensor stands where, for the whole segmenter or any part of it.

The names are those of the released segmenter, `backbone.*`, `decode_head.*` and `data_preprocessor.*`. The
merged backbone file has those of the backbone, the training checkpoint those of adapter and head alone.

The released names of the Mask2Former head's weights.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Collection, Iterator

import numpy as np

from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.config.model import EncoderConfig, Mask2FormerConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.segmenter import Segmenter, SegmenterConfig
from spectralmoe_jax.parameters import fill, leaves
from spectralmoe_jax.weights import format_tables as rows
from spectralmoe_jax.weights.encoder_file import (
    GENERATED,
    EncoderAdapt,
    require_architecture,
    right_masks,
    with_generated,
)
from spectralmoe_jax.weights.format_tables import encoder_rules
from spectralmoe_jax.weights.formats import (
    DEPTH_REST,
    FORMATS,
    MANIFEST,
    Found,
    default_leaves,
    manifest,
    native_rules,
    recognise,
)
from spectralmoe_jax.weights.name_rules import Path, Rule, Shape, stream_tensors
from spectralmoe_jax.weights.reading import Source, open_source

_ENCODER = "pixel_decoder.encoder.layers.{layer}"
_DECODER = "transformer_decoder.layers.{layer}"


def head_rules(root: str = "decode_head.", path: Path = ("head",)) -> list[Rule]:
    """One rule for every leaf of `Mask2FormerHead`.

    Args:
      root: what the released names start with. path: where the head stands in the model.
    """
    pixel, decoder = ("pixel_decoder",), ("transformer_decoder",)
    encoder, layers = (*pixel, "encoder"), (*decoder, "layers")
    rules = [
        Rule("query_feat.weight", ("query_feat",)),
        Rule("level_embed.weight", ("level_embed",)),
        *_linear("cls_embed", ("cls_embed",)),
        *_linear("mask_embed.0", ("mask_embed", "first")),
        *_linear("mask_embed.2", ("mask_embed", "second")),
        *_linear("mask_embed.4", ("mask_embed", "third")),
        Rule("pixel_decoder.level_encoding.weight", (*pixel, "level_encoding")),
        *_linear("pixel_decoder.input_convs.{level}.conv", (*pixel, "input_convs", "conv"), "conv1x1"),
        *_norm("pixel_decoder.input_convs.{level}.gn", (*pixel, "input_convs", "gn")),
        Rule(
            "pixel_decoder.lateral_convs.0.conv.weight", (*pixel, "lateral_conv", "conv", "kernel"), "conv1x1"
        ),
        *_norm("pixel_decoder.lateral_convs.0.gn", (*pixel, "lateral_conv", "gn")),
        Rule("pixel_decoder.output_convs.0.conv.weight", (*pixel, "output_conv", "conv", "kernel"), "conv"),
        *_norm("pixel_decoder.output_convs.0.gn", (*pixel, "output_conv", "gn")),
        *_linear("pixel_decoder.mask_feature", (*pixel, "mask_feature"), "conv1x1"),
        *(
            rule
            for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
            for rule in _linear(f"{_ENCODER}.self_attn.{name}", (*encoder, "self_attn", name))
        ),
        *_feed_forward(_ENCODER, encoder),
        *_norm(f"{_ENCODER}.norms.0", (*encoder, "norm_attention")),
        *_norm(f"{_ENCODER}.norms.1", (*encoder, "norm_ffn")),
        *_attention("cross_attn", layers),
        *_attention("self_attn", layers),
        *_feed_forward(_DECODER, layers),
        *_norm(f"{_DECODER}.norms.0", (*layers, "norm_cross")),
        *_norm(f"{_DECODER}.norms.1", (*layers, "norm_self")),
        *_norm(f"{_DECODER}.norms.2", (*layers, "norm_ffn")),
        *_norm("transformer_decoder.post_norm", (*decoder, "post_norm")),
    ]
    return [rule.under(root, path) for rule in rules]


def _linear(name: str, path: Path, transform: str = "linear") -> list[Rule]:
    return [Rule(f"{name}.weight", (*path, "kernel"), transform), Rule(f"{name}.bias", (*path, "bias"))]


def _norm(name: str, path: Path) -> list[Rule]:
    return [Rule(f"{name}.weight", (*path, "scale")), Rule(f"{name}.bias", (*path, "bias"))]


def _feed_forward(name: str, path: Path) -> list[Rule]:
    return [
        *_linear(f"{name}.ffn.layers.0.0", (*path, "ffn", "hidden")),
        *_linear(f"{name}.ffn.layers.1", (*path, "ffn", "output")),
    ]


def _attention(kind: str, path: Path) -> list[Rule]:
    return [
        Rule(f"{_DECODER}.{kind}.attn.in_proj_weight", (*path, kind, "in_proj", "kernel"), "linear"),
        Rule(f"{_DECODER}.{kind}.attn.in_proj_bias", (*path, kind, "in_proj", "bias")),
        *_linear(f"{_DECODER}.{kind}.attn.out_proj", (*path, kind, "out_proj")),
    ]


log = logging.getLogger(__name__)
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
ABSENT = {
    "clip": "the released code has a learned pyramid (fpn1 to fpn4) behind CLIP, this model has none",
    "sam": "the released code adapts SAM's layers with global attention alone, this model every layer",
}
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
SEGMENTER_CONSTANTS = {"backbone.depthmoe." + name: value for name, value in ADAPTER_CONSTANTS.items()}
_WITHOUT_ROOT = ("depth_anything.pretrained.", "depthmoe.")
_DEPTH_ROUTER = r"backbone\.depthmoe\.w_(gate|noise)\.\d+\.1"
IGNORED_DEPTH = tuple(rf"backbone\.depth_anything\.{rest}" for rest in DEPTH_REST)


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
            f"config.model.{config.name}.kind = {config.kind!r} has no released layout: "
            f"{ABSENT[config.kind]}; read or write it by our own names (--to safetensors)"
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
    parts = _used_parts(source, config, parts)
    if not is_native(canonical(source)):
        require_released(config, parts & {"adapter", "head"}, source.describe)
    named = canonical(source).renamed(lambda name: name if part_of(name) in (*parts, "") else "")
    wanted = {path: shape for path, shape in shapes.items() if part_of(path) in parts}
    wanted = {path: shape for path, shape in wanted.items() if path not in generated_leaves(config)}
    native = is_native(named)
    _require_architectures(source, config, parts)
    rules = native_rules(wanted) if native else segmenter_rules(config.visual, config.depth)
    stream = stream_tensors(
        rules, wanted, named, source=source.describe, constants=SEGMENTER_CONSTANTS,
        ignored=_ignored(config), defaults={} if native else _defaults(named, config),
        adapt=_Adapt(config, source.describe),
    )  # fmt: skip
    stream = right_masks(stream, source.describe)
    if config.visual.family.wavelengths and "visual" in parts:
        return with_generated(config.visual, stream, ("backbone", "visual"))
    return stream


def require_released(config: SegmenterConfig, parts: Collection[str], source: str) -> None:
    """Raises UserError for an adapter or a head, among `parts`, that the released code does not have.

    source: the file, or the command, that has or wants the released layout.
    """
    kinds = {
        "adapter": (config.adapter_kind, SpectralMoEConfig.kind),
        "head": ("mask2former" if isinstance(config.head, Mask2FormerConfig) else "linear", "mask2former"),
    }
    for part in sorted(parts):
        kind, released = kinds[part]
        if kind != released:
            raise UserError(
                f"{source}: config.model.{part}.kind = {kind!r} has no released layout, which is of "
                f"{released} alone; read or write it by our own names (--to safetensors)"
            )


def _used_parts(source: Source, config: SegmenterConfig, parts: Collection[str]) -> set[str]:
    """`parts` but for a depth encoder that the configuration has no use for, which the log says."""
    if config.uses_depth or "depth" not in parts:
        return set(parts)
    log.info(
        "%s: its depth encoder and the router of depth are left out: config.model.adapter.use_depth is False",
        source.describe,
    )
    return set(parts) - {"depth"}


def generated_leaves(config: SegmenterConfig) -> list[Path]:
    """Leaves that no file holds: what is made of the bands' wavelengths."""
    return [("backbone", "visual", *path) for path in GENERATED] if config.visual.family.wavelengths else []


def _require_architectures(source: Source, config: SegmenterConfig, parts: Collection[str]) -> None:
    """Raises UserError, naming the key, where an encoder in the file is of another architecture."""
    found = encoders_of(source, parts)
    for encoder in (config.visual, config.depth):
        if encoder is not None and encoder.name in found:
            require_architecture(found[encoder.name], encoder)


def encoders_of(source: Source, parts: Collection[str]) -> dict[str, Found]:
    """The encoders among `parts` of a segmenter's file, by part; one of no known format is left out: its
    tensors are reported one by one."""
    found = {}
    for part in set(parts) & ENCODERS.keys():
        with contextlib.suppress(UserError):
            found[part] = recognise(encoder_alone(source, part))
    return found


def encoder_alone(source: Source, part: str) -> Source:
    """An encoder of a segmenter's file under its publisher's names, or ours where the file has ours."""
    named = canonical(source)
    root = "/".join(ENCODERS[part][1]) + "/" if is_native(named) else ENCODERS[part][0]
    own = [name for name in named if part_of(name) == part and not _is_depth_rest(name)]
    names = {name: name.removeprefix(root) for name in own}
    record = manifest(source).get("encoders", {}).get(part, {})
    return named.renamed(lambda name: names.get(name, ""), {MANIFEST: json.dumps(record)})


def _is_depth_rest(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in IGNORED_DEPTH)


def _ignored(config: SegmenterConfig) -> list[str]:
    formats = {format.kind: format for format in reversed(FORMATS) if format.names[0] in NAMES.values()}
    patterns = formats[config.visual.kind].ignored if config.visual.kind in formats else ()
    router = () if config.uses_depth else (_DEPTH_ROUTER,)
    return [*IGNORED_DEPTH, *router, *(rf"backbone\.(?:{pattern})" for pattern in patterns)]


def _defaults(source: Source, config: SegmenterConfig) -> dict[Path, np.ndarray]:
    defaults: dict[Path, np.ndarray] = {}
    for encoder in (config.visual, config.depth):
        if encoder is None or encoder.kind not in NAMES:
            continue
        found = Found(FORMATS[0], _names(encoder), "", source)
        own = default_leaves(found, encoder)
        defaults |= {(*ENCODERS[encoder.name][1], *path): value for path, value in own.items()}
    return defaults


def load_released(segmenter: Segmenter, file: str | os.PathLike[str]) -> None:
    """Fill a segmenter with a file that holds all of it, under the released names or ours, strictly.

    Raises UserError where the file is missing or broken, or, listing all problems together, where a leaf
    stays empty, a tensor is left over or a shape differs; the segmenter is then unchanged.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves(segmenter).items()}
    fill(segmenter, dict(stream_segmenter(open_source(file), segmenter.config, shapes, list(PARTS))))
