"""Endless batches, the same for any number of workers and hosts, from any step on."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags

from spectralmoe_jax.errors import UserError

Batch = dict[str, np.ndarray]
_THREADS = 2  # decoding releases the interpreter lock; more threads than that only wait for it
_BUFFERED_BATCHES = 4
_ELEMENTS = 1 << 50  # as good as endless; Grain counts batches of one in floats, which overflow at 2**63


class RandomAccess(Protocol):
    """A data source: elements by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def train_batches(
    source: RandomAccess,
    transform: Callable[[Any, np.random.Generator], Batch],
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    host_index: int = 0,
    host_count: int = 1,
) -> Iterator[Batch]:
    """This host's part of every batch from `start_step` on, endlessly.

    Batch t of a run is a function of (source, transform, batch_size, seed, t) alone. Element i of the
    endless stream is drawn from a shuffle of its epoch's own, with a generator seeded by i; batch t holds
    elements t * batch_size onwards, and host h the h-th of `host_count` equal consecutive parts of it. So
    concatenating the hosts' parts gives the same batch for any `host_count`, no state needs saving but the
    step, and the number of workers may change on a restart. Batches run across the ends of epochs: a
    source smaller than a batch works, and no element is dropped.

    Args:
      source: picklable; its elements are what `transform` takes.
      transform: picklable; maps (element, generator) to arrays of fixed shapes, stacked by key.
      batch_size: of all hosts together.
      seed: 0 to 2**32 - 1.
      start_step: number of the first batch.
      workers: processes that prepare batches; 0 prepares them in threads of this one.
      host_index, host_count: which host this is, of how many.

    Returns:
      A generator of dicts of arrays (batch_size / host_count, ...). Closing it, or its end of life, stops
      the workers. An error in a worker, as of a file that cannot be read, is raised from its `next`.

    Raises:
      UserError: a batch that the hosts cannot share equally, an empty source, or a value out of range.
    """
    _check(source, batch_size, seed, start_step, workers, host_index, host_count)
    elements = grain.MapDataset.source(source).seed(seed).shuffle().random_map(transform)
    elements = elements.repeat(None)[:_ELEMENTS]
    # Part n belongs to batch n // host_count and to host n % host_count.
    parts = elements.batch(batch_size // host_count)
    mine = parts[host_index::host_count][start_step:]
    batches = mine.to_iter_dataset(
        grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BUFFERED_BATCHES)
    )
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        batches = batches.mp_prefetch(options, worker_init_fn=_start_worker)
    return _drain(batches, workers)


def _drain(batches: grain.IterDataset, workers: int) -> Iterator[Batch]:
    if workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads its own flags on starting workers, under absl or not
    iterator = iter(batches)
    try:
        yield from iterator
    finally:
        iterator.close()


def _check(source, batch_size, seed, start_step, workers, host_index, host_count) -> None:
    if not len(source):
        raise UserError("the training split is empty: name at least one domain with images in data.source")
    if batch_size < 1 or batch_size % host_count:
        raise UserError(
            f"train.batch_size={batch_size} cannot be shared by {host_count} hosts: "
            f"give a multiple of {host_count}"
        )
    if not 0 <= host_index < host_count:
        raise UserError(f"host {host_index} of {host_count}: hosts are numbered from 0 to {host_count - 1}")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed={seed}: give a number from 0 to {2**32 - 1}")
    if start_step < 0 or workers < 0:
        raise UserError(f"data.workers={workers}, step {start_step}: neither can be below 0")


def _start_worker(_index: int, _count: int) -> None:
    import cv2

    cv2.setNumThreads(1)  # the workers are the parallelism
