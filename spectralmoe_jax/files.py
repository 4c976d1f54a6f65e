"""Files that are written completely or not at all, and JSON documents that may be damaged."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.part_files import hidden_part

LARGEST_JSON = 1 << 25  # bytes of a JSON document
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, which replaces `path` when the block ends.

    The temporary path is in the same folder and has the same suffix. If the block raises, `path` is unchanged
    and whatever was written is removed.

    Raises:
      OSError: the file cannot be written; has the name of `path`.
    """
    with hidden_part(path) as temporary:
        try:
            yield temporary
            replace_file(temporary, path)
        except OSError as error:
            if type(error) is OSError and error.errno is None:  # NumPy's, if a file takes not all of an array
                raise OSError(errno.EIO, f"cannot be written ({error})", str(path)) from error
            if _is_about(error, temporary):
                error.filename, error.filename2 = str(path), None
            raise


def _is_about(error: OSError, part: Path) -> bool:
    """Return whether an error is about a hidden part, or about a disk that is full while one is written."""
    if error.filename is None:
        return error.errno in _NO_ROOM
    name = Path(os.fsdecode(error.filename))
    return name == part or part in name.parents


_OF_RASTERS = (".aux.xml", ".aux", ".ovr", ".ovr.aux.xml", ".msk", ".msk.ovr")
_APPENDED = {
    ".tif": _OF_RASTERS,
    ".tiff": _OF_RASTERS,
    ".png": _OF_RASTERS,
    ".gpkg": ("-wal", "-shm", "-journal"),
}
_WORLD_FILES = {".tif": (".tfw", ".tifw"), ".tiff": (".tfw", ".tiffw"), ".png": (".pgw", ".pngw")}
_IMAGINE = b"EHFA_HEADER_TAG"  # start of GDAL's `.aux` files; others of this suffix are not GDAL's


def replace_file(written: Path, path: Path) -> None:
    """Give a written file its final name, and remove what belonged to the former file of this name.

    That is what GDAL and GIS programs keep beside rasters and databases: statistics, overviews, masks, world
    files and journals. They would be taken for those of the new file.
    """
    os.replace(written, path)
    suffix = path.suffix.lower()
    beside = [path.with_name(path.name + end) for end in _APPENDED.get(suffix, ())]
    beside += [path.with_suffix(end) for end in _WORLD_FILES.get(suffix, ())]
    for former in beside:
        former.unlink(missing_ok=True)
    if suffix in _WORLD_FILES and _starts_with(path.with_suffix(".aux"), _IMAGINE):
        path.with_suffix(".aux").unlink()


def _starts_with(path: Path, sign: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(sign)) == sign
    except OSError:
        return False


@contextlib.contextmanager
def naming_file(path: object) -> Iterator[None]:
    """Add `path` to an OSError that does not name its file, as errors of writing do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def require_ordinary(path: Path, remedy: str) -> None:
    """Check that a path is that of a file with an end: no pipe or device, which may be read for ever.

    Raises:
      UserError: it is something else.
      OSError: there is nothing, or a folder.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: not an ordinary file, but a pipe or a device: {remedy}")


def parse_json(text: str | bytes, name: object, remedy: str) -> Any:
    """Return the value of a JSON document.

    Args:
      text: the document.
      name: of the file, for messages.
      remedy: what the user can do about a damaged one.

    Raises:
      UserError: it is not UTF-8, not JSON, or nested too deep to be read.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise UserError(f"{name}: damaged, it is not JSON ({reason}): {remedy}") from None


def read_json(path: Path, remedy: str, kind: type | tuple[type, ...] = dict) -> Any:
    """Return the value of a JSON file, whose top must be of a kind.

    Args:
      path: the file.
      remedy: what the user can do about a damaged one.
      kind: type of the value, by default an object.

    Raises:
      UserError: it is damaged, or of another kind.
      OSError: it cannot be read.
    """
    require_ordinary(path, remedy)
    with path.open("rb") as file:
        text = file.read(LARGEST_JSON + 1)
    if len(text) > LARGEST_JSON:
        raise UserError(f"{path}: damaged, it is larger than {LARGEST_JSON >> 20} MB: {remedy}")
    value = parse_json(text, path, remedy)
    if not isinstance(value, kind):
        raise UserError(f"{path}: damaged, it holds a {type(value).__name__}: {remedy}")
    return value
