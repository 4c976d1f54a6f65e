"""One thread that calls the model, with windows of several requests in a call.

Every request is mapped in a thread of its own, which hands its windows to the queue and waits for their
scores. What arrives while the model computes goes into the next call together.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np

from spectralmoe_jax.inference.sliding_window import Predict


class OutOfTimeError(Exception):
    """The time of a request is over."""


class _Windows(NamedTuple):
    """Windows of one request (b, S, S, bands), and where their scores (b, S, S, C) go."""

    tiles: np.ndarray
    scores: Future[np.ndarray]

    @property
    def kind(self) -> tuple[object, ...]:
        """What windows in a call have in common."""
        return self.tiles.dtype, self.tiles.shape[1:]


class WindowQueue:
    """The thread of the model, and the windows that wait for it.

    The number of windows in a call is a power of two, or `batch_size`, so that few programs are compiled.

    Args:
      predict: from full windows to scores.
      batch_size: windows in a call, at most.
    """

    def __init__(self, predict: Predict, batch_size: int):
        self._predict, self._batch_size = predict, batch_size
        self._arriving: queue.SimpleQueue[_Windows | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def until(self, deadline: float) -> Predict:
        """Make the predictor of one request.

        Args:
          deadline: a value of `time.monotonic`, after which the predictor raises `OutOfTimeError`.
        """

        def predict(tiles: np.ndarray) -> np.ndarray:
            """Wait for the scores of windows (b, S, S, bands)."""
            waiting = _Windows(tiles, Future())
            self._arriving.put(waiting)
            try:
                return waiting.scores.result(max(deadline - time.monotonic(), 0))
            except TimeoutError:
                waiting.scores.cancel()
                raise OutOfTimeError from None

        return predict

    def compile(self, side: int, bands: int, dtype: type) -> None:
        """Call the program once with every number of windows that it will be called with.

        Args:
          side: of a window in pixels.
          bands: of the model.
          dtype: of the pixels.
        """
        sizes = {self._rounded(count) for count in range(1, self._batch_size + 1)}
        for size in sorted(sizes):
            self._predict(np.zeros((size, side, side, bands), dtype))

    def close(self) -> None:
        """Answer what waits, and end the thread."""
        self._arriving.put(None)
        self._thread.join()

    def _rounded(self, count: int) -> int:
        return max(count, min(self._batch_size, 2 ** math.ceil(math.log2(count))))

    def _work(self) -> None:
        """Take windows and predict them, until the queue is closed and empty."""
        waiting: deque[_Windows] = deque()
        is_open = True
        while is_open or waiting:
            arrived = [] if waiting else [self._arriving.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    arrived.append(self._arriving.get_nowait())
            is_open = is_open and None not in arrived
            waiting.extend(windows for windows in arrived if windows is not None)
            taken = self._take(waiting)
            if taken:
                self._answer(taken)

    def _take(self, waiting: deque[_Windows]) -> list[_Windows]:
        """Remove the windows of the next call: the first that wait, and those of their kind that fit."""
        taken: list[_Windows] = []
        left: list[_Windows] = []
        room = self._batch_size
        while waiting:
            windows = waiting.popleft()
            if taken and (windows.kind != taken[0].kind or len(windows.tiles) > room):
                left.append(windows)
            elif windows.scores.set_running_or_notify_cancel():  # its request still waits
                taken.append(windows)
                room -= len(windows.tiles)
        waiting.extend(left)
        return taken

    def _answer(self, taken: list[_Windows]) -> None:
        """Predict windows together; if that fails, each request's alone, so that no other pays for one."""
        try:
            tiles = np.concatenate([windows.tiles for windows in taken])
            missing = self._rounded(len(tiles)) - len(tiles)
            scores = self._predict(np.concatenate([tiles, np.repeat(tiles[-1:], missing, axis=0)]))
        except Exception as error:
            if len(taken) == 1:
                taken[0].scores.set_exception(error)
            else:
                for windows in taken:
                    self._answer([windows])
            return
        first = 0
        for windows in taken:
            count = len(windows.tiles)
            windows.scores.set_result(scores[first : first + count])
            first += count
