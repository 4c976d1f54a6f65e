"""Write weight files tensor by tensor: safetensors files, Hugging Face folders, and records of origin."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spectralmoe_jax.config.model import UNTIED_NORMS, EncoderConfig
from spectralmoe_jax.config.presets import PRESETS
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.weights import format_tables as tables
from spectralmoe_jax.weights.encoder_file import OR, candidate_presets
from spectralmoe_jax.weights.formats import EncoderFile, default_leaves, file_fields, publication
from spectralmoe_jax.weights.hub import CONFIG, WEIGHTS
from spectralmoe_jax.weights.name_rules import LeafPath, Shape, write_each, written_shapes
from spectralmoe_jax.weights.reading import MANIFEST, WeightFile, manifest

DTYPE = np.dtype("<f4")
log = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_create(destination: Path) -> Iterator[Path]:
    """Yield a temporary path for a new file or folder, which is renamed to `destination` on success.

    Raises:
      UserError: the destination exists, or its parent folder does not.
    """
    require_absent(destination)
    with atomic_write(destination) as temporary:
        yield temporary


def require_absent(destination: Path) -> None:
    """Raise a UserError if a file or folder exists, or cannot be made because its parent folder does not."""
    if destination.exists():
        raise UserError(f"{destination}: exists already; remove it or choose another name")
    if not destination.parent.is_dir():
        raise UserError(f"{destination.parent}: no such folder; make it first")


def require_suffix(target: Path, *suffixes: str) -> None:
    """Raise a UserError where a file name ends in none of the suffixes."""
    if target.suffix not in suffixes:
        raise UserError(f"{target}: the name has to end in {' or '.join(suffixes)}")


def write_safetensors(
    path: Path,
    shapes: Mapping[str, Shape],
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
) -> None:
    """Write float32 tensors to a safetensors file with only one of them in memory.

    The safetensors library would need all of them at once.

    Args:
      path: the file.
      shapes: shape of every tensor by name, in any order.
      tensors: name and array of each, once, in any order.
      metadata: metadata for the header.
    """
    # 1. The header has the byte range of every tensor.
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + int(np.prod(shape)) * DTYPE.itemsize
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start at a multiple of eight bytes
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        # 2. Each tensor goes to its own range, in the order in which they come.
        written = set()
        for name, tensor in tensors:
            assert tensor.shape == tuple(shapes[name]), name
            assert name not in written, name
            file.seek(8 + len(encoded) + header[name]["data_offsets"][0])
            file.write(np.ascontiguousarray(tensor, DTYPE).data)
            written.add(name)
        assert written == set(shapes)


# Records of origin

Record = dict[str, Any]


def record_metadata(record: Mapping[str, Any]) -> dict[str, str]:
    """Return a record as metadata of a safetensors file."""
    return {MANIFEST: json.dumps(record)}


def file_record(file: WeightFile) -> Record:
    """Return the name and checksums of a weight file; a native file's own record is kept as `earlier`."""
    digests = {path.name: _sha256(path) for path in file.paths}
    record = {"source": file.spec, "sha256": digests}
    earlier = manifest(file)
    return record | ({"earlier": earlier} if earlier else {})


def encoder_record(encoder_file: EncoderFile, preset_name: str | None = None) -> Record:
    """Return the record of an encoder: its file, licence note, preset, format and settings.

    Args:
      encoder_file: the file that the encoder comes from.
      preset_name: the preset that the user gave. Without it the record names every candidate, joined by `or`.
    """
    fields = {**file_fields(encoder_file), **(PRESETS[preset_name] if preset_name else {})}
    return {
        **file_record(encoder_file.file),
        "licence": encoder_file.format.licence,
        "preset": preset_name or OR.join(candidate_presets(encoder_file, fields)) or None,
        "format": encoder_file.format.name,
        "encoder": fields,
    }


def folder_sha256(folder: Path) -> str:
    """Return one checksum of a folder, over the names and checksums of its files in order of their names."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()} {_sha256(path)}\n".encode())
    return total.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# The publisher's names


def write_published(
    path: Path,
    encoder_file: EncoderFile,
    config: EncoderConfig,
    shapes: Mapping[LeafPath, Shape],
    leaves: Iterable[tuple[LeafPath, np.ndarray]],
    record: Mapping[str, Any],
) -> None:
    """Write an encoder under the names of its publisher: the inverse of reading its file.

    Tensors that the encoder does not need, and that reading ignored, are not written.

    Args:
      path: a .safetensors file, or a .pth file that holds a plain dictionary of tensors, without the record.
      encoder_file: the file that the encoder comes from, published or of our names.
      config: the encoder.
      shapes: shapes of its leaves.
      leaves: path and array of each leaf, perhaps with others.
      record: record of origin for the header.

    Raises:
      UserError: the publisher's format is not known, or is one of Hugging Face.
    """
    published = publication(encoder_file)
    if published.format.name.startswith("hf_"):
        raise UserError(f"--to published: {published.format.title} is written by --to hf")
    rules = published.rules(config, dict(shapes))
    defined = default_leaves(published, config).keys() - {rule.path for rule in rules}
    wanted = {leaf_path: shape for leaf_path, shape in shapes.items() if leaf_path not in defined}
    tensors = write_each(rules, ((leaf_path, leaf) for leaf_path, leaf in leaves if leaf_path in wanted))
    write_tensors_file(path, written_shapes(rules, wanted), tensors, record, plain=True)


def write_tensors_file(
    path: Path,
    shapes: Mapping[str, Shape],
    tensors: Iterable[tuple[str, np.ndarray]],
    record: Mapping[str, Any],
    *,
    plain: bool = False,
) -> None:
    """Write tensors by name as safetensors or, with another suffix, as `torch.save` does.

    Args:
      path: file to write; its suffix tells the format.
      shapes: shapes of the tensors.
      tensors: name and array of each.
      record: record of origin, for the header or beside the tensors.
      plain: whether a file of PyTorch is a plain dictionary of the tensors, without the record; else they are
        its `state_dict`.

    Raises:
      UserError: PyTorch is needed and not installed.
      OSError: the file cannot be written.
    """
    if path.suffix == ".safetensors":
        write_safetensors(path, shapes, tensors, record_metadata(record))
        return
    try:
        import torch
    except ImportError:
        raise UserError(
            f"writing a {path.suffix} file needs PyTorch: pip install torch (or give .safetensors)"
        ) from None
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors}
    beside = {"meta": record_metadata(record), "state_dict": state}
    try:
        torch.save(state if plain else beside, path)
    except RuntimeError as error:  # so PyTorch says that a file cannot be written
        raise OSError(errno.EIO, "cannot be written; is there room on the disk?", str(path)) from error


# Hugging Face folders

_HUGGING_FACE_LAYOUTS = {
    "dinov3": tables.HF_DINOV3,
    "dinov2": tables.HF_DINOV2,
    "clip": tables.HF_CLIP,
    "sam": tables.HF_SAM,
}
_HUGGING_FACE_PREFIXES = {"clip": "vision_model.", "sam": "vision_encoder."}
# Leaves that transformers computes, or that its models do not have.
_NOT_STORED = ("rope_periods", "bias_mask", *UNTIED_NORMS)


def write_hugging_face_folder(
    folder: Path,
    config: EncoderConfig,
    shapes: Mapping[LeafPath, Shape],
    leaves: Iterable[tuple[LeafPath, np.ndarray]],
    record: Mapping[str, Any],
) -> None:
    """Write an encoder as a folder that transformers' `from_pretrained` reads, leaf by leaf.

    Args:
      folder: the folder, which is created.
      config: the encoder.
      shapes: shapes of its leaves.
      leaves: path and array of each leaf, once.
      record: record of origin for the header.

    Raises:
      UserError: transformers does not have the encoder.
    """
    if config.kind not in _HUGGING_FACE_LAYOUTS:
        known = ", ".join(_HUGGING_FACE_LAYOUTS)
        raise UserError(f"--to hf: transformers folders can be written for {known}, not for {config.kind}")
    settings = _hugging_face_config(config)
    prefix = _HUGGING_FACE_PREFIXES.get(config.kind, "")
    names = _HUGGING_FACE_LAYOUTS[config.kind]
    rules = [rule.under(prefix, ()) for rule in tables.encoder_rules(names, config)]
    omitted = sorted({part for path in shapes for part in path if part in _NOT_STORED})
    if omitted:
        log.info("%s: transformers does not store %s", folder.name, ", ".join(omitted))
    wanted = {path: shape for path, shape in shapes.items() if not set(path) & set(_NOT_STORED)}
    stored = ((path, leaf) for path, leaf in leaves if path in wanted)
    folder.mkdir()
    metadata = {"format": "pt", **record_metadata(record)}
    write_safetensors(folder / WEIGHTS, written_shapes(rules, wanted), write_each(rules, stored), metadata)
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _hugging_face_config(config: EncoderConfig) -> dict[str, Any]:
    """Return the contents of config.json."""
    gated = config.ffn == "swiglu"
    common = {
        "hidden_size": config.width, "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "patch_size": config.patch_size, "num_channels": config.in_channels,
        "layer_norm_eps": config.norm_eps, "image_size": config.table_size * config.patch_size,
        "dtype": "float32",
    }  # fmt: skip
    if config.kind == "clip":
        return {
            **common, "model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"],
            "intermediate_size": config.hidden, "hidden_act": "quick_gelu",
        }  # fmt: skip
    if config.kind == "sam":
        return {
            **common, "model_type": "sam_vision_model", "architectures": ["SamVisionModel"],
            "mlp_dim": config.hidden, "output_channels": config.neck_width, "window_size": config.window,
            "global_attn_indexes": list(tables.global_layers(config)), "qkv_bias": config.qkv_bias,
            "hidden_act": "gelu",
        }  # fmt: skip
    if config.kind == "dinov3":
        return {
            **common, "model_type": "dinov3_vit", "architectures": ["DINOv3ViTModel"],
            "query_bias": config.qkv_bias, "value_bias": config.qkv_bias, "key_bias": False,
            "intermediate_size": config.hidden, "hidden_act": "silu" if gated else "gelu",
            "use_gated_mlp": gated, "num_register_tokens": config.storage_tokens,
            "rope_theta": config.rope_base,
        }  # fmt: skip
    model: dict[str, Any] = {"model_type": "dinov2", "architectures": ["Dinov2Model"]}
    if config.storage_tokens:
        model = {
            "model_type": "dinov2_with_registers", "architectures": ["Dinov2WithRegistersModel"],
            "num_register_tokens": config.storage_tokens,
        }  # fmt: skip
    return {
        **common, **model, "mlp_ratio": _dinov2_mlp_ratio(config), "qkv_bias": config.qkv_bias,
        "use_swiglu_ffn": gated, "hidden_act": "gelu",
    }  # fmt: skip


def _dinov2_mlp_ratio(config: EncoderConfig) -> int:
    """Return the `mlp_ratio` for which transformers gives the encoder's hidden width."""

    def hidden(ratio: int) -> int:
        """Compute the width of a feed-forward block from its ratio."""
        wide = config.width * ratio
        # a gated block has two thirds of that, rounded up to a multiple of eight
        return (wide * 2 // 3 + 7) // 8 * 8 if config.ffn == "swiglu" else wide

    for ratio in range(1, 17):
        if hidden(ratio) == config.hidden:
            return ratio
    raise UserError(
        f"--to hf: a hidden width of {config.hidden} for width {config.width} does not exist in transformers"
    )
