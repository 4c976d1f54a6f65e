"""Arrays of `.npz` files, whose stated sizes are checked before anything is allocated."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from spectralmoe_jax.errors import UserError, shown
from spectralmoe_jax.files import require_ordinary

_RATIO, _ALWAYS = 200, 1 << 26  # bytes of arrays for each byte of the file, and that any file may hold
_SUFFIX = ".npy"
_LAST_CHARACTER = 0x10FFFF


def read_npz(
    path: Path, remedy: str, names: Iterable[str] | None = None, *, what: str = ".npz file"
) -> dict[str, np.ndarray]:
    """Read arrays of an `.npz` file; nothing in it is unpickled.

    Args:
      path: the file.
      remedy: what the user can do about a damaged one.
      names: the arrays to read, which the file has to hold; by default all.
      what: the kind of file, for messages.

    Raises:
      UserError: the file is damaged, lacks an array, or states more than its size allows.
    """
    try:
        require_ordinary(path, remedy)
        with zipfile.ZipFile(path) as archive:
            held = _members(archive)
            wanted = list(held) if names is None else list(names)
            missing = [name for name in wanted if name not in held]
            if missing:
                raise ValueError(f"no array {', '.join(missing[:3])}")
            _check_sizes(path, archive, [held[name] for name in wanted])
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in wanted}
        for name, array in found.items():
            _check_texts(name, array)
        return found
    except UserError:
        reason = "a pipe or a device"
    except OSError as problem:
        reason = problem.strerror or str(problem)
    except Exception as problem:  # a damaged archive raises whatever its decompressor does
        reason = str(problem) or type(problem).__name__
    raise UserError(f"{path}: not a readable {what} ({shown(' '.join(reason.split()))}): {remedy}")


def _check_texts(name: str, array: np.ndarray) -> None:
    """Refuse texts of characters that do not exist, of which Python makes no string."""
    if array.dtype.kind == "U" and array.dtype.itemsize:
        texts = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        if (texts.reshape(-1).view(np.uint32) > _LAST_CHARACTER).any():
            raise ValueError(f"{name} holds characters that do not exist")


def _members(archive: zipfile.ZipFile) -> Mapping[str, zipfile.ZipInfo]:
    """Return the members of an archive by the names of their arrays."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(_SUFFIX)
        if name in members or name == member.filename:
            raise ValueError(f"{member.filename} is twice in it, or no array")
        members[name] = member
    return members


def _check_sizes(path: Path, archive: zipfile.ZipFile, members: Iterable[zipfile.ZipInfo]) -> None:
    """Compare the shapes in the headers with the sizes of the members, and these with that of the file."""
    total = 0
    for member in members:
        with archive.open(member) as file:
            major = npy.read_magic(file)
            read = npy.read_array_header_1_0 if major == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read(file)
            start = file.tell()
        if dtype.hasobject:
            raise ValueError(f"{member.filename} holds Python objects")
        if start + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(
                f"{member.filename} is {member.file_size} bytes, its header says {shape} {dtype}"
            )
        total += member.file_size
    if total > max(_ALWAYS, _RATIO * path.stat().st_size):
        raise ValueError(f"it states {total:,} bytes of arrays, too many for its size")
