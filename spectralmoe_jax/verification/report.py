"""One line a quantity: how far we are from a golden number, and how far we may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


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
