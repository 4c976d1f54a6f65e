"""Where the weights in a file came from: the record that goes into its header."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectralmoe_jax.checkpoints.encoder_file import OR, presets_of
from spectralmoe_jax.checkpoints.formats import MANIFEST, Found, file_fields, manifest
from spectralmoe_jax.checkpoints.sources import Source
from spectralmoe_jax.models.presets import PRESETS

Record = dict[str, Any]


def header(record: Mapping[str, Any]) -> dict[str, str]:
    """A record as metadata of a safetensors file."""
    return {MANIFEST: json.dumps(record)}


def of_source(source: Source) -> Record:
    """Source and SHA-256 of its files; of a file of ours its own record goes along as `earlier`."""
    record = {"source": source.describe, "sha256": digests(source)}
    earlier = manifest(source)
    return record | ({"earlier": earlier} if earlier else {})


def of_encoder(found: Found, preset: str | None = None) -> Record:
    """An encoder's source, SHA-256, licence note, preset (several, joined by `or`, where the file does not
    tell), format and settings.

    Args:
      preset: the one that the user named.
    """
    fields = {**file_fields(found), **(PRESETS[preset] if preset else {})}
    return {
        **of_source(found.source), "licence": found.format.licence,
        "preset": preset or OR.join(presets_of(found, fields)) or None,
        "format": found.format.name, "encoder": fields,
    }  # fmt: skip


def digests(source: Source) -> dict[str, str]:
    """SHA-256 of every file of a source, by its name."""
    return {path.name: _sha256(path) for path in source.files}


def of_folder(folder: Path) -> str:
    """One SHA-256 of a folder: of its files' names and SHA-256 sums, in the order of the names."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()} {_sha256(path)}\n".encode())
    return total.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
