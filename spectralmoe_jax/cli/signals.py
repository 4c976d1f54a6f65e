"""Signals of the process of a command: Ctrl-C, the end of its terminal, SIGTERM before the first step."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from spectralmoe_jax.part_files import INTERRUPTED, leave

_STOPPABLE = ("train", "quickstart")
# An exception that a signal raises below these is lost in C++, which then ends the process, or in an event
# loop: code that imports a compiled module, JAX where it hands a program to the compiler, and Orbax, which
# reads and writes checkpoints in tasks.
_NO_EXCEPTIONS = (
    "<frozen importlib",
    "/jax/_src/interpreters/mlir.py",
    "/jax/_src/compiler.py",
    "/orbax/checkpoint/",
)


class _Interruption:
    """Whether Ctrl-C was pressed."""

    came = False


def was_interrupted() -> bool:
    """Return whether Ctrl-C was pressed: compiled code may turn its exception into another."""
    return _Interruption.came


def listen(command: str) -> None:
    """Handle signals until the command itself does.

    Ctrl-C raises KeyboardInterrupt, or ends the process where that would be lost. SIGTERM ends a training
    that has not begun, with status 0: there is nothing to save. The end of the terminal counts as SIGTERM.

    Args:
      command: name of the subcommand.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # by the parent, as in the background
        signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _handle_lost
    if command in _STOPPABLE:
        signal.signal(signal.SIGTERM, _stop)
    elif os.getpid() == 1:  # of a container, where signals that nobody handles do nothing
        signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # not below nohup
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def _interrupt(number: int, frame: FrameType | None) -> None:
    _Interruption.came = True
    while frame is not None:
        if any(place in frame.f_code.co_filename for place in _NO_EXCEPTIONS):
            leave(INTERRUPTED, "error: interrupted")
        frame = frame.f_back
    raise KeyboardInterrupt


def _stop(number: int, frame: FrameType | None) -> None:
    leave(0, "stopped before the first step: the same command starts again")


def _end(number: int, frame: FrameType | None) -> None:
    leave(128 + number)


def _handle_lost(problem: Any) -> None:
    """Handle an exception that came where Python can only drop it, as in the end of an object.

    Ctrl-C is sent again. What TensorStore reads on after the first damaged array has no loop to come back to.
    """
    if str(problem.exc_value) == "Event loop is closed":
        return
    if problem.exc_type is KeyboardInterrupt:
        again = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(problem)
