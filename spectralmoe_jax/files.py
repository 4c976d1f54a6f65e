"""Files that are written completely or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


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
