"""One line a quantity: how far we are from a golden number, and how far we may be."""

from __future__ import annotations

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
    """Compare two arrays of one shape. A difference in shape, or a value that is not finite, is an
    infinite error; where the golden is zero throughout, the error is absolute."""
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    if golden.shape == (1,):
        golden = golden.reshape(())
    if ours.shape != golden.shape:
        return Check(file, quantity, np.inf, bound, f"shape {ours.shape}, golden {golden.shape}")
    if not np.all(np.isfinite(ours)):
        return Check(file, quantity, np.inf, bound, "not finite")
    scale = float(np.max(np.abs(golden), initial=0.0))
    difference = float(np.max(np.abs(ours - golden), initial=0.0))
    return Check(file, quantity, difference / scale if scale else difference, bound)


def worst(checks: list[Check], quantity: str) -> Check:
    """Fold many checks into the one that is nearest its bound, or past it."""
    found = max(checks, key=lambda check: check.error)
    name = f"{quantity} ({len(checks)}, worst {found.quantity})"
    return found._replace(quantity=name)
