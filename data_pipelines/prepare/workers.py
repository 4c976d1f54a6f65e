"""Cutting pieces in several processes that report how far they are and never outlive the one that asked."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from data_pipelines.datasets.dataset import Benchmark
from data_pipelines.prepare.cut import Cancelled, Workspace, cut_piece
from data_pipelines.prepare.plan import Piece
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.host_memory import keep_freed_memory

_POLL_SECONDS = 0.2
_CACHE_MEGABYTES = "256"  # of decoded blocks of open files; GDAL takes a share of the memory, each process


def cut_pieces(
    benchmark: Benchmark,
    pieces: Sequence[Piece],
    workspace: Workspace,
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    """Cuts `pieces` in `workers` processes, or in this one for 0.

    After an error or an interrupt the pieces under way are given up at their next tile, and the finished
    ones stay.

    Args:
      progress: called here with (tiles, images) finished since its last call.

    Raises:
      UserError: of the first piece that failed, or of a process that the system ended.
    """
    if not workers or not pieces:
        for piece in pieces:
            cut_piece(benchmark, piece, workspace, progress)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit threads and GDAL's locks
    done, stop = context.Array("q", 2), context.Event()
    start = (benchmark, workspace, done, stop)
    with ProcessPoolExecutor(min(workers, len(pieces)), context, _start, start) as pool:
        try:
            with _interrupts_held():  # the workers inherit it, from their first instruction on
                waiting = {pool.submit(_cut, piece) for piece in pieces}
            for tiles, images in _follow(waiting, done.get_obj()):
                progress(tiles, images)
        except BrokenProcessPool as problem:
            raise UserError(
                f"{workspace.shards}: the system ended a worker process, for want of memory most likely: "
                "run the same command again with fewer --workers, it goes on where it stopped"
            ) from problem
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _follow(waiting: set[Future[None]], done: Any) -> Iterator[tuple[int, int]]:
    """(tiles, images) finished since the last time, until all futures are; raises what one of them raised."""
    before = (0, 0)
    while waiting:
        finished, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
        for future in finished:
            future.result()
        tiles, images = done[:]
        yield tiles - before[0], images - before[1]
        before = (tiles, images)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delivers Ctrl-C afterwards, and never to processes that begin meanwhile: this one stops them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
    """What a worker process was given."""

    def __init__(self, benchmark: Benchmark, workspace: Workspace, done: Any, stop: Any):
        self._benchmark, self._workspace, self._done, self._stop = benchmark, workspace, done, stop

    def cut(self, piece: Piece) -> None:
        cut_piece(self._benchmark, piece, self._workspace, self._progress)

    def _progress(self, tiles: int, images: int) -> None:
        if self._stop.is_set():
            raise Cancelled
        with self._done.get_lock():
            self._done[0] += tiles
            self._done[1] += images


_worker: _Worker


def _start(benchmark: Benchmark, workspace: Workspace, done: Any, stop: Any) -> None:
    """Makes this process a worker."""
    global _worker
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    keep_freed_memory(one_heap=True)
    os.environ.setdefault("GDAL_CACHEMAX", _CACHE_MEGABYTES)
    _worker = _Worker(benchmark, workspace, done, stop)


def _cut(piece: Piece) -> None:
    _worker.cut(piece)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
