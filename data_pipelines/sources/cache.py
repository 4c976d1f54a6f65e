"""A cache of decoded images, limited by its size in memory."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np


class ArrayCache:
    """Keeps the most recently used arrays, at most `limit` bytes of them, safely across threads.

    Pickling keeps the limit and drops the arrays, so each worker process fills its own. An array above
    a quarter of the limit is never kept: it would push out everything else.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._arrays: OrderedDict[Hashable, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __reduce__(self):
        return ArrayCache, (self.limit,)

    def admits(self, size: int) -> bool:
        """Whether an array of `size` bytes would be kept."""
        return size <= self.limit // 4

    def get(self, key: Hashable, read: Callable[[], np.ndarray]) -> np.ndarray:
        """The array under `key`, through `read()` if it is not here. Read-only."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        array = read()  # outside the lock: two threads may decode the same file, none waits for another's
        array.setflags(write=False)
        if self.admits(array.nbytes):
            self._keep(key, array)
        return array

    def _keep(self, key: Hashable, array: np.ndarray) -> None:
        with self._lock:
            if key in self._arrays:
                return
            self._arrays[key] = array
            self._bytes += array.nbytes
            while self._bytes > self.limit:
                self._bytes -= self._arrays.popitem(last=False)[1].nbytes
