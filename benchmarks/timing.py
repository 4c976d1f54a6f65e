"""Interleaved rounds and tables of their medians and minima, and repetition of one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Run = Callable[[], Any]  # does its work and returns when it is done
OURS, TORCH = "ours", "PyTorch"
HEADER = f"{'':<30}{OURS:>9}{'minimum':>10}{TORCH:>10}{'minimum':>10}{'ratio':>8}{'minima':>8}"


def interleave(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """Run everything once to warm up, then in turn, `rounds` times.

    Returns:
      The seconds of each round by name.
    """
    for run in runs.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def repeat(run: Run, seconds: float, *, least: int = 3, warmups: int = 2) -> list[float]:
    """Run `warmups` times, then for about so many seconds, at least `least` times.

    Returns:
      The seconds of each run after those that warm up.
    """
    for _ in range(warmups):
        run()
    found: list[float] = []
    while len(found) < least or sum(found) < seconds:
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def print_heading(title: str) -> None:
    """Print the head of a table: medians and minima in milliseconds, and ratios PyTorch / ours."""
    print(f"\n{title}, medians and minima in ms; ratio: {TORCH} / {OURS}\n{HEADER}", flush=True)


def print_row(name: str, ours: Sequence[float], torch: Sequence[float] | None = None) -> None:
    """Print a row of a table from the seconds of each round; without PyTorch where it has no such row."""
    row = f"{name:<30}" + _columns(ours, 9)
    if torch is not None:
        row += _columns(torch, 10)
        row += f"{statistics.median(torch) / statistics.median(ours):8.2f}{min(torch) / min(ours):8.2f}"
    print(row, flush=True)


def compare(name: str, ours: Run, torch: Run | None, rounds: int) -> list[float]:
    """Time both in turn, print their row and return our seconds of each round."""
    runs = {OURS: ours} if torch is None else {OURS: ours, TORCH: torch}
    seconds = interleave(runs, rounds)
    print_row(name, seconds[OURS], seconds.get(TORCH))
    return seconds[OURS]


def _columns(seconds: Sequence[float], width: int) -> str:
    return f"{1e3 * statistics.median(seconds):{width}.1f}{1e3 * min(seconds):10.1f}"
