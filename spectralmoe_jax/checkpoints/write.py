"""Files of weights, written tensor by tensor, whole or not at all."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.files import replacing

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
