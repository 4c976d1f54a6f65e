"""Every image of a split once, in batches of one shape, for evaluation."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from data_pipelines.loader import Batch, drain, to_batches
from data_pipelines.records import IGNORE, Record, Source
from spectralmoe_jax.errors import UserError, bad_value


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
    """Yield this host's part of every batch of `records`, in their order; none is dropped.

    All hosts get the same number of batches of the same shape: the last ones are filled up with rows that are
    not `valid`. Neither order nor content depends on the number of workers or hosts.

    Args:
      source: reads the images.
      records: the images, of at most `size` pixels a side.
      size: side of the batches' images. Smaller ones are mirrored at the bottom and on the right, where
        their labels are 255.
      batch_size: of all hosts together.
      workers: processes that read; 0 for threads of this one.
      host_index: number of this host, from 0.
      host_count: number of hosts.

    Yields:
      `image` (b, size, size, C), `label` (b, size, size) uint8, `valid` (b,) bool and `record` (b,) int64,
      the number of the record; b = batch_size / host_count. A row that is not valid has zeros, label 255
      and -1.

    Raises:
      UserError: no records or one that is larger than `size`; an error of reading is raised from `next`.
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
    return drain(to_batches(parts[host_index::host_count], workers), workers)


@dataclass(frozen=True)
class _Padded:
    """Row n of the stream: record n at `size`, or a row that counts for nothing beyond the last."""

    source: Source[Any]
    records: tuple[Record, ...]
    size: int

    def __call__(self, number: int) -> Batch:
        valid = number < len(self.records)
        record = self.records[number if valid else -1]
        image, label = self.source.read_image(record), self.source.read_label(record)
        missing = [(0, self.size - side) for side in label.shape]
        image = np.pad(image, [*missing, (0, 0)], mode="symmetric")
        label = np.pad(label, missing, constant_values=IGNORE)
        return {
            "image": image if valid else np.zeros_like(image),
            "label": label if valid else np.full_like(label, IGNORE),
            "valid": np.array(valid),
            "record": np.array(number if valid else -1),
        }
