"""`spectralmoe convert`: published encoders to our files, trained runs to the released code's and others'."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spectralmoe_jax.checkpoints import rules
from spectralmoe_jax.checkpoints.encoder_file import (
    matching_preset,
    require_architecture,
    stored_leaves,
    stream_found,
)
from spectralmoe_jax.checkpoints.formats import MANIFEST, NATIVE, Found, file_fields, recognise
from spectralmoe_jax.checkpoints.hugging_face import write_folder
from spectralmoe_jax.checkpoints.released import generated_leaves, is_segmenter, released_tensors
from spectralmoe_jax.checkpoints.sources import HUB, Source, open_source
from spectralmoe_jax.checkpoints.store import FOLDER, read_run_config
from spectralmoe_jax.checkpoints.write import aside, write_safetensors
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.encoder import EncoderConfig
from spectralmoe_jax.models.presets import preset as published
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.models.state import leaves

log = logging.getLogger(__name__)
TARGETS = ("safetensors", "released", "hf")
_HEAD_WIDTH = 64  # of every published encoder but SAM-H, which says so
_ANY_BANDS = (
    0.665,
    0.56,
    0.49,
)  # stand in where shapes alone are asked for


def convert(source: str, destination: str, *, format: str | None = None, preset: str | None = None,
            to: str | None = None) -> str:  # fmt: skip
    """Convert an encoder's weights, or a run's folder.

    Args:
      source: see `sources.open_source`; or a folder that `spectralmoe train` wrote.
      destination: what to write; it must not exist.
      format: of an encoder's file, where it should not be recognised.
      preset: the encoder that the file has to hold.
      to: of `TARGETS`, by default `safetensors`.

    Returns: what was done, in a line.

    Raises UserError; then nothing was written.
    """
    target = Path(destination)
    if to not in (None, *TARGETS):
        raise UserError(f"--to {to}: choose from {', '.join(TARGETS)}")
    if not source.startswith(HUB) and (Path(source) / FOLDER).is_dir():
        if format or preset:
            raise UserError(f"{source} is a run's folder: --as and --preset are for an encoder's file")
        return _convert_run(Path(source), target, to or "safetensors")
    if to == "released":
        raise UserError(f"{source}: --to released writes a whole segmenter; give the folder of a run")
    return _convert_encoder(source, target, format, preset, to or "safetensors")


def _convert_encoder(spec: str, target: Path, format: str | None, preset: str | None, to: str) -> str:
    source = open_source(spec)
    if is_segmenter(source):
        raise UserError(f"{spec}: holds parts of a segmenter; config.model.weights reads it as it is")
    found = recognise(source, format)
    fields, config = _encoder_config(found, preset)
    if to == "hf":
        if not {"heads", "norm_eps"} <= fields.keys() and not (preset or matching_preset(fields)):
            raise UserError(f"{spec}: does not say how many heads it has; give --preset NAME")
        with aside(target) as folder:
            write_folder(folder, config, dict(stream_found(found, config)))
        return f"{target}: {found.format.title} as a Hugging Face folder"
    _require_suffix(target, ".safetensors")
    made = {
        "source": source.describe, "sha256": _digests(source), "licence": found.format.licence,
        "preset": preset or matching_preset(fields), "format": found.format.name, "encoder": fields,
    }  # fmt: skip
    shapes = {"/".join(path): shape for path, shape in stored_leaves(config).items()}
    stream = (("/".join(path), leaf) for path, leaf in stream_found(found, config))
    # DOFA's patch embedding belongs to a band set, not to the file
    stored = ((name, leaf) for name, leaf in stream if name in shapes)
    with aside(target) as file:
        write_safetensors(file, shapes, stored, {MANIFEST: json.dumps(made)})
    return f"{target}: {found.format.title}, {len(shapes)} leaves"


def _encoder_config(found: Found, preset: str | None) -> tuple[dict[str, Any], EncoderConfig]:
    """Fields that the file or the preset states, and a configuration that gives every leaf its shape."""
    fields = file_fields(found)
    if found.format.name == NATIVE and not fields:
        raise UserError(f"{found.source.describe}: has no manifest; convert the file it came from again")
    chosen = preset or matching_preset(fields)
    row = published(chosen, "--preset") if chosen else {}
    if preset:
        fields = {**fields, **row}
    whole = {"heads": max(1, fields["width"] // _HEAD_WIDTH), **row, **fields}
    if whole["kind"] == "dofa":
        whole |= {"wavelengths": _ANY_BANDS, "in_channels": len(_ANY_BANDS)}
    config = EncoderConfig(**whole)
    require_architecture(found, config, f"--preset {preset}")
    return fields, config


def _digests(source: Source) -> dict[str, str]:
    """SHA-256 of every file of the source, by its name."""
    digests = {}
    for path in source.files:
        with path.open("rb") as file:
            digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _convert_run(workdir: Path, target: Path, to: str) -> str:
    from spectralmoe_jax.checkpoints.trained import load_trained

    if to == "safetensors":
        _require_suffix(target, ".safetensors")
    if to == "released":
        _require_suffix(target, ".pth", ".safetensors")
    segmenter = load_trained(workdir, read_run_config(workdir))
    values = leaves(segmenter)
    made = {MANIFEST: json.dumps({"source": str(workdir), "format": to})}
    with aside(target) as place:
        if to == "hf":
            visual = dict(_arrays(leaves(segmenter.backbone.visual)))  # type: ignore[arg-type]
            write_folder(place, segmenter.config.visual, visual)
        elif to == "safetensors":
            left_out = generated_leaves(segmenter.config)
            named = {"/".join(path): leaf for path, leaf in values.items() if path not in left_out}
            shapes = {name: tuple(leaf.shape) for name, leaf in named.items()}
            write_safetensors(place, shapes, _arrays(named), made)
        else:
            write_released(place, target.suffix, segmenter, values, made)
    return f"{target}: the best checkpoint of {workdir}, --to {to}"


def write_released(place: Path, suffix: str, segmenter: Segmenter, values: Mapping[rules.Path, Any],
                   metadata: Mapping[str, str]) -> None:  # fmt: skip
    """A file in the authors' names and layout: safetensors, or a .pth whose `state_dict` their code loads."""
    if suffix == ".safetensors":
        shapes = {name: tensor.shape for name, tensor in released_tensors(segmenter.config, values)}
        write_safetensors(place, shapes, released_tensors(segmenter.config, values), metadata)
        return
    try:
        import torch
    except ImportError:
        raise UserError(
            "writing a .pth file needs PyTorch: pip install torch (or give .safetensors)"
        ) from None
    state = {name: torch.from_numpy(tensor) for name, tensor in released_tensors(segmenter.config, values)}
    torch.save({"meta": dict(metadata), "state_dict": state}, place)


def _arrays(named: Mapping[Any, Any]) -> Iterator[tuple[Any, np.ndarray]]:
    return ((name, np.asarray(leaf)) for name, leaf in named.items())


def _require_suffix(target: Path, *suffixes: str) -> None:
    if target.suffix not in suffixes:
        raise UserError(f"{target}: the name has to end in {' or '.join(suffixes)}")
