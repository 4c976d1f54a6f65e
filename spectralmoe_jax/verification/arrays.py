"""The arrays of a golden file, and that they are those the format has."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from spectralmoe_jax.errors import UserError

Shape = tuple[int | None, ...]  # None: of any length


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of an `.npz` by its key; `meta`, where there is one, as text of shape ().

    Raises UserError for a file that is unreadable, or holds anything but numbers besides `meta`.
    """
    try:
        with np.load(path) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, EOFError, ValueError, AttributeError, zipfile.BadZipFile, zlib.error) as problem:
        raise UserError(
            f"{path}: not a readable golden: truncated, or no .npz archive of numbers; restore the file"
        ) from problem
    for key, array in arrays.items():
        if key != "meta" and array.dtype.kind not in "fiub":
            raise UserError(f"{path}: {key} holds {array.dtype}, not numbers; see goldens/README.md")
    return arrays


def require_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], inputs: Mapping[str, Shape], outputs: Iterable[str] = ()
) -> None:
    """Check that a golden has what its quantities are computed from, and nothing that nobody reads.

    Args:
      inputs: what must be there, and its shape.
      outputs: what may be there besides; a name that ends in `/` stands for all keys that start with it.

    Raises UserError, listing all problems together: missing keys, left-over keys, shapes that do not fit.
    """
    known = tuple(outputs)
    prefixes = tuple(name for name in known if name.endswith("/"))
    problems = {
        "missing": [key for key in inputs if key not in arrays],
        "left over": [
            key for key in arrays if key not in inputs and key not in known and not key.startswith(prefixes)
        ],
        "wrong shape": [
            f"{key} {arrays[key].shape}, not ({', '.join('any' if n is None else str(n) for n in shape)})"
            for key, shape in inputs.items()
            if key in arrays and not _fits(arrays[key].shape, shape)
        ],
    }
    refuse(path, problems)


def refuse(path: Path, problems: Mapping[str, list[str]]) -> None:
    """Raise a UserError that lists the problems with a golden file, by kind, if there are any."""
    listed = [f"{what}: {', '.join(items)}" for what, items in problems.items() if items]
    if listed:
        raise UserError(f"{path}: not as goldens/README.md describes it; {'; '.join(listed)}. Mend the file.")


def _fits(shape: tuple[int, ...], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(n in (None, m) for m, n in zip(shape, wanted, strict=True))
