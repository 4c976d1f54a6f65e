"""Cutting of tiles: each piece of a plan becomes one shard, in this process or in several.

A note beside each shard holds the statistics of its tiles. Both files are written atomically, the note last,
so that an interrupted preparation continues with the pieces that have no note. Shards and notes have the same
bytes in every process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.datasets.dataset import Dataset, Pair
from data_pipelines.prepare.plan import Piece, Workspace
from data_pipelines.prepare.statistics import Histograms
from data_pipelines.readers.raster_file import keep_files_open
from data_pipelines.records import IGNORE, Window
from data_pipelines.worker_process import end_with_parent
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.host_memory import keep_freed_memory

_POLL_SECONDS = 0.2
_CACHE_MEGABYTES = "256"  # decoded blocks of open files; GDAL's default is a share of the memory per process


def cut_pieces(
    dataset: Dataset,
    pieces: Sequence[Piece],
    workspace: Workspace,
    workers: int,
    progress: Callable[[int, int], None],
) -> None:
    """Cut pieces in several processes.

    After an error or an interrupt, unfinished pieces stop at their next tile; finished ones stay.

    Args:
      dataset: the data set.
      pieces: the pieces to cut.
      workspace: where to write.
      workers: number of processes; 0 cuts in this one.
      progress: called in this process with the numbers of (tiles, images) finished since its last call.

    Raises:
      UserError: a piece failed, or the system killed a process.
    """
    if not workers or not pieces:
        for piece in pieces:
            cut_piece(dataset, piece, workspace, progress)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit threads and GDAL's locks
    done, stop = context.Array("q", 2), context.Event()
    start = (dataset, workspace, done, stop)
    with ProcessPoolExecutor(min(workers, len(pieces)), context, _start_worker, start) as pool:
        try:
            with _interrupts_blocked():  # inherited by the workers before their first instruction
                waiting = {pool.submit(_cut_in_worker, piece) for piece in pieces}
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
    """Yield (tiles, images) finished since the last time; raise what a future raised."""
    before = (0, 0)
    while waiting:
        finished, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
        for future in finished:
            future.result()
        tiles, images = done[:]
        yield tiles - before[0], images - before[1]
        before = (tiles, images)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Delay Ctrl-C until the end, and hide it from processes started within: this process stops them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
    """State of a worker process."""

    def __init__(self, dataset: Dataset, workspace: Workspace, done: Any, stop: Any):
        self._dataset, self._workspace, self._done, self._stop = dataset, workspace, done, stop

    def cut(self, piece: Piece) -> None:
        """Cut a piece."""
        cut_piece(self._dataset, piece, self._workspace, self._progress)

    def _progress(self, tiles: int, images: int) -> None:
        if self._stop.is_set():
            raise Cancelled
        with self._done.get_lock():
            self._done[0] += tiles
            self._done[1] += images


_worker: _Worker


def _start_worker(dataset: Dataset, workspace: Workspace, done: Any, stop: Any) -> None:
    global _worker
    end_with_parent()
    keep_freed_memory(one_heap=True)
    os.environ.setdefault("GDAL_CACHEMAX", _CACHE_MEGABYTES)
    _worker = _Worker(dataset, workspace, done, stop)


def _cut_in_worker(piece: Piece) -> None:
    _worker.cut(piece)


class Cancelled(Exception):
    """Raised by a `progress` callback to leave a piece unfinished."""


def cut_piece(
    dataset: Dataset, piece: Piece, workspace: Workspace, progress: Callable[[int, int], None]
) -> None:
    """Write the shard of a piece, then its note.

    Args:
      dataset: the data set.
      piece: the files to cut.
      workspace: where to write.
      progress: called with the numbers of (tiles, images) finished since its last call; may raise
        `Cancelled`.

    Raises:
      UserError: a file is unreadable, or the shard cannot be written.
    """
    shard, note = workspace.shards / piece.shard, workspace.note(piece)
    partial = workspace.partial / f"{piece.shard}.{os.getpid()}"
    statistics = _TileStatistics(dataset)
    try:
        with keep_files_open(), _Shard(partial, piece.options) as writing:
            for example in _examples(dataset, piece, statistics, progress):
                writing.write(example)
        _move(partial, shard)
        with open(partial, "wb") as stream:
            of_piece = {"bytes": np.array(writing.bytes), "fingerprint": np.array(piece.fingerprint)}
            np.savez_compressed(stream, allow_pickle=False, **statistics.arrays(), **of_piece)
        _move(partial, note)
    except OSError as problem:
        raise UserError(
            f"{shard}: cannot be written ({problem.strerror or problem}): make room or choose another --out, "
            "then run the same command again"
        ) from problem
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _examples(
    dataset: Dataset, piece: Piece, statistics: _TileStatistics, progress: Callable[[int, int], None]
) -> Iterator[bytes]:
    """Yield the encoded tiles of a piece."""
    # TensorFlow Datasets takes seconds to import, which checking a download folder does not need
    from data_pipelines.datasets.builder import Encoder

    encoder = Encoder(dataset)
    for pair in piece.pairs:
        windows = dataset.cells(pair)
        for window in windows:
            image, label = _read(dataset, pair, window)
            statistics.add(pair, tile_name(pair, window, len(windows)), image, label)
            yield encoder(pair, window, image, label)
            progress(1, 0)
        progress(0, 1)


def _read(dataset: Dataset, pair: Pair, window: Window) -> tuple[np.ndarray, np.ndarray]:
    try:
        return dataset.read_tile(pair, window)
    except OSError as problem:
        raise UserError(
            f"{problem.filename or pair.image}: cannot be read ({problem.strerror or problem}): "
            "restore the file"
        ) from problem
    except Exception as problem:
        problem.add_note(f"while cutting {pair.image} at row {window.row}, column {window.col}")
        raise


def image_name(pair: Pair) -> str:
    """Return the name of an image, unique within its split."""
    return f"{pair.domain}/{pair.name}"


def tile_name(pair: Pair, cell: Window, cells: int) -> str:
    """Return the name of a tile, unique within its split; the name of the image if that has a single tile."""
    name = image_name(pair)
    return name if cells == 1 else f"{name}_{cell.row:05d}_{cell.col:05d}"


class _TileStatistics:
    """Names, sizes, class counts and histograms of the tiles of a piece, as its note has them."""

    def __init__(self, dataset: Dataset):
        self._classes = len(dataset.classes)
        self._histograms = Histograms(len(dataset.bands), dataset.dtype)
        self._rows: list[tuple[str, str, str, int, int, int]] = []
        self._class_pixels: list[np.ndarray] = []

    def add(self, pair: Pair, name: str, image: np.ndarray, label: np.ndarray) -> None:
        """Count a tile with pixels (h, w, C) and training ids (h, w)."""
        counts = np.bincount(label.ravel(), minlength=256)
        unknown = np.flatnonzero(counts[self._classes : IGNORE])
        if len(unknown):
            raise UserError(
                f"{pair.label}: class {unknown[0] + self._classes} is none of the {self._classes} classes, "
                "which are numbered from 0: correct the label"
            )
        height, width = label.shape
        valid = self._histograms.add(image)
        self._rows.append((name, image_name(pair), pair.domain, height, width, valid))
        self._class_pixels.append(counts[: self._classes])

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of the note; see `statistics.read_note`."""
        columns = zip(*self._rows, strict=True)
        named = zip(("name", "image", "domain", "height", "width", "valid"), columns, strict=True)
        return {
            **{key: np.array(column) for key, column in named},
            "class_pixels": np.stack(self._class_pixels),  # (N, K)
            **self._histograms.sparse(),
        }


class _Shard:
    """An ArrayRecord file, checked to be complete when it is closed.

    Raises:
      OSError: a record could not be written, or is missing at the end.
    """

    def __init__(self, path: Path, options: str):
        self.path, self._options = path, options
        self.records, self.bytes = 0, 0

    def __enter__(self) -> _Shard:
        from array_record.python.array_record_module import ArrayRecordWriter

        self.path.touch()  # the writer reports a folder that cannot be written only at its first record
        self._writer = ArrayRecordWriter(str(self.path), self._options)
        return self

    def write(self, example: bytes) -> None:
        """Append a record."""
        try:
            self._writer.write(example)
        except RuntimeError as problem:
            raise OSError(" ".join(str(problem).split())) from problem
        self.records += 1
        self.bytes += len(example)

    def __exit__(self, kind: type | None, *_: object) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        if kind is not None:
            with suppress(RuntimeError):
                self._writer.close()
            return
        try:
            self._writer.close()
            reader = ArrayRecordReader(str(self.path))
            written = reader.num_records()
            reader.close()
        except RuntimeError as problem:
            raise OSError(" ".join(str(problem).split())) from problem
        if written != self.records:
            raise OSError(f"{written} of {self.records} records arrived")


def _move(partial: Path, final: Path) -> None:
    """Rename a finished file once its bytes are on disk."""
    with open(partial, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(partial, final)
