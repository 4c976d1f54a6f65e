"""Names of vector files that pyogrio would take for addresses or archives."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from data_pipelines.readers.address import is_remote
from spectralmoe_jax.part_files import scratch_folder

_READ_AS_PARTS = set("!;?\t\r\n")  # ends of archives, parameters and queries; what addresses lose
_READ_AS_ARCHIVE = ".zip"


@contextlib.contextmanager
def as_file(path: Path) -> Iterator[Path]:
    """Yield a name by which pyogrio opens the file at `path`, which need not exist.

    pyogrio reads a name as an address: `a!b.gpkg` is the file `b.gpkg` in an archive `a`, and line breaks or
    what follows a semicolon are dropped. Such a file, or a folder above it, gets another name by a link in a
    temporary folder. Files of the same stem beside it, such as those of a shapefile, get theirs too.
    """
    whole = Path(os.path.abspath(path))
    if is_remote(str(path)):
        yield path
    elif not _is_odd(whole):
        yield path if not _has_odd_start(str(path)) else whole
    else:
        with scratch_folder() as folder:
            yield _linked(whole, folder)


def _is_odd(path: Path) -> bool:
    return bool(_READ_AS_PARTS & set(str(path))) or path.suffix.lower() == _READ_AS_ARCHIVE


def _has_odd_start(name: str) -> bool:
    """Return whether a relative name begins as an address does, or with what addresses lose."""
    return ":" in name or name[0] <= " "


def _linked(path: Path, folder: Path) -> Path:
    """Return the name in a folder of links that leads to a file."""
    if not _is_odd(Path("/", path.name)):
        (folder / "folder").symlink_to(path.parent)
        return folder / "folder" / path.name
    for entry in path.parent.glob("*"):
        if entry.name.startswith(f"{path.stem}."):
            (folder / f"file{entry.name[len(path.stem) :]}").symlink_to(entry)
    return folder / f"file{path.suffix}"
