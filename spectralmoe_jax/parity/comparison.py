"""Read the arrays of a golden file, and compare our values with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spectralmoe_jax.errors import UserError, shown
from spectralmoe_jax.files import parse_json
from spectralmoe_jax.npz import read_npz

Shape = tuple[int | None, ...]  # None: any length
_LARGEST = 1 << 16  # number among hyper-parameters


def read_arrays(path: Path, texts: Iterable[str] = ("meta",)) -> dict[str, np.ndarray]:
    """Read every array of an `.npz` file.

    Args:
      path: the file.
      texts: names of arrays that may hold text.

    Raises:
      UserError: the file is not readable, or another array does not hold numbers.
    """
    texts = set(texts)
    arrays = read_npz(path, "restore the file", what="golden")
    for key, array in arrays.items():
        if array.dtype.kind not in ("fiubU" if key in texts else "fiub"):
            raise UserError(f"{path}: {key} holds {array.dtype}, not numbers; see goldens/README.md")
    return arrays


def parse_meta(path: Path, text: str | bytes) -> dict[str, Any]:
    """Return the hyper-parameters of a golden file.

    Raises:
      UserError: they are no JSON object, or a number among them is larger than a golden's can be.
    """
    meta = parse_json(text, path, "restore the file")
    pending = [meta]
    while pending:
        value = pending.pop()
        if isinstance(value, dict | list):
            pending += value.values() if isinstance(value, dict) else value
        elif isinstance(value, int | float) and not abs(value) <= _LARGEST:
            raise UserError(f"{path}: holds the number {shown(value)}, which no golden has; restore the file")
    if not isinstance(meta, dict):
        raise UserError(f"{path}: its hyper-parameters are no JSON object; see goldens/README.md")
    return meta


def require_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], inputs: Mapping[str, Shape], outputs: Iterable[str] = ()
) -> None:
    """Check that a golden file holds all inputs and nothing unexpected.

    Args:
      path: the golden file.
      arrays: its arrays.
      inputs: arrays that the file must hold, with their shapes.
      outputs: arrays that it may hold as well; a name that ends in `/` allows all keys that start with it.

    Raises:
      UserError: lists missing keys, unexpected keys and wrong shapes together.
    """
    allowed = tuple(outputs)
    prefixes = tuple(name for name in allowed if name.endswith("/"))
    problems = {
        "missing": [key for key in inputs if key not in arrays],
        "unexpected": [
            key for key in arrays if key not in inputs and key not in allowed and not key.startswith(prefixes)
        ],
        "wrong shape": [
            f"{key} {arrays[key].shape}, not ({', '.join('any' if n is None else str(n) for n in shape)})"
            for key, shape in inputs.items()
            if key in arrays and not _fits(arrays[key].shape, shape)
        ],
    }
    raise_problems(path, problems)


def _fits(shape: tuple[int, ...], wanted: Shape) -> bool:
    return len(shape) == len(wanted) and all(n in (None, m) for m, n in zip(shape, wanted, strict=True))


def raise_problems(path: Path, problems: Mapping[str, list[str]]) -> None:
    """Raise a UserError that lists the problems with a golden file by kind, if there are any."""
    listed = [f"{what}: {', '.join(items)}" for what, items in problems.items() if items]
    if listed:
        raise UserError(f"{path}: does not match goldens/README.md: {'; '.join(listed)}. Correct the file.")


class Check(NamedTuple):
    """Comparison of one quantity with its golden value.

    Attributes:
      file: name of the golden file.
      quantity: name of the quantity.
      error: largest absolute error, relative to the largest magnitude of the golden value.
      bound: largest allowed error; None if the quantity is not checked.
      note: reason why it is not checked, or why the error is infinite.
      absolute: the error is not divided by that magnitude.
    """

    file: str
    quantity: str
    error: float
    bound: float | None
    note: str = ""
    absolute: bool = False

    @property
    def ok(self) -> bool:
        """True if the quantity is checked and within its bound."""
        return self.bound is not None and bool(self.error <= self.bound)


def compare(
    file: str, quantity: str, ours: Any, golden: Any, bound: float, *, absolute: bool = False
) -> Check:
    """Compare two arrays of one shape.

    A difference in shape, or a value that is not finite on either side, is an infinite error. Where the
    golden value is zero throughout, the error is absolute. A golden value of shape (1,) matches a scalar,
    because torch writes some scalars like that.

    Args:
      file: name of the golden file.
      quantity: name of the quantity.
      ours: our value.
      golden: the golden value.
      bound: largest allowed error.
      absolute: the error is absolute, not relative to the largest magnitude of the golden value.
    """
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    if golden.shape == (1,) and ours.shape == ():
        golden = golden.reshape(())
    if ours.shape != golden.shape:
        note = f"shape {ours.shape}, golden {golden.shape}"
        return Check(file, quantity, np.inf, bound, note, absolute)
    for side, values in (("ours", ours), ("golden", golden)):
        if not np.all(np.isfinite(values)):
            return Check(file, quantity, np.inf, bound, f"{side} not finite", absolute)
    scale = 0.0 if absolute else float(np.max(np.abs(golden), initial=0.0))
    difference = float(np.max(np.abs(ours - golden), initial=0.0))
    return Check(file, quantity, difference / scale if scale else difference, bound, "", absolute)


def compare_if_present(
    file: str, quantity: str, ours: Any, goldens: Mapping[str, Any], bound: float
) -> Check:
    """Compare with the golden value of this name; unchecked if the file does not hold it."""
    if quantity not in goldens:
        return Check(file, quantity, np.nan, None, "not in the file")
    return compare(file, quantity, ours, goldens[quantity], bound)


def worst(file: str, checks: list[Check], quantity: str) -> Check:
    """Return the check with the largest error, NaN counting as the largest; unchecked if there are none."""
    if not checks:
        return Check(file, quantity, np.nan, None, "none in the file")
    found = max(checks, key=lambda check: np.inf if np.isnan(check.error) else check.error)
    return found._replace(quantity=f"{quantity} ({len(checks)}, worst {found.quantity})")
