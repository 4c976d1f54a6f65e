"""Batches on the device before the step asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

_AHEAD = 2
_END = object()


def prefetch(
    batches: Iterator[Any], ahead: int = _AHEAD, place: Callable[[Any], Any] = jax.device_put
) -> Generator[Any]:
    """The same batches, as arrays on the device, `ahead` of them at most before they are asked for.

    A thread takes them from `batches` and starts their copies: neither costs the loop time, even where the
    call of a step returns when the step is done, as on a CPU. An error is raised where its batch would have
    come, after those before it; closing the generator waits for the batch that is being made and closes
    `batches`, if it can be closed.

    Args:
      batches: pytrees of arrays. ahead: at least 1. place: starts to copy one to where it is needed.
    """

    def take() -> Any:
        batch = next(batches, _END)
        return batch if batch is _END else place(batch)

    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")
    ready: deque[Future[Any]] = deque()
    try:
        while True:
            ready.extend(thread.submit(take) for _ in range(ahead - len(ready)))
            batch = ready.popleft().result()
            if batch is _END:
                return
            yield batch
    finally:
        thread.shutdown(wait=True, cancel_futures=True)
        if hasattr(batches, "close"):
            batches.close()
