"""The arrays of a golden file, and that they are those the format has.

One line a quantity: how far we are from a golden number, and how far we may be.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spectralmoe_jax.errors import UserError


class Check(NamedTuple):
    """`error`: largest absolute error over the golden's largest magnitude. `bound`: None where the
    quantity is not checked, and `note` says why."""

    file: str
    quantity: str
    error: float
    bound: float | None
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.bound is not None and bool(self.error <= self.bound)


def compare(file: str, quantity: str, ours: Any, golden: Any, bound: float) -> Check:
    """Compare two arrays of one shape; a golden (1,) also stands for a number, as torch writes some.

    A difference in shape, or a value that is not finite on either side, is an infinite error; where the
    golden is zero throughout, the error is absolute.
    """
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    if golden.shape == (1,) and ours.shape == ():
        golden = golden.reshape(())
    if ours.shape != golden.shape:
        return Check(file, quantity, np.inf, bound, f"shape {ours.shape}, golden {golden.shape}")
    for side, values in (("ours", ours), ("golden", golden)):
        if not np.all(np.isfinite(values)):
            return Check(file, quantity, np.inf, bound, f"{side} not finite")
    scale = float(np.max(np.abs(golden), initial=0.0))
    difference = float(np.max(np.abs(ours - golden), initial=0.0))
    return Check(file, quantity, difference / scale if scale else difference, bound)


def compare_present(file: str, quantity: str, ours: Any, goldens: Mapping[str, Any], bound: float) -> Check:
    """`compare` with the golden of that name; without a bound where the file does not have it."""
    if quantity not in goldens:
        return Check(file, quantity, np.nan, None, "not in the file")
    return compare(file, quantity, ours, goldens[quantity], bound)


def worst(file: str, checks: list[Check], quantity: str) -> Check:
    """Fold many checks into the one that is furthest off; NaN is further off than anything else.

    Without a bound where there are none to fold.
    """
    if not checks:
        return Check(file, quantity, np.nan, None, "none in the file")
    found = max(checks, key=lambda check: np.inf if np.isnan(check.error) else check.error)
    return found._replace(quantity=f"{quantity} ({len(checks)}, worst {found.quantity})")


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
