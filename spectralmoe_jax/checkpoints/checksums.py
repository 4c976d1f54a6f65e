"""Checksums of the files of a checkpoint: written when it is complete, compared before it is read.

`checksums.json` in the folder of a checkpoint holds size and CRC-32 of every file in there, those of all
stored arrays among them. CRC-32 sees every flipped bit and every run of changed bits up to 32 long, and reads
several gigabytes a second.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.files import atomic_write, read_json, require_ordinary

CHECKSUMS_FILE = "checksums.json"
_PART = 1 << 22  # bytes read at a time
_REMEDY = "copy the checkpoint anew from where it is whole, or remove its folder to go on with the others"


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files in the folder of a complete checkpoint.

    Raises:
      OSError: a file cannot be read, or the checksums cannot be written.
    """
    files = {path.relative_to(folder).as_posix(): _measured(path) for path in _files_in(folder)}
    with atomic_write(folder / CHECKSUMS_FILE) as aside:
        aside.write_text(
            json.dumps({"files": files, "itself": _of_record(files)}, indent=1) + "\n", encoding="utf-8"
        )


def read_checksums(folder: Path) -> dict[str, tuple[int, int]] | None:
    """Return size and CRC-32 of the files of a checkpoint by their names; None if it has no checksums.

    Raises:
      UserError: the file of the checksums is damaged.
    """
    path = folder / CHECKSUMS_FILE
    try:
        stored = read_json(path, _REMEDY)
    except FileNotFoundError:
        return None
    files = stored.get("files")
    is_record = isinstance(files, dict) and all(map(_is_entry, files.items()))
    if not is_record or stored.get("itself") != _of_record(files):
        raise UserError(f"{path}: damaged, it does not match itself: {_REMEDY}")
    return {name: (size, checksum) for name, (size, checksum) in files.items()}


def damage(folder: Path, names: Sequence[str], checksums: dict[str, tuple[int, int]]) -> str | None:
    """Return in one line what is wrong with the first damaged one of some files; None if all are whole.

    Args:
      folder: of the checkpoint.
      names: of the files, as in `checksums`.
      checksums: from `read_checksums`.
    """
    for name in names:
        path = folder / name
        try:
            require_ordinary(path, _REMEDY)
            size = path.stat().st_size
            found = _measured(path) if size == checksums[name][0] else (size, 0)
        except UserError as problem:
            return str(problem)
        except OSError as error:
            return f"{path}: missing or not readable ({error.strerror}): {_REMEDY}"
        if found != checksums[name]:
            what = "size" if found[0] != checksums[name][0] else "checksum"
            return f"{path}: damaged, its {what} is not that of the file that was written: {_REMEDY}"
    return None


def _is_entry(entry: tuple[str, Any]) -> bool:
    """Return whether an entry of the record names a file inside the folder, its size and its checksum."""
    name, value = entry
    is_inside = name.isprintable() and not name.startswith("/") and ".." not in name.split("/")
    return is_inside and isinstance(value, list) and [type(number) for number in value] == [int, int]


def _files_in(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CHECKSUMS_FILE)


def _measured(path: Path) -> tuple[int, int]:
    """Return size and CRC-32 of a file."""
    size = checksum = 0
    with path.open("rb") as file:
        while part := file.read(_PART):
            size, checksum = size + len(part), zlib.crc32(part, checksum)
    return size, checksum


def _of_record(files: dict[str, Any]) -> int:
    """Return the checksum of the record of checksums."""
    return zlib.crc32(json.dumps(files, sort_keys=True).encode())
