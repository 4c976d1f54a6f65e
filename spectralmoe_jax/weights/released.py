"""Read a segmenter, or parts of one, from files in the authors' released layout or under native names.

The released names start with `backbone.`, `decode_head.` and `data_preprocessor.`. A whole segmenter has all
of them; a training checkpoint has those of adapter and head only; the merged backbone file has the names of
the backbone without `backbone.`. Native names are the paths of leaves.
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
from spectralmoe_jax.config.model import EncoderConfig, PlainDecoderConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.segmenter import Segmenter, SegmenterConfig
from spectralmoe_jax.parameters import fill, leaves
from spectralmoe_jax.weights import format_tables as tables
from spectralmoe_jax.weights.encoder_file import (
    GENERATED_LEAVES,
    EncoderResizer,
    check_bias_masks,
    require_architecture,
    with_patch_embedding,
)
from spectralmoe_jax.weights.format_tables import TensorNames, encoder_rules
from spectralmoe_jax.weights.formats import (
    DEPTH_REST,
    FORMATS,
    EncoderFile,
    default_leaves,
    native_rules,
    recognise,
)
from spectralmoe_jax.weights.name_rules import LeafPath, Rule, Shape, stream_tensors
from spectralmoe_jax.weights.pmt_files import IGNORED, as_head, is_plain_decoder, plain_decoder_rules
from spectralmoe_jax.weights.reading import MANIFEST, WeightFile, manifest, open_weight_file

log = logging.getLogger(__name__)

# Parts of a segmenter: prefix of their released names, and their path in our model. The order matters: a
# tensor belongs to the first part whose prefix it has.
PARTS: dict[str, tuple[str, LeafPath]] = {
    "depth": ("backbone.depth_anything.", ("backbone", "depth")),
    "adapter": ("backbone.depthmoe.", ("backbone", "adapter")),
    "visual": ("backbone.", ("backbone", "visual")),
    "head": ("decode_head.", ("head",)),
    "pixels": ("data_preprocessor.", ()),
}
# The encoders among the parts; the depth encoder is nested deeper in its part.
ENCODERS = {
    "visual": ("backbone.", ("backbone", "visual")),
    "depth": ("backbone.depth_anything.pretrained.", ("backbone", "depth")),
}
# Families whose tensor names the released code took over from their publishers.
_ENCODER_LAYOUTS = {
    "dinov3": tables.META_DINOV3,
    "dinov2": tables.META_DINOV2,
    "dofa": tables.DOFA,
    "eva02": tables.EVA02,
}
_WITHOUT_LAYOUT = {
    "clip": "the released code has a learned pyramid (fpn1 to fpn4) after CLIP, this model has none",
    "softcon": "the released code does not have this encoder",
    "copernicus_fm": "the released code does not have this encoder",
    "sam": "the released code adapts only SAM's layers with global attention, this model adapts every layer",
}
_BACKBONE_FILE_PREFIXES = ("depth_anything.pretrained.", "depthmoe.")  # without `backbone.`
_DEPTH_ROUTER = r"backbone\.depthmoe\.w_(gate|noise)\.\d+\.1"
_IGNORED_DEPTH = tuple(rf"backbone\.depth_anything\.{rest}" for rest in DEPTH_REST)

# The adapter, as the authors' code names its parameters.
ADAPTER_RULES = [
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
# Mean and deviation of the normal distribution in the smooth load; the released code stores them as buffers.
ADAPTER_CONSTANTS = {"mean": 0.0, "std": 1.0}
SEGMENTER_CONSTANTS = {"backbone.depthmoe." + name: value for name, value in ADAPTER_CONSTANTS.items()}

# Mean and deviation of the pixels: mmseg's SegDataPreProcessor.
PIXEL_RULES = [
    Rule("data_preprocessor.mean", ("pixel_mean",), "per_band"),
    Rule("data_preprocessor.std", ("pixel_std",), "per_band"),
]


# The Mask2Former head: github.com/open-mmlab/mmdetection, Mask2FormerHead with MSDeformAttnPixelDecoder.

_ENCODER_LAYER = "pixel_decoder.encoder.layers.{layer}"
_DECODER_LAYER = "transformer_decoder.layers.{layer}"


def head_rules(prefix: str = "decode_head.", path: LeafPath = ("head",)) -> list[Rule]:
    """Return one rule for every leaf of `Mask2FormerHead`.

    Args:
      prefix: what the released names start with.
      path: path of the head in the model.
    """
    pixel, decoder = ("pixel_decoder",), ("transformer_decoder",)
    encoder_layers, decoder_layers = (*pixel, "encoder"), (*decoder, "layers")
    rules = [
        # queries and outputs
        Rule("query_feat.weight", ("query_feat",)),
        Rule("level_embed.weight", ("level_embed",)),
        *_linear("cls_embed", ("cls_embed",)),
        *_linear("mask_embed.0", ("mask_embed", "first")),
        *_linear("mask_embed.2", ("mask_embed", "second")),
        *_linear("mask_embed.4", ("mask_embed", "third")),
        # pixel decoder: convolutions
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
        # pixel decoder: layers with deformable attention
        *(
            rule
            for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
            for rule in _linear(f"{_ENCODER_LAYER}.self_attn.{name}", (*encoder_layers, "self_attn", name))
        ),
        *_feed_forward(_ENCODER_LAYER, encoder_layers),
        *_norm(f"{_ENCODER_LAYER}.norms.0", (*encoder_layers, "norm_attention")),
        *_norm(f"{_ENCODER_LAYER}.norms.1", (*encoder_layers, "norm_ffn")),
        # transformer decoder
        *_attention("cross_attn", decoder_layers),
        *_attention("self_attn", decoder_layers),
        *_feed_forward(_DECODER_LAYER, decoder_layers),
        *_norm(f"{_DECODER_LAYER}.norms.0", (*decoder_layers, "norm_cross")),
        *_norm(f"{_DECODER_LAYER}.norms.1", (*decoder_layers, "norm_self")),
        *_norm(f"{_DECODER_LAYER}.norms.2", (*decoder_layers, "norm_ffn")),
        *_norm("transformer_decoder.post_norm", (*decoder, "post_norm")),
    ]
    return [rule.under(prefix, path) for rule in rules]


def _linear(name: str, path: LeafPath, transform: str = "linear") -> list[Rule]:
    return [Rule(f"{name}.weight", (*path, "kernel"), transform), Rule(f"{name}.bias", (*path, "bias"))]


def _norm(name: str, path: LeafPath) -> list[Rule]:
    return [Rule(f"{name}.weight", (*path, "scale")), Rule(f"{name}.bias", (*path, "bias"))]


def _feed_forward(name: str, path: LeafPath) -> list[Rule]:
    return [
        *_linear(f"{name}.ffn.layers.0.0", (*path, "ffn", "hidden")),
        *_linear(f"{name}.ffn.layers.1", (*path, "ffn", "output")),
    ]


def _attention(kind: str, path: LeafPath) -> list[Rule]:
    return [
        Rule(f"{_DECODER_LAYER}.{kind}.attn.in_proj_weight", (*path, kind, "in_proj", "kernel"), "linear"),
        Rule(f"{_DECODER_LAYER}.{kind}.attn.in_proj_bias", (*path, kind, "in_proj", "bias")),
        *_linear(f"{_DECODER_LAYER}.{kind}.attn.out_proj", (*path, kind, "out_proj")),
    ]


def segmenter_rules(visual: EncoderConfig | None = None, depth: EncoderConfig | None = None) -> list[Rule]:
    """Return the rules of the whole segmenter in the released layout.

    Args:
      visual: the visual encoder; by default a plain DINOv3.
      depth: the depth encoder; by default a plain DINOv2.

    Raises:
      UserError: the released code does not have an encoder of this family.
    """
    visual, depth = visual or EncoderConfig("dinov3"), depth or EncoderConfig("dinov2", name="depth")
    encoders = [
        rule.under(*ENCODERS[config.name])
        for config in (visual, depth)
        for rule in encoder_rules(_encoder_layout(config), config)
    ]
    adapter_prefix, adapter_path = PARTS["adapter"]
    adapter = [rule.under(adapter_prefix, adapter_path) for rule in ADAPTER_RULES]
    return [*encoders, *adapter, *head_rules(), *PIXEL_RULES]


def _encoder_layout(config: EncoderConfig) -> TensorNames:
    if config.kind not in _ENCODER_LAYOUTS:
        raise UserError(
            f"config.model.{config.name}.kind = {config.kind!r} has no released layout: "
            f"{_WITHOUT_LAYOUT[config.kind]}; use native names (--to safetensors)"
        )
    return _ENCODER_LAYOUTS[config.kind]


def is_segmenter(file: WeightFile) -> bool:
    """Return whether a file holds a segmenter or parts of one, and not just an encoder."""
    prefixes = ("decode_head.", "backbone.depth_anything.", "backbone.depthmoe.", *_BACKBONE_FILE_PREFIXES)
    return is_native(file) or is_plain_decoder(file) or any(name.startswith(prefixes) for name in file)


def is_native(file: WeightFile) -> bool:
    """Return whether a segmenter's file has native names."""
    return any(name.startswith(("backbone/", "head/")) for name in file)


def canonical(file: WeightFile) -> WeightFile:
    """Return a segmenter's file under the names of the whole released segmenter; native names stay."""
    prefixes = tuple(prefix for prefix, _ in PARTS.values())
    if is_plain_decoder(file):
        return as_head(file)
    if is_native(file) or any(name.startswith(prefixes) for name in file):
        return file
    return file.renamed(lambda name: "backbone." + name)


def parts_of(file: WeightFile) -> set[str]:
    """Return the parts of a segmenter that a file holds, named as in `PARTS`."""
    return {part_of(name) for name in canonical(file)} - {""}


def part_of(name: str | LeafPath) -> str:
    """Return the part that a released name, a native name or a path belongs to; "" for none."""
    if isinstance(name, str) and "/" not in name and "." in name:
        return next((part for part, (prefix, _) in PARTS.items() if name.startswith(prefix)), "")
    path = tuple(name.split("/")) if isinstance(name, str) else name
    if path[0].startswith("pixel_"):
        return "pixels"
    return next((part for part, (_, own) in PARTS.items() if own and path[: len(own)] == own), "")


def encoders_of(file: WeightFile, config: SegmenterConfig, parts: Collection[str]) -> dict[str, EncoderFile]:
    """Return the encoders among `parts` of a segmenter's file.

    An encoder of no known format is left out; its tensors are reported one by one when it is read.
    """
    found = {}
    for encoder in (config.visual, config.depth):
        if encoder is not None and encoder.name in parts:
            with contextlib.suppress(UserError):
                found[encoder.name] = recognise(extract_encoder(file, encoder.name), kind=encoder.kind)
    return found


def extract_encoder(file: WeightFile, part: str) -> WeightFile:
    """Return an encoder of a segmenter's file under its publisher's names, or under native names."""
    named = canonical(file)
    root = "/".join(ENCODERS[part][1]) + "/" if is_native(named) else ENCODERS[part][0]
    own = [name for name in named if part_of(name) == part and not is_depth_rest(name)]
    names = {name: name.removeprefix(root) for name in own}
    record = manifest(file).get("encoders", {}).get(part, {})
    return named.renamed(lambda name: names.get(name, ""), {MANIFEST: json.dumps(record)})


def is_depth_rest(name: str) -> bool:
    """Return whether a released name is of the depth model beside its encoder, which features do not use."""
    return any(re.fullmatch(pattern, name) for pattern in _IGNORED_DEPTH)


def depth_rest(file: WeightFile) -> dict[str, str]:
    """Return released names of the depth model beside its encoder, and the names that a file has for them.

    Files under native names keep the released ones of these tensors.
    """
    whole = is_native(file) or canonical(file) is file
    named = {name if whole else f"backbone.{name}": name for name in file}
    return {name: old for name, old in named.items() if is_depth_rest(name)}


def load_released(segmenter: Segmenter, file: str | os.PathLike[str]) -> None:
    """Fill a segmenter in place from a file that holds all of it. Loading is strict.

    Raises:
      UserError: the file is missing or broken, or has missing, unexpected or misshapen tensors, all listed;
        the segmenter is then unchanged.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves(segmenter).items()}
    fill(segmenter, dict(stream_segmenter(open_weight_file(file), segmenter.config, shapes, list(PARTS))))


def stream_segmenter(
    file: WeightFile,
    config: SegmenterConfig,
    shapes: dict[LeafPath, Shape],
    parts: Collection[str],
    fresh: Collection[LeafPath] = (),
) -> Iterator[tuple[LeafPath, np.ndarray]]:
    """Yield path and array of every leaf of `parts`, each read on demand.

    Args:
      file: a file that holds these parts, in the released layout or under native names.
      config: the segmenter to fill.
      shapes: shapes of all its leaves.
      parts: the parts to read, named as in `PARTS`.
      fresh: leaves of these parts that are not read, whatever the file holds for them.

    Raises:
      UserError: the parts do not fit; lists all problems together, before anything large is read.
    """
    parts = _used_parts(file, config, parts)
    named = canonical(file)
    native, plain = is_native(named), is_plain_decoder(named)
    # 1. Check adapter, head and encoders as a whole, for a better message than a list of tensors.
    if plain:
        _require_plain_decoder(config, file.spec)
    elif not native:
        require_released(config, parts & {"adapter", "head"}, file.spec)
    _require_architectures(file, config, parts)
    # 2. Choose tensors, leaves and rules of these parts.
    tensors = named.renamed(lambda name: name if part_of(name) in (*parts, "") else "")
    generated = generated_leaves(config)
    of_parts = {p: shape for p, shape in shapes.items() if part_of(p) in parts and p not in generated}
    if plain:
        rules = plain_decoder_rules()
    else:
        rules = native_rules(of_parts) if native else segmenter_rules(config.visual, config.depth)
    wanted = {p: shape for p, shape in of_parts.items() if p not in fresh}
    unread = [rule for rule in rules if rule.path in of_parts.keys() - wanted.keys()]
    unread_names = [n for rule in unread for _, names in rule.names(of_parts[rule.path]) for n in names]
    # 3. Check every tensor, then read leaf by leaf.
    stream = stream_tensors(
        rules,
        wanted,
        tensors,
        file=file.spec,
        constants=SEGMENTER_CONSTANTS,
        ignored=[*_ignored(config), *(IGNORED if plain else ()), *map(re.escape, unread_names)],
        defaults={} if native else _default_leaves(tensors, config),
        resizer=_SegmenterResizer(config, file.spec),
    )
    stream = check_bias_masks(stream, file.spec)
    if config.visual.family.wavelengths and "visual" in parts:
        return with_patch_embedding(config.visual, stream, ENCODERS["visual"][1])
    return stream


def _used_parts(file: WeightFile, config: SegmenterConfig, parts: Collection[str]) -> set[str]:
    """Return `parts` without a depth encoder that the model does not use; the log mentions it."""
    if config.uses_depth or "depth" not in parts:
        return set(parts)
    log.info(
        "%s: its depth encoder and depth router are skipped: config.model.adapter.use_depth is False",
        file.spec,
    )
    return set(parts) - {"depth"}


def require_released(config: SegmenterConfig, parts: Collection[str], where: str) -> None:
    """Raise a UserError where the released code does not have the model's adapter or head.

    Args:
      config: the model.
      parts: `adapter`, `head` or both: what to check.
      where: the file or option that has or asks for the released layout.
    """
    kinds = {
        "adapter": (config.adapter_kind, SpectralMoEConfig.kind),
        "head": (config.head.kind, "mask2former"),
    }
    for part in sorted(parts):
        kind, released = kinds[part]
        if kind != released:
            raise UserError(
                f"{where}: config.model.{part}.kind = {kind!r} has no released layout: the released "
                f"code has only {released}; use native names (--to safetensors)"
            )


def _require_plain_decoder(config: SegmenterConfig, where: str) -> None:
    """Raise a UserError where a file holds a plain mask decoder and the model has another head."""
    if not isinstance(config.head, PlainDecoderConfig):
        raise UserError(
            f"{where}: holds a plain mask decoder, but config.model.head.kind = {config.head.kind!r}: set it "
            f"to {PlainDecoderConfig.kind!r}, or give another file"
        )


def _require_architectures(file: WeightFile, config: SegmenterConfig, parts: Collection[str]) -> None:
    """Raise a UserError that names the key where an encoder in the file has another architecture."""
    found = encoders_of(file, config, parts)
    for encoder in (config.visual, config.depth):
        if encoder is not None and encoder.name in found:
            require_architecture(found[encoder.name], encoder)


def generated_leaves(config: SegmenterConfig) -> list[LeafPath]:
    """Return the leaves that are generated from wavelengths; no file holds them."""
    if not config.visual.family.wavelengths:
        return []
    return [(*ENCODERS["visual"][1], *path) for path in GENERATED_LEAVES]


def _ignored(config: SegmenterConfig) -> list[str]:
    """Return regular expressions of tensors in released files that the model does not need."""
    formats = {
        format.kind: format for format in reversed(FORMATS) if format.layouts[0] in _ENCODER_LAYOUTS.values()
    }
    visual = formats[config.visual.kind].ignored if config.visual.kind in formats else ()
    router = () if config.uses_depth else (_DEPTH_ROUTER,)
    return [*_IGNORED_DEPTH, *router, *(rf"backbone\.(?:{pattern})" for pattern in visual)]


def _default_leaves(file: WeightFile, config: SegmenterConfig) -> dict[LeafPath, np.ndarray]:
    """Return values of the encoders' leaves that the released layout defines instead of storing them."""
    defaults: dict[LeafPath, np.ndarray] = {}
    for encoder in (config.visual, config.depth):
        if encoder is None or encoder.kind not in _ENCODER_LAYOUTS:
            continue
        encoder_file = EncoderFile(FORMATS[0], _encoder_layout(encoder), "", file)
        own = default_leaves(encoder_file, encoder)
        defaults |= {(*ENCODERS[encoder.name][1], *path): value for path, value in own.items()}
    return defaults


class _SegmenterResizer:
    """`EncoderResizer` for the encoders of a segmenter."""

    def __init__(self, config: SegmenterConfig, file: str):
        self._encoders: dict[LeafPath, EncoderResizer] = {
            ENCODERS[encoder.name][1]: EncoderResizer(encoder, file)
            for encoder in (config.visual, config.depth)
            if encoder is not None
        }

    def fits(self, path: LeafPath, shape: Shape, wanted: Shape) -> bool:
        """Check whether a tensor of another shape can be resampled to the wanted one."""
        encoder = self._encoders.get(path[:2])
        return encoder is not None and encoder.fits(path[2:], shape, wanted)

    def __call__(self, path: LeafPath, value: np.ndarray, wanted: Shape) -> np.ndarray:
        return self._encoders[path[:2]](path[2:], value, wanted)
