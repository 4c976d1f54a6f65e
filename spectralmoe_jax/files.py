"""Files that are written completely or not at all, and JSON documents that may be damaged."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spectralmoe_jax.errors import UserError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, which replaces `path` when the block ends.

    The temporary path is in the same folder and has the same suffix. If the block raises, `path` is unchanged
    and whatever was written is removed.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming_file(path: object) -> Iterator[None]:
    """Add `path` to an OSError that does not name its file, as errors of writing do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


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
    value = parse_json(path.read_bytes(), path, remedy)
    if not isinstance(value, kind):
        raise UserError(f"{path}: damaged, it holds a {type(value).__name__}: {remedy}")
    return value
