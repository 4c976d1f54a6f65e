"""Published encoder files: how each is recognised, what its tensors are called, what it leaves out."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import numpy as np

from spectralmoe_jax.config.model import UNTIED_NORMS, EncoderConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.positions import centred_periods
from spectralmoe_jax.weights import format_tables as rows
from spectralmoe_jax.weights.format_tables import Names, encoder_rules
from spectralmoe_jax.weights.name_rules import Path, Rule
from spectralmoe_jax.weights.reading import Source

NATIVE = "native"
MANIFEST = "spectralmoe"  # the key of a native file's header under which its manifest stands
_NATIVE_MARK = "blocks/attention/qkv/kernel"
_TRAINING_HEADS = (r"(.*\.)?(dino_head|ibot_head)\..*",)
_EVA02_REST = (r"(mask_token|(norm|fc_norm|head|lm_head)\..*|(.*\.)?rope\..*)",)
_SAM_REST = (r"(prompt_encoder|mask_decoder|shared_image_embedding)\..*",)


class Format(NamedTuple):
    """A way in which an encoder is published.

    kind: the family that it holds. names: what its tensors may be called. prefixes: what may stand before
    every name. ignored: regular expressions of tensors that the encoder has no use for. licence: a note on
    the weights' terms. untied: further norms are stored; where not, they get the identity, as no feature
    depends on them. presets: regular expression of the presets that are published so.
    """

    name: str
    title: str
    kind: str
    names: tuple[Names, ...]
    licence: str
    prefixes: tuple[str, ...] = ("",)
    ignored: tuple[str, ...] = ()
    untied: bool = True
    presets: str = ".*"


_META = ("", "backbone.", "module.", "module.backbone.", "model.", "encoder.")
_DINOV3_LICENCE = "DINOv3 License (Meta): accept it before use; it goes with the weights"
_APACHE = "Apache-2.0"
# what (Prompt-)Depth-Anything holds beside its encoder `pretrained`: its head, and the mean and the deviation
# of its pixels, which are this project's configuration
DEPTH_REST = (r"depth_head\..*", "_mean", "_std")
# published bare, and by Prompt-Depth-Anything's training code (promptda_*.ckpt) within its `pipeline`
_DEPTH_WRAPPERS = ("", "pipeline.", "model.", "module.")
_DINOV2, _DEPTH = r"dinov2_.*", r".*depth_anything_.*"  # alike in every size: the format tells them apart
_DEPTH_LICENCE = "Apache-2.0 for the small models; larger ones may be non-commercial: see their page"

FORMATS = (
    Format(
        "dofa", "DOFA .pth", "dofa", (rows.DOFA,), "CC-BY-4.0", _META,
        (r"(mask_token|(norm|fc_norm|head|projector)\..*|decoder_.*)",),
    ),
    Format(
        "timm_eva02", "EVA-02 in timm's names", "eva02", (rows.TIMM_EVA02,), "MIT", _META, _EVA02_REST,
    ),
    Format("eva02", "EVA-02 .pt", "eva02", (rows.EVA02,), "MIT", _META, _EVA02_REST),
    Format(
        "meta_dinov3", "DINOv3 .pth", "dinov3", (rows.META_DINOV3,), _DINOV3_LICENCE, _META, _TRAINING_HEADS
    ),
    Format(
        "meta_dinov2", "DINOv2 .pth", "dinov2", (rows.META_DINOV2,), _APACHE, _META, _TRAINING_HEADS,
        presets=_DINOV2,
    ),
    Format(
        "depth_anything", "(Prompt-)Depth-Anything .pth or .ckpt", "dinov2", (rows.META_DINOV2,),
        _DEPTH_LICENCE, tuple(wrapper + "pretrained." for wrapper in _DEPTH_WRAPPERS),
        tuple(rf"({'|'.join(map(re.escape, _DEPTH_WRAPPERS))}){rest}" for rest in DEPTH_REST),
        presets=_DEPTH,
    ),
    Format(
        "hf_dinov3", "DINOv3 of Hugging Face", "dinov3",
        (rows.HF_DINOV3, rows.HF_DINOV3._replace(block="model.layer.{layer}.")), _DINOV3_LICENCE,
        ("", "dinov3_vit.", "backbone."), (r"(.*\.)?rope_embeddings\..*", r"classifier\..*"), untied=False,
    ),
    Format(
        "hf_dinov2", "DINOv2 of Hugging Face", "dinov2", (rows.HF_DINOV2, rows.HF_DINOV2_NEW), _APACHE,
        ("", "dinov2.", "dinov2_with_registers."), (r"classifier\..*",), untied=False, presets=_DINOV2,
    ),
    Format(
        "hf_depth_anything", "(Prompt-)Depth-Anything of Hugging Face", "dinov2",
        (rows.HF_DINOV2, rows.HF_DINOV2_NEW), _DEPTH_LICENCE, ("backbone.",), (r"(neck|head)\..*",),
        untied=False, presets=_DEPTH,
    ),
    Format(
        "hf_clip", "CLIP of Hugging Face", "clip", (rows.HF_CLIP,), "MIT", ("vision_model.", ""),
        (r"text_model\..*", r"(text|visual)_projection\..*", "logit_scale", r".*position_ids"),
    ),
    Format(
        "hf_sam", "SAM of Hugging Face", "sam", (rows.HF_SAM,), _APACHE, ("vision_encoder.", ""), _SAM_REST
    ),
    Format("meta_sam", "SAM .pth", "sam", (rows.META_SAM,), _APACHE, ("image_encoder.", ""), _SAM_REST),
)  # fmt: skip
DEPTH_FORMATS = ("depth_anything", "hf_depth_anything")


class Found(NamedTuple):
    """A source whose format is known: under which names and behind which prefix."""

    format: Format
    names: Names | None  # None: our own names
    prefix: str
    source: Source

    def rules(self, config: EncoderConfig, leaves: dict[Path, Any]) -> list[Rule]:
        if self.names is None:
            return native_rules(leaves)
        return [rule.under(self.prefix, ()) for rule in encoder_rules(self.names, config)]


def native_rules(leaves) -> list[Rule]:
    """Our own files: a leaf by its path."""
    return [Rule("/".join(path), path) for path in leaves]


def recognise(source: Source, name: str | None = None) -> Found:
    """The format of an encoder file, from its tensors' names.

    Args:
      name: of the format, where the user gave it.

    Raises UserError for an unknown name, a file that is not of that format, or one of no known format.
    """
    known = (NATIVE, *(format.name for format in FORMATS))
    if name is not None and name not in known:
        raise UserError(f"--as {name}: unknown format; choose from {', '.join(known)}")
    if name in (None, NATIVE) and _NATIVE_MARK in source:
        return _native(source)
    for format in FORMATS:
        if name not in (None, format.name):
            continue
        for prefix in format.prefixes:
            for names in format.names:
                if all(prefix + mark in source for mark in _marks(names)):
                    return Found(format, names, prefix, source)
    first = ", ".join(list(source)[:3])
    if name is not None:
        raise UserError(f"{source.describe}: is not of the format {name}; its tensors start with {first}")
    raise UserError(
        f"{source.describe}: no encoder of a known format ({', '.join(known)}); "
        f"its tensors start with {first}"
    )


def _marks(names: Names) -> list[str]:
    """Tensors that every file with these names has, enough to tell the formats apart."""
    block = names.block.format(layer=0)
    marks = [f"{block}{name}.weight" for name in (*names.qkv, names.norm1)]
    marks += [name for name in (names.table[0], names.periods) if name]
    marks += [f"{name}.weight" for name in (names.patch, names.norm_first) if name]
    marks += [block + name for name in (names.scale1, names.relative.replace("{axis}", "h")) if name]
    if names.ffn_norm:  # by which EVA-02's two layouts differ
        marks.append(f"{block}{names.ffn_norm}.weight")
    if names.generator:
        marks.append(f"{names.generator}weight_generator.weight_tokens")
    return marks


def manifest(source: Source) -> dict[str, Any]:
    """What a native file's header says about where it came from; empty where it says nothing."""
    try:
        value = json.loads(source.metadata.get(MANIFEST, "{}"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _native(source: Source) -> Found:
    made = manifest(source)
    encoder = made.get("encoder", {})
    licence = str(made.get("licence", "of the file it was made from"))
    title = "an encoder that spectralmoe convert wrote"
    return Found(Format(NATIVE, title, encoder.get("kind", ""), (), licence), None, "", source)


def file_fields(found: Found) -> dict[str, Any]:
    """Fields of `EncoderConfig` as the file has them, from shapes and the Hugging Face configuration."""
    if found.names is None:
        fields = dict(manifest(found.source).get("encoder", {}))
        return fields | {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    names, source = found.names, found.source.renamed(lambda name: _without(name, found.prefix))
    block = names.block.format(layer=0)
    gated = bool(names.gated) and all(f"{block}{name}.weight" in source for name in names.gated)
    width = source.shape(f"{block}{names.norm1}.weight")[0]
    last = f"{block}{names.gated_last if gated else names.mlp_last}.weight"
    fields = {
        "kind": found.format.kind,
        "width": width,
        "layers": _count_layers(names, source),
        "ffn": "swiglu" if gated else "mlp",
        "qkv_bias": f"{block}{names.biases[0]}" in source,
        "storage_tokens": source.shape(names.storage)[1] if names.storage in source else 0,
    }
    if last in source:
        fields["mlp_width"] = source.shape(last)[1]
    fields |= _stem_fields(names, source, width)
    if names.periods:
        fields["heads"] = width // (4 * source.shape(names.periods)[0])
    if names.relative:
        fields |= _sam_fields(names, source, width, fields["layers"])
    if found.format.untied:
        fields["untied_norms"] = tuple(n for n in UNTIED_NORMS if f"{n}.weight" in source)
    return fields | _hugging_face_fields(found.source.config)


def _without(name: str, prefix: str) -> str:
    return name[len(prefix) :] if name.startswith(prefix) else ""


def _count_layers(names: Names, source: Source) -> int:
    layer = 0
    while f"{names.block.format(layer=layer)}{names.norm1}.weight" in source:
        layer += 1
    return layer


def _stem_fields(names: Names, source: Source, width: int) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if names.generator:
        rows_out = source.shape(f"{names.generator}weight_generator.fc_weight.weight")[0]
        fields["patch_size"] = round((rows_out / width) ** 0.5)
    else:
        _, fields["in_channels"], fields["patch_size"], _ = source.shape(f"{names.patch}.weight")
    if names.table[0]:
        shape = source.shape(names.table[0])
        fields["table_size"] = shape[1] if len(shape) == 4 else round((shape[-2] - 1) ** 0.5)
    return fields


def _sam_fields(names: Names, source: Source, width: int, layers: int) -> dict[str, Any]:
    """Layers with global attention are those that config.json names, or those with longer tables of relative
    positions. Raises UserError where they are not every n-th."""
    name = names.block + names.relative.format(axis="h", layer="{layer}")
    shapes = [source.shape(name.format(layer=layer)) for layer in range(layers)]
    fields: dict[str, Any] = {"heads": width // shapes[0][1], "window": (shapes[0][0] + 1) // 2}
    if f"{names.neck[0]}.weight" in source:
        fields["neck_width"] = source.shape(f"{names.neck[0]}.weight")[0]
    settings = (source.config or {}).get("vision_config", source.config or {})
    others = [layer for layer, shape in enumerate(shapes) if shape != shapes[0]]
    everywhere = sorted(settings.get("global_attn_indexes", others))
    if not everywhere:
        return fields
    every = everywhere[0] + 1
    if everywhere != list(range(every - 1, layers, every)):
        raise UserError(
            f"{source.describe}: layers {', '.join(map(str, everywhere))} of {layers} have global attention; "
            "this encoder can have it in every n-th layer alone: give one that does, as SAM's own do"
        )
    return fields | {"global_every": every}


def _hugging_face_fields(config: dict[str, Any] | None) -> dict[str, Any]:
    config = config or {}
    for section in ("vision_config", "backbone_config"):
        config = config.get(section) or config
    theirs = {"heads": "num_attention_heads", "norm_eps": "layer_norm_eps", "rope_base": "rope_theta"}
    return {ours: config[name] for ours, name in theirs.items() if config.get(name) is not None}


def default_leaves(found: Found, config: EncoderConfig) -> dict[Path, np.ndarray]:
    """Values of leaves that a format defines instead of storing them."""
    width = config.width
    if found.names is None:
        return {}
    defaults: dict[Path, np.ndarray] = {("mask_token",): np.zeros((1, width), np.float32)}
    mask = np.ones((3, width), np.float32)
    mask[1] = 0
    defaults["blocks", "attention", "bias_mask"] = np.tile(mask.reshape(1, -1), (config.layers, 1))
    if not found.names.periods:
        defaults["rope_periods",] = np.asarray(centred_periods(config.head_dim, config.rope_base))
    if not found.format.untied:
        for norm in config.untied_norms:
            defaults[norm, "scale"], defaults[norm, "bias"] = np.ones(width, "f4"), np.zeros(width, "f4")
    return defaults
