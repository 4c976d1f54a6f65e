"""Files of weights, written tensor by tensor, whole or not at all.

Where the weights in a file came from: the record that goes into its header.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spectralmoe_jax.config.presets import PRESETS
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.files import replacing
from spectralmoe_jax.weights.encoder_file import OR, presets_of
from spectralmoe_jax.weights.formats import MANIFEST, Found, file_fields, manifest
from spectralmoe_jax.weights.reading import Source

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


DTYPE = np.dtype("<f4")


@contextlib.contextmanager
def aside(destination: Path) -> Iterator[Path]:
    """A name beside `destination` to write a file or folder at; it takes its place once the block is done, or
    vanishes where that fails.

    Raises UserError where the destination exists, or its folder does not.
    """
    if destination.exists():
        raise UserError(f"{destination}: exists already; remove it or choose another name")
    if not destination.parent.is_dir():
        raise UserError(f"{destination.parent}: no such folder; make it first")
    with replacing(destination) as temporary:
        yield temporary


def require_suffix(target: Path, *suffixes: str) -> None:
    """Raises UserError where a file's name ends in none of these."""
    if target.suffix not in suffixes:
        raise UserError(f"{target}: the name has to end in {' or '.join(suffixes)}")


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
) -> None:
    """Write float32 tensors as they come: one at a time is in memory, where the library wants all.

    Args:
      shapes: of every tensor, in any order.
      tensors: (name, array) of each, once.
      metadata: for the header.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + int(np.prod(shape)) * DTYPE.itemsize
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors start at a multiple of eight bytes
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        written = set()
        for name, tensor in tensors:
            assert tensor.shape == tuple(shapes[name]), name
            assert name not in written, name
            file.seek(8 + len(encoded) + header[name]["data_offsets"][0])
            file.write(np.ascontiguousarray(tensor, DTYPE).data)
            written.add(name)
        assert written == set(shapes)
