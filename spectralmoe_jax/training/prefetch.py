"""Batches on the device before the step asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax

_AHEAD = 2


def prefetch(
    batches: Iterator[Any], ahead: int = _AHEAD, place: Callable[[Any], Any] = jax.device_put
) -> Generator[Any]:
    """The same batches, as arrays on the device, `ahead` of them at most before they are asked for.

    The copy of one batch runs while the step computes on the one before. An error is raised where its batch
    would have come, after those before it; closing the generator closes `batches`, if it can be closed.

    Args:
      batches: pytrees of arrays. ahead: at least 1. place: starts to copy one to where it is needed.
    """
    ready: deque[Any] = deque()
    problem: Exception | None = None
    exhausted = False
    try:
        while True:
            while len(ready) < ahead and problem is None and not exhausted:
                try:
                    ready.append(place(next(batches)))
                except StopIteration:
                    exhausted = True
                except Exception as error:
                    problem = error
            if ready:
                yield ready.popleft()
            elif problem is not None:
                raise problem
            else:
                return
    finally:
        if hasattr(batches, "close"):
            batches.close()
