"""Formats of encoder files: how to recognise them, and how to read an encoder's settings from a file."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from spectralmoe_jax.config.model import UNTIED_NORMS, EncoderConfig
from spectralmoe_jax.errors import UserError, shown
from spectralmoe_jax.models.positions import centred_periods
from spectralmoe_jax.weights import format_tables as tables
from spectralmoe_jax.weights.format_tables import TensorNames, encoder_rules
from spectralmoe_jax.weights.name_rules import LeafPath, Rule
from spectralmoe_jax.weights.reading import WeightFile, manifest

NATIVE = "native"  # the format of files with this project's names, which are the paths of leaves
_GALILEO_WRAPPER = ".backbone"
_NATIVE_TENSOR = "blocks/attention/qkv/kernel"
_LARGEST = 1 << 16  # size of an encoder in a record


class Format(NamedTuple):
    """One way in which an encoder is published.

    Attributes:
      name: value of the option `--as` of `spectralmoe convert`.
      title: name in messages.
      kind: the encoder family.
      layouts: tensor names that files of the format may have.
      licence: note on the terms of the weights.
      prefixes: what may precede every tensor name.
      ignored: regular expressions of tensors that the encoder does not need.
      untied: whether files may store further norms. Where they do not, these norms are the identity, because
        no feature depends on them.
      presets: regular expression of the presets that are published in this format.
      channels: number of bands that tells its files from those of other formats with the same names; 0 where
        names do.
    """

    name: str
    title: str
    kind: str
    layouts: tuple[TensorNames, ...]
    licence: str
    prefixes: tuple[str, ...] = ("",)
    ignored: tuple[str, ...] = ()
    untied: bool = True
    presets: str = ".*"
    channels: int = 0


# Wrappers that training code puts around an encoder.
_WRAPPERS = ("", "backbone.", "module.", "module.backbone.", "model.", "encoder.")
# Heads of self-supervised pretraining, and heads or buffers of the models that an encoder is published in.
_TRAINING_HEADS = (r"(.*\.)?(dino_head|ibot_head)\..*",)
_DOFA_REST = (r"(mask_token|(norm|fc_norm|head|projector)\..*|decoder_.*)",)
# Of Copernicus-FM: the patch embedding of what is no spectrum, and heads that the published file lacks.
_COPERNICUS_FM_REST = (r"patch_embed_variable\..*", r"(norm|fc_norm|head)\..*")
_EVA02_REST = (r"(mask_token|(norm|fc_norm|head|lm_head)\..*|(.*\.)?rope\..*)",)
_SAM_REST = (r"(prompt_encoder|mask_decoder|shared_image_embedding)\..*",)
_CLIP_REST = (r"text_model\..*", r"(text|visual)_projection\..*", "logit_scale", r".*position_ids")
# (Prompt-)Depth-Anything holds its encoder as `pretrained`, beside its head and the statistics of its pixels,
# which are part of this project's configuration. It is published without a wrapper, and by
# Prompt-Depth-Anything's training code (promptda_*.ckpt) inside its `pipeline`.
DEPTH_REST = (r"depth_head\..*", "_mean", "_std")
_DEPTH_WRAPPERS = ("", "pipeline.", "model.", "module.")
_DEPTH_IGNORED = tuple(rf"({'|'.join(map(re.escape, _DEPTH_WRAPPERS))}){rest}" for rest in DEPTH_REST)

_APACHE = "Apache-2.0"
_DINOV3_LICENCE = "DINOv3 License (Meta): accept it before use; it goes with the weights"
_DEPTH_LICENCE = "Apache-2.0 for the small models; larger ones may be non-commercial: see their page"
# The same architecture in every size: only the format tells the two publications apart.
_DINOV2, _DEPTH = r"dinov2_.*", r".*depth_anything_.*"

# A file has the first format whose signature it holds, so the more specific formats come first.
FORMATS = (
    Format(
        "galileo", "Galileo encoder.pt", "galileo", (tables.GALILEO,), "MIT", ("", "module.", "encoder."),
        untied=False,
    ),
    Format("dofa", "DOFA .pth", "dofa", (tables.DOFA,), "CC-BY-4.0", _WRAPPERS, _DOFA_REST),
    Format(
        "copernicus_fm", "Copernicus-FM .pth", "copernicus_fm", (tables.COPERNICUS_FM,), "CC-BY-4.0",
        _WRAPPERS, _COPERNICUS_FM_REST,
    ),
    # the names of DINOv2, with the 13 bands of Sentinel-2
    Format(
        "softcon", "SoftCon .pth", "softcon", (tables.META_DINOV2,), "CC-BY-4.0", _WRAPPERS, _TRAINING_HEADS,
        channels=13,
    ),
    Format(
        "timm_eva02", "EVA-02 with timm's names", "eva02", (tables.TIMM_EVA02,), "MIT", _WRAPPERS, _EVA02_REST
    ),
    Format("eva02", "EVA-02 .pt", "eva02", (tables.EVA02,), "MIT", _WRAPPERS, _EVA02_REST),
    Format(
        "meta_dinov3", "DINOv3 .pth", "dinov3", (tables.META_DINOV3,), _DINOV3_LICENCE, _WRAPPERS,
        _TRAINING_HEADS,
    ),
    Format(
        "meta_dinov2", "DINOv2 .pth", "dinov2", (tables.META_DINOV2,), _APACHE, _WRAPPERS, _TRAINING_HEADS,
        presets=_DINOV2,
    ),
    Format(
        "depth_anything", "(Prompt-)Depth-Anything .pth or .ckpt", "dinov2", (tables.META_DINOV2,),
        _DEPTH_LICENCE, tuple(wrapper + "pretrained." for wrapper in _DEPTH_WRAPPERS), _DEPTH_IGNORED,
        presets=_DEPTH,
    ),
    Format(
        "hf_dinov3", "DINOv3 from Hugging Face", "dinov3",
        (tables.HF_DINOV3, tables.HF_DINOV3._replace(block="model.layer.{layer}.")), _DINOV3_LICENCE,
        ("", "dinov3_vit.", "backbone."), (r"(.*\.)?rope_embeddings\..*", r"classifier\..*"), untied=False,
    ),
    Format(
        "hf_dinov2", "DINOv2 from Hugging Face", "dinov2", (tables.HF_DINOV2, tables.HF_DINOV2_IN_MEMORY),
        _APACHE, ("", "dinov2.", "dinov2_with_registers."), (r"classifier\..*",), untied=False,
        presets=_DINOV2,
    ),
    Format(
        "hf_depth_anything", "(Prompt-)Depth-Anything from Hugging Face", "dinov2",
        (tables.HF_DINOV2, tables.HF_DINOV2_IN_MEMORY), _DEPTH_LICENCE, ("backbone.",),
        (r"(neck|head)\..*",), untied=False, presets=_DEPTH,
    ),
    Format(
        "hf_clip", "CLIP from Hugging Face", "clip", (tables.HF_CLIP,), "MIT", ("vision_model.", ""),
        _CLIP_REST,
    ),
    Format(
        "hf_sam", "SAM from Hugging Face", "sam", (tables.HF_SAM,), _APACHE, ("vision_encoder.", ""),
        _SAM_REST,
    ),
    Format("meta_sam", "SAM .pth", "sam", (tables.META_SAM,), _APACHE, ("image_encoder.", ""), _SAM_REST),
)  # fmt: skip
DEPTH_FORMATS = ("depth_anything", "hf_depth_anything")


class EncoderFile(NamedTuple):
    """A weight file whose format is known.

    Attributes:
      format: the format.
      names: the tensor names, one of the format's layouts; None in a native file.
      prefix: what precedes every tensor name.
      file: the weight file.
    """

    format: Format
    names: TensorNames | None
    prefix: str
    file: WeightFile

    def rules(self, config: EncoderConfig, leaves: dict[LeafPath, Any]) -> list[Rule]:
        """Return the name rules of the encoder, whose leaves are `leaves`."""
        if self.names is None:
            return native_rules(leaves)
        return [rule.under(self.prefix, ()) for rule in encoder_rules(self.names, config)]


def native_rules(leaves: Iterable[LeafPath]) -> list[Rule]:
    """Return the rules of native names: a tensor is named by the path of its leaf."""
    return [Rule("/".join(path), path) for path in leaves]


def recognise(file: WeightFile, name: str | None = None, kind: str = "") -> EncoderFile:
    """Find the format of an encoder file from its tensors' names.

    Args:
      file: a file that holds an encoder, perhaps among other things.
      name: name of the format, where the user gave it.
      kind: the encoder family that is preferred where the names fit several, such as DINOv2 and SoftCon.

    Raises:
      UserError: the name is unknown, the file is not of that format, or it is of no known format.
    """
    known = (NATIVE, *(format.name for format in FORMATS))
    if name is not None and name not in known:
        raise UserError(f"--as {name}: unknown format; choose from {', '.join(known)}")
    # 1. native names
    if name in (None, NATIVE) and _NATIVE_TENSOR in file:
        return _native(file)
    # some of Galileo's checkpoints have a wrapper inside their names
    if any(_GALILEO_WRAPPER in tensor for tensor in file) and tables.GALILEO.groups in file:
        file = file.renamed(lambda tensor: tensor.replace(_GALILEO_WRAPPER, ""))
    # 2. published formats: the first that has its whole signature in the file, behind one of its prefixes
    fitting = (
        EncoderFile(format, names, prefix, file)
        for format in FORMATS
        if name in (None, format.name)
        for prefix in format.prefixes
        for names in format.layouts
        if all(prefix + tensor in file for tensor in _signature(names))
        and (name or _has_channels(file, prefix + names.patch, format.channels))
    )
    found = list(itertools.islice(fitting, None if kind else 1))
    if found:
        return next((encoder_file for encoder_file in found if encoder_file.format.kind == kind), found[0])
    # 3. neither
    first = ", ".join(map(shown, list(file)[:3]))
    if name is not None:
        raise UserError(f"{file.spec}: is not of the format {name}; its tensors start with {first}")
    raise UserError(
        f"{file.spec}: no encoder of a known format ({', '.join(known)}); its tensors start with {first}"
    )


def _has_channels(file: WeightFile, patch: str, channels: int) -> bool:
    """Return whether a file's patch convolution has this number of bands; true for 0."""
    return not channels or file.shape(f"{patch}.weight")[1:2] == (channels,)


def publication(encoder_file: EncoderFile) -> EncoderFile:
    """Return an encoder's file with the format that it was published in, in place of our own.

    Raises:
      UserError: the file does not record the format.
    """
    if encoder_file.names is not None:
        return encoder_file
    record = manifest(encoder_file.file)
    while record.get("format") == NATIVE:
        record = record.get("earlier", {})
    format = next((format for format in FORMATS if format.name == record.get("format")), None)
    if format is None:
        raise UserError(
            f"{encoder_file.file.spec}: does not record the format that it was published in: give the "
            "published file, or convert that again"
        )
    return EncoderFile(format, format.layouts[0], format.prefixes[0], encoder_file.file)


def _signature(names: TensorNames) -> list[str]:
    """List tensors that every file of a layout has, enough to tell the layouts apart."""
    block = names.block.format(layer=0)
    signature = [f"{block}{name}.weight" for name in (*names.qkv, names.norm1)]
    signature += [name for name in (names.table[0], names.periods) if name]
    signature += [f"{name}.weight" for name in (names.patch, names.norm_first) if name]
    signature += [names.groups] if names.groups else []
    signature += [block + name for name in (names.scale1, names.relative.replace("{axis}", "h")) if name]
    if names.ffn_norm:  # in which EVA-02's two layouts differ
        signature.append(f"{block}{names.ffn_norm}.weight")
    if names.generator:
        signature.append(f"{names.generator}weight_generator.weight_tokens")
    return signature


def _native(file: WeightFile) -> EncoderFile:
    record = manifest(file)
    encoder = record.get("encoder", {})
    licence = str(record.get("licence", "of the file it was made from"))
    title = "an encoder that spectralmoe convert wrote"
    return EncoderFile(Format(NATIVE, title, encoder.get("kind", ""), (), licence), None, "", file)


def file_fields(encoder_file: EncoderFile) -> dict[str, Any]:
    """Infer fields of `EncoderConfig` from the shapes of a file's tensors and its Hugging Face configuration.

    Fields that the file does not determine are left out.

    Raises:
      UserError: the shapes or the configuration are those of no encoder.
    """
    with refusing_misfits(encoder_file.file.spec):
        if encoder_file.names is None:
            return _recorded_fields(encoder_file.file)
        return _inferred_fields(encoder_file, encoder_file.names)


@contextlib.contextmanager
def refusing_misfits(spec: str) -> Iterator[None]:
    """Turn what goes wrong with the sizes of an encoder's file into an error that names the file.

    A file may hold the names of a format with tensors of any shape, and any value in its configuration.

    Raises:
      UserError: something did.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as problem:
        reason = shown(" ".join(str(problem).split()))
        raise UserError(
            f"{spec}: its sizes are those of no encoder ({reason}); it is damaged or of another model: give "
            "another file"
        ) from None


def _recorded_fields(file: WeightFile) -> dict[str, Any]:
    """Return the fields in the record of a native file, checked against its largest tensors."""
    fields = dict(manifest(file).get("encoder", {}))
    if not fields:
        return fields
    layers, width = file.shape(_NATIVE_TENSOR)[:2]
    stated = {key: fields.get(key) for key in ("layers", "width")}
    if stated != {"layers": layers, "width": width}:
        raise ValueError(f"its record says {stated}, its tensors have {layers} layers of width {width}")
    too_large = [key for key, value in fields.items() if isinstance(value, int) and abs(value) > _LARGEST]
    if too_large:
        raise ValueError(f"{', '.join(too_large)} above {_LARGEST}")
    return fields | {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}


def _inferred_fields(encoder_file: EncoderFile, names: TensorNames) -> dict[str, Any]:
    """Infer the fields from the shapes of a published file and its configuration."""
    prefix = encoder_file.prefix
    file = encoder_file.file.renamed(lambda name: _strip_prefix(name, prefix))
    empty = [name for name in file if 0 in file.shape(name)]
    if empty:  # whose other axes may have any length
        raise ValueError(f"{shown(empty[0])} is empty")
    block = names.block.format(layer=0)
    gated = bool(names.gated) and all(f"{block}{name}.weight" in file for name in names.gated)
    width = file.shape(f"{block}{names.norm1}.weight")[0]
    fields: dict[str, Any] = {
        "kind": encoder_file.format.kind,
        "width": width,
        "layers": _count_layers(names, file),
        "ffn": "swiglu" if gated else "mlp",
        "qkv_bias": f"{block}{names.biases[0]}" in file,
        "storage_tokens": file.shape(names.storage)[1] if names.storage in file else 0,
    }
    last_layer = f"{block}{names.gated_last if gated else names.mlp_last}.weight"
    if last_layer in file:
        fields["mlp_width"] = file.shape(last_layer)[1]
    fields |= _patch_fields(names, file, width)
    if names.periods:
        fields["heads"] = width // (4 * file.shape(names.periods)[0])
    if names.relative:
        fields |= _sam_fields(names, file, width, fields["layers"])
    if encoder_file.format.untied:
        fields["untied_norms"] = tuple(norm for norm in UNTIED_NORMS if f"{norm}.weight" in file)
    return fields | _hugging_face_fields(encoder_file.file.config)


def _strip_prefix(name: str, prefix: str) -> str:
    """Return the name without its prefix, or an empty string if it lacks the prefix."""
    return name[len(prefix) :] if name.startswith(prefix) else ""


def _count_layers(names: TensorNames, file: WeightFile) -> int:
    layer = 0
    while f"{names.block.format(layer=layer)}{names.norm1}.weight" in file:
        layer += 1
    return layer


def _patch_fields(names: TensorNames, file: WeightFile, width: int) -> dict[str, Any]:
    """Infer patch size, channels and position grid."""
    fields: dict[str, Any] = {}
    if names.generator:
        # the last layer of a generator has patch_size**2 * width outputs
        outputs, fields["generator_width"] = file.shape(f"{names.generator}weight_generator.fc_weight.weight")
        fields["patch_size"] = round((outputs / width) ** 0.5)
    elif names.patch:
        _, fields["in_channels"], fields["patch_size"], _ = file.shape(f"{names.patch}.weight")
    if names.table[0]:
        shape = file.shape(names.table[0])  # (1, S, S, D) or ([1,] 1 + S * S, D)
        fields["table_size"] = shape[1] if len(shape) == 4 else round((shape[-2] - 1) ** 0.5)
    return fields


def _sam_fields(names: TensorNames, file: WeightFile, width: int, layers: int) -> dict[str, Any]:
    """Infer heads, windows, neck and the layers with global attention.

    The latter are those that config.json lists, or else those with longer tables of relative positions.

    Raises:
      UserError: they are not every n-th layer.
    """
    name = names.block + names.relative.format(axis="h", layer="{layer}")
    shapes = [file.shape(name.format(layer=layer)) for layer in range(layers)]  # (2 * side - 1, head width)
    fields: dict[str, Any] = {"heads": width // shapes[0][1], "window": (shapes[0][0] + 1) // 2}
    if f"{names.neck[0]}.weight" in file:
        fields["neck_width"] = file.shape(f"{names.neck[0]}.weight")[0]
    settings = hugging_face_section(file.config, "vision_config")
    longer = [layer for layer, shape in enumerate(shapes) if shape != shapes[0]]
    global_numbers = sorted(settings.get("global_attn_indexes", longer))
    if not global_numbers:
        return fields
    every = global_numbers[0] + 1
    if global_numbers != list(range(every - 1, layers, every)):
        raise UserError(
            f"{file.spec}: layers {', '.join(map(str, global_numbers))} of {layers} have global attention; "
            "this encoder supports it only in every n-th layer, as in SAM's published sizes: give such a file"
        )
    return fields | {"global_every": every}


def _hugging_face_fields(config: dict[str, Any] | None) -> dict[str, Any]:
    config = config or {}
    if "encoder" in (config.get("model") or ()):  # Galileo's own
        config = {"num_attention_heads": config["model"]["encoder"].get("num_heads")}
    config = hugging_face_section(config, "vision_config", "backbone_config")
    theirs = {"heads": "num_attention_heads", "norm_eps": "layer_norm_eps", "rope_base": "rope_theta"}
    found = {ours: config[name] for ours, name in theirs.items() if config.get(name) is not None}
    for key, value in found.items():
        is_number = isinstance(value, int if key == "heads" else int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < math.inf:
            raise ValueError(f"{theirs[key]} in config.json is {shown(repr(value))}")
    return found


def hugging_face_section(config: dict[str, Any] | None, *names: str) -> dict[str, Any]:
    """Return the innermost of the named sections of a config.json that it has; itself if it has none.

    Raises:
      ValueError: a section is no object.
    """
    found = config or {}
    for name in names:
        found = found.get(name) or found
        if not isinstance(found, dict):
            raise ValueError(f"{name} in config.json is {shown(repr(found))}")
    return found


def default_leaves(encoder_file: EncoderFile, config: EncoderConfig) -> dict[LeafPath, np.ndarray]:
    """Return values of leaves that a format defines instead of storing them."""
    if encoder_file.names is None:
        return {}
    width = config.width
    defaults: dict[LeafPath, np.ndarray] = {("mask_token",): np.zeros((1, width), np.float32)}
    # the keys have no bias
    mask = np.ones((3, width), np.float32)
    mask[1] = 0
    defaults["blocks", "attention", "bias_mask"] = np.tile(mask.reshape(1, -1), (config.layers, 1))
    if not encoder_file.names.periods:
        defaults["rope_periods",] = np.asarray(centred_periods(config.head_dim, config.rope_base))
    if not encoder_file.format.untied:
        for norm in config.untied_norms:
            defaults[norm, "scale"], defaults[norm, "bias"] = np.ones(width, "f4"), np.zeros(width, "f4")
    return defaults
