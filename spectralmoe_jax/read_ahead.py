"""Draw items in a thread, ahead of their use."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_END = object()


def read_ahead(
    items: Iterator[Any], ahead: int, prepare: Callable[[Any], Any] = lambda item: item
) -> Generator[Any]:
    """Yield items that a thread draws ahead of their use.

    An error is raised in place of its item, after those before it. Closing the generator waits for the item
    being drawn and closes `items` if it can be closed.

    Args:
      items: the items.
      ahead: largest number of items drawn ahead; at least 1.
      prepare: called on each in the thread.
    """

    def take() -> Any:
        """Draw and prepare one item, in the thread."""
        item = next(items, _END)
        return item if item is _END else prepare(item)

    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
    ready: deque[Future[Any]] = deque()
    try:
        while True:
            ready.extend(thread.submit(take) for _ in range(ahead - len(ready)))
            item = ready.popleft().result()
            if item is _END:
                return
            yield item
    finally:
        thread.shutdown(wait=True, cancel_futures=True)
        if hasattr(items, "close"):
            items.close()
