"""Measurements of a configuration's training batches: content, statistics and times."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipelines.loader import Batch, Mixture
from data_pipelines.records import IGNORE, Record, Source, Window
from data_pipelines.splits import SPLITS, Splits, open_splits, training_batches, training_elements
from data_pipelines.transforms import normalise
from spectralmoe_jax.config.schema import RunConfig

_TIMED_TILES = 24
_TIMED_SECONDS = 2.0
_MADE_AHEAD = 6  # batches that the loader may hold


@dataclass(frozen=True)
class Inspection:
    """Batches that were drawn, and their measurements.

    Attributes:
      batches: the first training batches.
      contents: number of images and megapixels by (split, domain).
      shares: share of each class in the labelled pixels of the batches, (classes,).
      labelled: share of labelled pixels in the batches.
      raw: mean and standard deviation of each band over the batches, as stored, (bands, 2); pixels that are
        zero in every band are left out.
      normalised: the same as the model sees them, (bands, 2).
      stages: milliseconds for one tile by stage, of one thread that has not decoded any file yet; the
        system's file cache is left as it is.
      opening: seconds to open the data.
      first: seconds until the first batch.
      rate: tiles a second of the loader as configured, after the first batch.
    """

    batches: Sequence[Batch]
    contents: dict[tuple[str, str], tuple[int, float]]
    shares: np.ndarray
    labelled: float
    raw: np.ndarray
    normalised: np.ndarray
    stages: dict[str, float]
    opening: float
    first: float
    rate: float


def inspect_batches(config: RunConfig, batches: int) -> Inspection:
    """Draw the first batches of a training, and time every stage.

    Raises:
      UserError: as training would, or fewer than one batch.
    """
    began = time.perf_counter()
    splits = open_splits(config)
    opening = time.perf_counter() - began
    drawn, first, rate = _draw(config, splits, batches)
    images = np.concatenate([batch["image"] for batch in drawn])
    labels = np.concatenate([batch["label"] for batch in drawn])
    classes = len(config.classes.names)
    counts = np.bincount(labels.ravel(), minlength=IGNORE + 1)[:classes]
    pixels = images.reshape(-1, images.shape[-1])
    pixels = pixels[pixels.any(axis=1)]
    model = config.model
    return Inspection(
        batches=drawn,
        contents=_contents(splits),
        shares=counts / max(counts.sum(), 1),
        labelled=float(counts.sum() / labels.size),
        raw=_moments(pixels),
        normalised=_moments(normalise(pixels, model.pixel_mean, model.pixel_std)),
        stages=_stages(config, pickle.loads(pickle.dumps(splits))),  # without what is decoded already
        opening=opening,
        first=first,
        rate=rate,
    )


def _draw(config: RunConfig, splits: Splits, count: int) -> tuple[list[Batch], float, float]:
    """Draw batches; returns them, the seconds until the first one, and tiles a second from then on."""
    began = time.perf_counter()
    stream = training_batches(config, splits, 0)
    try:
        drawn = [next(stream)]
        at_first = time.perf_counter()
        drawn += [next(stream) for _ in range(count - 1)]
        rate = _rate(stream, config.train.batch_size, config.data.workers)
    finally:
        stream.close()
    return drawn, at_first - began, rate


def _rate(stream: Iterator[Batch], batch_size: int, workers: int) -> float:
    """Measure tiles a second, once the batches that were made ahead are used up."""
    for _ in range(_MADE_AHEAD * max(1, workers)):
        next(stream)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < _TIMED_SECONDS:
        next(stream)
        count += 1
    return count * batch_size / (time.perf_counter() - began)


def _contents(splits: Splits) -> dict[tuple[str, str], tuple[int, float]]:
    found: dict[tuple[str, str], tuple[int, float]] = {}
    groups = {"train": splits.train, "holdout": splits.holdout, "target": splits.target.records}
    for split in SPLITS:
        for record in groups.get(split, ()):
            images, size = found.get((split, record.domain), (0, 0.0))
            found[split, record.domain] = images + 1, size + record.height * record.width / 1e6
    return found


def _moments(pixels: np.ndarray) -> np.ndarray:
    """Return mean and standard deviation of each column, (columns, 2)."""
    if not len(pixels):
        return np.full((pixels.shape[1], 2), np.nan)
    return np.stack([pixels.mean(axis=0, dtype=np.float64), pixels.std(axis=0, dtype=np.float64)], axis=1)


def _stages(config: RunConfig, splits: Splits) -> dict[str, float]:
    """Measure milliseconds for one tile by stage, in this thread."""
    clock = _Clock()
    elements, augment = training_elements(config, splits, wrap=lambda source: _Timed(source, clock))
    parts = elements.sources if isinstance(elements, Mixture) else (elements,)
    examples = []
    began = time.perf_counter()
    for number in range(_TIMED_TILES):
        rng = np.random.default_rng((config.seed, number))
        part = parts[number % len(parts)]
        examples.append(augment(part[int(rng.integers(len(part)))], rng))
    whole = time.perf_counter() - began
    with clock.measuring("batch"):
        for key in examples[0]:
            np.stack([example[key] for example in examples])
    seconds = clock.seconds
    reading = seconds.get("read labels", 0) + seconds.get("read images", 0)
    stages = {"read labels": seconds.get("read labels", 0), "read images": seconds.get("read images", 0)}
    stages |= {"transform": whole - reading, "batch": seconds["batch"]}
    return {name: 1000 * value / _TIMED_TILES for name, value in stages.items()}


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measuring(self, stage: str) -> Iterator[None]:
        """Add the time spent in the context to a stage."""
        began = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0) + time.perf_counter() - began


class _Timed:
    """A source that counts the time spent in it."""

    def __init__(self, source: Source[Any], clock: _Clock):
        self._source, self._clock = source, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read_image(self, record: Record, window: Window | None = None) -> np.ndarray:
        """Read and time pixels."""
        with self._clock.measuring("read images"):
            return self._source.read_image(record, window)

    def read_label(self, record: Record, window: Window | None = None) -> np.ndarray:
        """Read and time labels."""
        with self._clock.measuring("read labels"):
            return self._source.read_label(record, window)
