"""Draw items in a thread, ahead of their use."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

log = logging.getLogger(__name__)

_END = object()
_POLL_SECONDS = 0.2
_TIME_TO_CLOSE = 30.0  # seconds


def read_ahead(
    items: Iterator[Any],
    ahead: int,
    prepare: Callable[[Any], Any] = lambda item: item,
    should_stop: Callable[[], bool] | None = None,
) -> Generator[Any]:
    """Yield items that a thread draws ahead of their use.

    An error is raised in place of its item, after those before it. Closing the generator waits for the item
    being drawn and closes `items` if it can be closed. An item that does not come within 30 s is left to the
    thread, so that it does not keep the process from ending.

    Args:
      items: the items.
      ahead: largest number of items drawn ahead; at least 1.
      prepare: called on each in the thread.
      should_stop: asked while an item is waited for; the generator ends early where it says so. None to wait.
    """
    wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()  # a request for an item each; False ends the thread
    ready: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def draw() -> None:
        """Draw and prepare one item for each request, in the thread."""
        while wanted.get():
            try:
                item = next(items, _END)
                ready.put((item if item is _END else prepare(item), None))
            except BaseException as error:
                ready.put((None, error))

    thread = threading.Thread(target=draw, daemon=True, name="read-ahead")
    thread.start()
    asked = 0
    try:
        while True:
            for _ in range(ahead - asked):
                wanted.put(True)
            item, error = _await_next(ready, should_stop)
            asked = ahead - 1
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        with contextlib.suppress(queue.Empty):
            while True:
                wanted.get_nowait()
        wanted.put(False)
        thread.join(_TIME_TO_CLOSE)
        if thread.is_alive():
            log.warning("what is read ahead did not come within %g s: it is left alone", _TIME_TO_CLOSE)
        elif hasattr(items, "close"):
            items.close()


def _await_next(
    ready: queue.SimpleQueue[tuple[Any, BaseException | None]], should_stop: Callable[[], bool] | None
) -> tuple[Any, BaseException | None]:
    """Return the next item or error, or the end if it should stop before one is there."""
    while should_stop is not None:
        with contextlib.suppress(queue.Empty):
            return ready.get(timeout=_POLL_SECONDS)
        if should_stop():
            return _END, None
    return ready.get()
