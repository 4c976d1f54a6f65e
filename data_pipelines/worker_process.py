"""Processes that work for another one: they end with it, and leave signals to it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from types import FrameType

_STOPPED = 143  # status after SIGTERM
_TIME_TO_STOP = 60.0  # seconds


def end_with_parent() -> None:
    """End this process once its parent is gone, also if that was killed."""
    threading.Thread(target=_await_end_of_parent, daemon=True, name="end with parent").start()


def leave_signals_to_parent() -> None:
    """Go on after Ctrl-C and SIGTERM, which a terminal or a scheduler sends to all processes of a run.

    The parent still needs what this process makes, and ends it. After SIGTERM it has a minute for that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop_later)


def _await_end_of_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _stop_later(number: int, frame: FrameType | None) -> None:
    later = threading.Timer(_TIME_TO_STOP, os._exit, (_STOPPED,))
    later.daemon = True
    later.start()
