"""Batches for training and evaluation, the same for any number of workers and hosts.

Training batches are endless and resumable at any step: no state is stored but the step. A run on several
sensors interleaves the batches of its streams; a batch comes from one stream, so that its tiles have the same
bands. Evaluation batches go once through a split. All are prepared ahead by Grain, in threads of this process
or in worker processes.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import cv2
import grain
import numpy as np
from absl import flags

from data_pipelines.readers.unreadable import check_corrupt
from data_pipelines.records import IGNORE, Record, Source
from data_pipelines.worker_process import end_with_parent, leave_signals_to_parent
from spectralmoe_jax.config.schema import DataConfig
from spectralmoe_jax.errors import UserError, bad_value
from spectralmoe_jax.host_memory import keep_freed_memory, require_memory

log = logging.getLogger(__name__)
Batch = dict[str, np.ndarray]
B = TypeVar("B")
Transform = Callable[[Any, np.random.Generator], Batch]
_BUFFERED_BATCHES = 4
_WORKER_BYTES = 1 << 27  # of a worker's libraries, at least
_ELEMENTS = 1 << 48  # practically endless; Grain counts elements in floats, which overflow at 2**63
_TRIES = 20  # attempts to replace a tile that cannot be read
_PROBLEM = "problem"  # key under which an example carries error messages from a worker to this process
_ROUNDING = 1e-9  # tolerance of the shares of streams


class RandomAccess(Protocol):
    """A data source with elements by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Mixture:
    """Several data sources in one stream, each with its share of any number of elements to within one.

    Attributes:
      sources: each runs through its own shuffled epochs, none of which is cut short.
      weights: their shares, in any unit.
    """

    sources: Sequence[RandomAccess]
    weights: Sequence[float]


def train_batches(
    source: RandomAccess | Mixture,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    threads: int = DataConfig.threads,
    host_index: int = 0,
    host_count: int = 1,
    corrupt: str = "stop",
) -> Generator[Batch]:
    """Return this host's part of every training batch from `start_step`, endlessly.

    Batch t of a run is a function of (source, transform, batch_size, seed, t). Element i of the endless
    stream is drawn from its epoch's own shuffle, with a generator seeded by i. Batch t holds elements t *
    batch_size onwards, and host h has the h-th of `host_count` equal consecutive parts of it. Therefore the
    parts of all hosts form the same batch for any `host_count`, no state needs to be stored but the step, and
    the numbers of workers and threads may change on a restart. Batches continue across the ends of epochs: a
    source smaller than a batch works, and no element is dropped.

    Args:
      source: picklable; its elements are arguments of `transform`.
      transform: picklable; maps (element, random generator) to arrays of fixed shapes, stacked by key.
      batch_size: number of examples on all hosts together.
      seed: 0 to 2**32 - 1.
      start_step: number of the first batch.
      workers: processes that prepare batches; 0 prepares them in this one.
      threads: threads in each of these processes, each with one batch at a time.
      host_index: number of this host.
      host_count: number of hosts.
      corrupt: `stop` raises a `UserError` of `transform`, such as of an unreadable file; `skip` takes another
        element, chosen with the element's generator, and logs each error once and finally the number of
        replaced elements.

    Returns:
      A generator of dicts of arrays (batch_size / host_count, ...). Closing it stops the workers. Errors in
      a worker, and the death of a worker, are raised by `next`.

    Raises:
      UserError: a batch that cannot be divided equally among hosts, an empty source, or a value out of range.
    """
    _check(source, batch_size, seed, start_step, workers, threads, host_index, host_count, corrupt)
    if corrupt == "skip":
        transform = _SkipUnreadable(transform, source.sources if isinstance(source, Mixture) else (source,))
    elements = _elements(source, seed).random_map(transform)[:_ELEMENTS]
    # Part n belongs to batch n // host_count and to host n % host_count.
    parts = elements.batch(batch_size // host_count)
    return _drain(_prefetched(parts[host_index::host_count][start_step:], workers, threads), workers)


def examples_of_batch(
    source: RandomAccess | Mixture,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    step: int,
    host_index: int = 0,
    host_count: int = 1,
    corrupt: str = "stop",
) -> Iterator[Batch]:
    """Yield the examples of this host's part of batch `step`, one after the other, in this thread.

    The arguments are those of `train_batches`, whose batch has the same examples.
    """
    if corrupt == "skip":
        transform = _SkipUnreadable(transform, source.sources if isinstance(source, Mixture) else (source,))
    elements = _elements(source, seed).random_map(transform)
    count = batch_size // host_count
    first = (step * host_count + host_index) * count
    for number in range(first, first + count):
        yield elements[number]


def _elements(source: RandomAccess | Mixture, seed: int) -> grain.MapDataset:
    """Return the endless stream of elements before the transform."""
    if not isinstance(source, Mixture):
        return grain.MapDataset.source(source).seed(seed).shuffle().repeat(None)
    endless = [
        grain.MapDataset.source(part).seed(seed + number).shuffle().repeat(None)[:_ELEMENTS]
        for number, part in enumerate(source.sources)
    ]
    total = sum(source.weights)
    return grain.MapDataset.mix(endless, [weight / total for weight in source.weights]).seed(seed)


def schedule(weights: Mapping[str, float]) -> Iterator[tuple[str, int]]:
    """Yield (stream, number of its earlier batches) of batch 0, 1, ...

    After any number of batches, every stream has had its share to within one batch (Tijdeman, "The chairman
    assignment problem", 1980).

    Args:
      weights: weight of each stream, in any unit.
    """
    total = sum(weights.values())
    shares = {name: weight / total for name, weight in weights.items()}
    slack = 1 / (2 * len(shares) - 2) if len(shares) > 1 else 0.0
    counts = dict.fromkeys(shares, 0)
    for step in itertools.count(1):
        owed = {name: share * step - counts[name] for name, share in shares.items()}
        due = {n: (1 - slack - owed[n]) / shares[n] for n in shares if owed[n] >= slack - _ROUNDING}
        name = min(due, key=due.__getitem__)
        yield name, counts[name]
        counts[name] += 1


def interleave(
    weights: Mapping[str, float], make_batches: Callable[[str, int], Iterator[B]], start: int
) -> Iterator[dict[str, B]]:
    """Yield `{stream: batch}` of batch `start`, `start + 1`, ...; batch n does not depend on `start`.

    Args:
      weights: weight of each stream.
      make_batches: returns a stream's batches, starting with a given number.
      start: number of the first batch.
    """
    plan = schedule(weights)
    for _ in range(start):
        next(plan)
    opened: dict[str, Iterator[B]] = {}
    try:
        for name, number in plan:
            if name not in opened:
                opened[name] = make_batches(name, number)
            yield {name: next(opened[name])}
    finally:
        for batches in opened.values():
            if hasattr(batches, "close"):
                batches.close()


def eval_batches(
    source: Source[Any],
    records: Sequence[Record],
    size: int,
    *,
    batch_size: int,
    workers: int = 0,
    host_index: int = 0,
    host_count: int = 1,
) -> Generator[Batch]:
    """Return this host's part of every batch of `records`, each image once, in their order.

    All hosts get the same number of batches of the same shape: the last ones are padded with rows that are
    not `valid`. Order and content do not depend on the numbers of workers and hosts.

    Args:
      source: reads the images.
      records: the images, of at most `size` pixels a side.
      size: side of the images in a batch, in pixels. Smaller ones are mirrored at the bottom and on the
        right, where their labels are 255.
      batch_size: number of images on all hosts together.
      workers: processes that read; 0 for threads of this one.
      host_index: number of this host.
      host_count: number of hosts.

    Returns:
      A generator of `image` (b, size, size, C), `label` (b, size, size) uint8, `valid` (b,) bool and `record`
      (b,) int64, the number of the record, where b = batch_size / host_count. A row that is not valid has
      zeros, label 255 and record -1. Errors of reading are raised by `next`.

    Raises:
      UserError: there are no records, or one is larger than `size`.
    """
    if not records:
        raise UserError("the split to evaluate is empty: name domains with images in config.data")
    for record in records:
        if max(record.height, record.width) > size:
            raise UserError(f"{record.name}: {record.height} x {record.width} pixels, more than {size}")
    if batch_size < 1 or batch_size % host_count:
        must = f"must be a multiple of {host_count}, the number of hosts that share it"
        raise bad_value("config.evaluate.batch_size", batch_size, must)
    rows = -(-len(records) // batch_size) * batch_size
    elements = grain.MapDataset.range(rows).map(_Padded(source, tuple(records), size))
    parts = elements.batch(batch_size // host_count)
    return _drain(_prefetched(parts[host_index::host_count], workers), workers)


@dataclass(frozen=True)
class _Padded:
    """Row n of the evaluation: record n padded to `size`, or a row that is not valid."""

    source: Source[Any]
    records: tuple[Record, ...]
    size: int

    def __call__(self, number: int) -> Batch:
        valid = number < len(self.records)
        record = self.records[number if valid else -1]
        image, label = self.source.read_image(record), self.source.read_label(record)
        missing = [(0, self.size - side) for side in label.shape]
        image = np.pad(image, [*missing, (0, 0)], mode="symmetric")  # (size, size, C)
        label = np.pad(label, missing, constant_values=IGNORE)
        return {
            "image": image if valid else np.zeros_like(image),
            "label": label if valid else np.full_like(label, IGNORE),
            "valid": np.array(valid),
            "record": np.array(number if valid else -1),
        }


def _prefetched(
    batches: grain.MapDataset, workers: int, threads: int = DataConfig.threads
) -> grain.IterDataset:
    """Return batches in order, prepared ahead by threads of this process or of `workers` processes."""
    buffered = max(_BUFFERED_BATCHES, threads)
    ahead = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffered))
    if not workers:
        return ahead
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
    return ahead.mp_prefetch(options, worker_init_fn=_start_worker)


def _start_worker(_index: int, _count: int) -> None:
    end_with_parent()
    leave_signals_to_parent()
    cv2.setNumThreads(1)  # the workers are the parallelism
    keep_freed_memory(one_heap=True)


def _drain(batches: grain.IterDataset, workers: int) -> Generator[Batch]:
    """Yield batches; at the end, or when closed, stop the workers and log what was skipped.

    Raises:
      UserError: a worker was killed.
    """
    if workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads its flags when it starts workers, with absl's main or not
    skipped = _SkippedTiles()
    iterator = iter(batches)
    try:
        for batch in iterator:
            skipped.take(batch)
            yield batch
    except RuntimeError as error:
        if "terminated unexpectedly" not in str(error):
            raise
        raise UserError(
            "a worker process that reads data was killed, most often for want of memory: "
            "lower data.workers or train.batch_size"
        ) from error
    finally:
        iterator.close()
        skipped.report()


class _SkipUnreadable:
    """A transform that replaces an unreadable element, and adds the error messages to the example."""

    def __init__(self, transform: Transform, sources: Sequence[RandomAccess]):
        self.transform, self.sources = transform, sources

    def __call__(self, element: Any, rng: np.random.Generator) -> Batch:
        problems: list[str] = []
        while len(problems) < _TRIES:
            try:
                example = self.transform(element, rng)
            except UserError as error:
                problems.append(str(error))
                source = self.sources[int(rng.integers(len(self.sources)))]
                element = source[int(rng.integers(len(source)))]
            else:
                return {**example, _PROBLEM: np.array("\n".join(problems).encode()[:2000], "S2000")}
        raise UserError(
            f"data.corrupt=skip: {_TRIES} tiles in a row cannot be read, the last: {problems[-1]}"
        )


class _SkippedTiles:
    """Counts skipped tiles, and logs each problem at its first occurrence."""

    def __init__(self) -> None:
        self.problems: Counter[str] = Counter()

    def take(self, batch: Batch) -> None:
        """Remove the error messages from a batch and count them."""
        for joined in batch.pop(_PROBLEM, ()):
            for problem in filter(None, bytes(joined).decode(errors="replace").split("\n")):
                if problem not in self.problems:
                    log.warning("skipped: %s", problem)
                self.problems[problem] += 1

    def report(self) -> None:
        """Log the number of skipped tiles."""
        if self.problems:
            log.warning(
                "%d tiles were skipped and replaced, for %d different problems",
                self.problems.total(),
                len(self.problems),
            )


def _check(source, batch_size, seed, start_step, workers, threads, host_index, host_count, corrupt) -> None:
    """Raise a UserError for a bad argument of `train_batches`."""
    sources = source.sources if isinstance(source, Mixture) else (source,)
    if not sources or not all(len(part) for part in sources):
        raise UserError("the training split is empty: name at least one domain with images in data.source")
    if isinstance(source, Mixture) and (
        len(source.weights) != len(sources) or not all(0 < weight < np.inf for weight in source.weights)
    ):
        must = f"must be one number above 0 for each of the {len(sources)} domains of config.data.source"
        raise bad_value("config.data.weights", tuple(source.weights), must)
    if batch_size < 1 or batch_size % host_count:
        must = f"must be a multiple of {host_count}, the number of hosts that share it"
        raise bad_value("config.train.batch_size", batch_size, must)
    if not 0 <= host_index < host_count:
        raise UserError(f"host {host_index} of {host_count}: hosts are numbered from 0 to {host_count - 1}")
    if not 0 <= seed < 2**32:
        raise bad_value("config.seed", seed, f"must be between 0 and {2**32 - 1}")
    if start_step < 0:
        raise bad_value("step", start_step, "must be at least 0")
    if workers < 0:
        raise bad_value("config.data.workers", workers, "must be at least 0")
    require_memory("config.data.workers", workers, workers * _WORKER_BYTES, "the processes")
    if threads < 1:
        raise bad_value("config.data.threads", threads, "must be at least 1")
    check_corrupt(corrupt)
