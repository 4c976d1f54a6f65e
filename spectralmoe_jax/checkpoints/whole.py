"""Whether a checkpoint can be read or written: damaged files and full disks, each in one line."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from spectralmoe_jax.checkpoints.checksums import CHECKSUMS_FILE, damage, read_checksums
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.files import LARGEST_JSON, read_json, require_ordinary
from spectralmoe_jax.parallel.distributed import gather_values

_OCDBT = b"\x0c\xdb\x3a\x2a"  # the first bytes of the index of arrays
REMEDY = "copy the checkpoint anew from where it is whole, or remove its folder to go on with the others"


_OF_ARRAYS = ("d", "ocdbt.")  # starts of the names of folders that hold arrays


def require_ordinary_files(place: Path) -> None:
    """Check that a checkpoint holds no pipes or devices, and no descriptions too large to be read.

    Raises:
      UserError: names the first.
    """
    for path in sorted(place.rglob("*")):
        if path.is_dir():
            continue
        try:
            require_ordinary(path, REMEDY)
        except OSError as error:
            raise UserError(f"{path}: missing or not readable ({error.strerror}): {REMEDY}") from None
        inside = path.relative_to(place).parts[1:-1]
        is_of_arrays = any(part.startswith(_OF_ARRAYS) for part in inside)
        if not is_of_arrays and path.stat().st_size > LARGEST_JSON:
            raise UserError(f"{path}: damaged, it is larger than {LARGEST_JSON >> 20} MB: {REMEDY}")


def require_whole(place: Path, parts: Iterable[str]) -> bool:
    """Check that the files of some parts of a checkpoint are those that were written.

    The processes of a run share the files among them.

    Returns:
      Whether there are checksums to compare with.

    Raises:
      UserError: in every process; names the damaged file.
    """
    checksums = read_checksums(place)
    if checksums is None:
        return False
    parts = tuple(parts)
    names = [name for name in sorted(checksums) if name.partition("/")[0] in parts]
    for part in parts:
        if not any(name.startswith(f"{part}/") for name in names):
            raise UserError(f"{place / CHECKSUMS_FILE}: damaged, it names no file of {part}: {REMEDY}")
    found = damage(place, names[jax.process_index() :: jax.process_count()], checksums)
    everyone = [{"damage": found}] if jax.process_count() == 1 else gather_values({"damage": found})
    for each in everyone:
        if each["damage"] is not None:
            raise UserError(each["damage"])
    return True


def require_readable(place: Path, parts: Iterable[str]) -> None:
    """Check the files that a part of a checkpoint cannot be read without, where there are no checksums.

    Raises:
      UserError: names the first that is missing or damaged.
    """
    for part in parts:
        for path in (place / part / "_METADATA", *sorted((place / part).glob("array_metadatas/*"))):
            try:
                read_json(path, REMEDY)
            except (FileNotFoundError, NotADirectoryError):
                raise UserError(f"{path}: missing: {REMEDY}") from None
        path = place / part / "manifest.ocdbt"
        if not path.is_file() or path.read_bytes()[:4] != _OCDBT:
            raise UserError(f"{path}: missing or damaged: {REMEDY}")


@contextlib.contextmanager
def damage_in_one_line(place: Path) -> Iterator[None]:
    """Turn the error of an unreadable checkpoint, which may be any, into a UserError of one line."""
    logger = logging.getLogger("absl")
    logger.addFilter(_is_not_of_orbax)
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"checkpoint {place}: damaged ({type(error).__name__}: {reason}): {REMEDY}") from None
    finally:
        logger.removeFilter(_is_not_of_orbax)


def disk_full(error: BaseException) -> str | None:
    """Return the system's message of a full disk or quota; None for any other error."""
    code = error.errno if isinstance(error, OSError) else None
    written = re.search(r"os_error_code='(\d+)'", str(error))  # as the storage library reports it
    code = int(written[1]) if code is None and written else code
    return os.strerror(code) if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else None


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """Filter out what Orbax says of files that it cannot read, beside our one line."""
    return "orbax" not in record.pathname


def is_not_of_a_save(record: logging.LogRecord) -> bool:
    """Filter Orbax's tracebacks out of the log: every thread logs its own before the error is raised."""
    return "orbax" not in record.pathname or record.levelno < logging.ERROR


def require_same_leaves(wanted: Mapping[str, Any], stored: Mapping[str, Any], place: str) -> None:
    """Raise a UserError unless a part of a checkpoint holds exactly the wanted leaves, by name and shape."""
    missing = sorted(wanted.keys() - stored.keys())
    surplus = sorted(stored.keys() - wanted.keys())
    other = [
        name for name in wanted.keys() & stored.keys() if tuple(stored[name].shape) != wanted[name].shape
    ]
    problems = [
        f"{what} {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
        for what, names in (
            ("misses", missing),
            ("has unknown", surplus),
            ("has another shape of", sorted(other)),
        )
        if names
    ]
    if problems:
        raise UserError(f"checkpoint {place} does not fit the model: it {'; '.join(problems)}")
