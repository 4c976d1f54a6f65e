"""Several sensors in one run: the order of their batches.

A run has the stream of its own `data` section. Each section of `config.streams` is a further one, with the
keys in which it differs; see docs/configuration.md.

A batch comes from one stream, so its tiles have the same bands.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

_ROUNDING = 1e-9
B = TypeVar("B")


def schedule(weights: Mapping[str, float]) -> Iterator[tuple[str, int]]:
    """Yield (stream, number of its batches so far) of batch 0, 1, ...

    After any number of batches every stream has had its share of them, to within one batch (Tijdeman, "The
    chairman assignment problem", 1980).
    """
    total = sum(weights.values())
    shares = {name: weight / total for name, weight in weights.items()}
    slack = 1 / (2 * len(shares) - 2) if len(shares) > 1 else 0.0
    counts = dict.fromkeys(shares, 0)
    for step in itertools.count(1):
        owed = {name: share * step - counts[name] for name, share in shares.items()}
        due = {n: (1 - slack - owed[n]) / shares[n] for n in shares if owed[n] >= slack - _ROUNDING}
        name = min(due, key=due.__getitem__)
        yield name, counts[name]
        counts[name] += 1


def interleave(
    weights: Mapping[str, float], make_batches: Callable[[str, int], Iterator[B]], start: int
) -> Iterator[dict[str, B]]:
    """Yield `{stream: batch}` of batch `start`, `start + 1`, ...; batch n is the same for any `start`.

    Args:
      weights: share of each stream.
      make_batches: from a stream and a number to the stream's batches from that number on.
      start: number of the first batch.
    """
    plan = schedule(weights)
    for _ in range(start):
        next(plan)
    opened: dict[str, Iterator[B]] = {}
    try:
        for name, number in plan:
            if name not in opened:
                opened[name] = make_batches(name, number)
            yield {name: next(opened[name])}
    finally:
        for batches in opened.values():
            if hasattr(batches, "close"):
                batches.close()
