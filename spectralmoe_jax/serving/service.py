"""The threads of a server: one for the model, one for each request that is mapped, and their bound."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from spectralmoe_jax.inference.model import Model
from spectralmoe_jax.sensors import visible
from spectralmoe_jax.serving.answers import answer_image
from spectralmoe_jax.serving.limits import Limits
from spectralmoe_jax.serving.window_queue import WindowQueue

_MOST_THREADS = 8  # requests that are mapped at once, each with rows of windows in memory


class QueueFullError(Exception):
    """As many requests are there as the server takes."""


class Service:
    """A model at work for many requests.

    Args:
      model: the trained model.
      limits: of the server.
    """

    def __init__(self, model: Model, limits: Limits):
        self.model, self.limits = model, limits
        batch_size = model.config.evaluate.batch_size
        self.windows = WindowQueue(model.predictor, batch_size)
        threads = min(limits.queue, max(batch_size, 2), _MOST_THREADS)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="request")
        self._slots = threading.BoundedSemaphore(limits.queue)

    def compile(self) -> None:
        """Compile the programs for the pixels that the model most probably gets, before any request."""
        bands = self.model.bands
        is_picture = len(visible(bands, self.model.sensor) or ()) == len(bands)
        dtype = np.uint8 if is_picture else np.float32
        self.windows.compile(self.model.config.evaluate.window, len(bands), dtype)

    @contextlib.contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the places in the queue inside the block.

        Raises:
          QueueFullError: none is free.
        """
        if not self._slots.acquire(blocking=False):
            raise QueueFullError
        try:
            yield
        finally:
            self._slots.release()

    def submit(self, image: Path, format: str) -> Future[bytes]:
        """Map an image in a thread.

        Args:
          image: as in `answers.answer_image`.
          format: as there.

        Returns:
          The answer, or the errors of `answer_image` and `window_queue.OutOfTimeError`.
        """
        predict = self.windows.until(time.monotonic() + self.limits.timeout)
        model = self.model.with_predictor(predict)
        return self._threads.submit(answer_image, model, image, format, self.limits)

    def close(self) -> None:
        """Finish what was submitted, and end the threads."""
        self._threads.shutdown(wait=True)
        self.windows.close()
