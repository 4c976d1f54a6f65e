"""Splits and training batches of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.loader import Batch, Mixture, train_batches
from data_pipelines.records import IGNORE, Record, Source, examples, split_holdout
from data_pipelines.sources import open_source
from data_pipelines.stored_values import check, measure
from data_pipelines.tiles.label_grid import label_grid
from data_pipelines.tiles.tile_index import ClassBalancedIndex, TileIndex
from data_pipelines.transforms import Augment, visible_bands
from spectralmoe_jax.config.schema import RunConfig, StatedValues
from spectralmoe_jax.errors import UserError, bad_value, choose
from spectralmoe_jax.host_memory import require_memory

SPLITS = ("train", "holdout", "source", "target")


@dataclass(frozen=True)
class Splits:
    """The images of a configuration.

    Attributes:
      source: images of the source domains.
      target: images of the target domains, never trained on nor used to choose a checkpoint.
      train: the part of the source to train on.
      holdout: the part of the source to choose a checkpoint by.
      values: how images of the training store their values; None if that is not known.
    """

    source: Source[Any]
    target: Source[Any]
    train: Sequence[Record]
    holdout: Sequence[Record]
    values: StatedValues | None = None

    def examples(self, split: str) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
        """Yield (domain, name, image (H, W, C), label (H, W)) of every image of a split."""
        source, records = self.of(split)
        for record, image, label in examples(source, records):
            yield record.domain, record.name, image, label

    def of(self, split: str) -> tuple[Source[Any], Sequence[Record]]:
        """Return the images that a split is taken from, and its records.

        Raises:
          UserError: an unknown split.
        """
        choose("--split", split, SPLITS)
        if split == "target":
            return self.target, self.target.records
        parts = {"train": self.train, "holdout": self.holdout, "source": self.source.records}
        return self.source, parts[split]


def open_splits(config: RunConfig, *, only: str | None = None) -> Splits:
    """Open and check the images of a configuration.

    Args:
      config: the whole configuration.
      only: the one split that will be read, or None for all. The other domains need not exist then, and
        nothing is held out for `source` and `target`.

    Raises:
      UserError: names the file or the key.
    """
    both = set(config.data.source) & set(config.data.target)
    if both:
        raise UserError(f"config.data.target shares {', '.join(sorted(both))} with config.data.source")
    opened = {
        name: open_source(config, getattr(config.data, name))
        for name in ("source", "target")
        if only is None or (name == "target") == (only == "target")
    }
    values = _checked_values(config, opened)
    if "source" in opened:
        _require_both_classes(config, opened["source"])
    source, target = (opened.get(name, next(iter(opened.values()))) for name in ("source", "target"))
    if only in ("source", "target"):
        return Splits(source, target, train=(), holdout=(), values=values)
    train, holdout = _hold_out(config, source.records)
    return Splits(source, target, train, holdout, values)


def _checked_values(config: RunConfig, opened: Mapping[str, Source[Any]]) -> StatedValues | None:
    """Compare how opened images store their values with those of the training.

    Nothing is compared for an encoder that brings stored values to a scale of its own.

    Returns:
      How images of the training store their values; None if that is not known.

    Raises:
      UserError: images cannot be right for the model; see `stored_values.check`.
    """
    if config.model.visual.converts_stored_values:
        return None
    policy, trained = config.data.check_values, config.values_of_files
    found = {}
    if policy != "off" and (trained is not None or "source" in opened):
        found = {name: measure(source, config.bands, config.sensor) for name, source in opened.items()}
    trained = trained or found.get("source")
    for name, values in found.items():
        if values is not None:
            check(f"images of config.data.{name}", values, trained, policy)
    return trained


def _require_both_classes(config: RunConfig, source: Source[Any]) -> None:
    """Refuse masks of 0 and 255 for two classes: 255 is no label, so that one class would be trained.

    Raises:
      UserError: the masks are such.
    """
    is_binary = getattr(source, "has_binary_masks", None)
    if is_binary is not None and len(config.classes.names) == 2 and is_binary():
        raise UserError(
            f"{config.data.root}: the masks hold 0 and 255 alone, and 255 means no label, so that class "
            f"{config.classes.names[1]!r} has no labelled pixel: set config.data.label_values = (0, 255), or "
            "(0, 1) with config.data.ignore_values = (255,) if 255 is no label"
        )


def absent_classes(config: RunConfig, splits: Splits) -> tuple[str, ...]:
    """Return the classes without a labelled pixel in the source, if the source counts its labels."""
    grid = label_grid(splits.source)
    if grid is None:
        return ()
    pixels = grid.pixels(splits.source.records).sum(axis=0)  # (images, K) -> (K,)
    return tuple(name for name, count in zip(config.classes.names, pixels, strict=True) if not count)


def _hold_out(config: RunConfig, records: Sequence[Record]) -> tuple[Sequence[Record], Sequence[Record]]:
    """Split records into training and held out: whole domains, or else a share of each domain."""
    domains = config.data.holdout_domains or ()
    if not domains:
        return split_holdout(records, config.data.holdout, config.data.holdout_seed)
    known = {record.domain for record in records}
    if not known & set(domains):
        raise UserError(
            f"config.data.holdout_domains: none of {', '.join(domains)} is a domain of config.data.source, "
            f"which has {', '.join(sorted(known))}"
        )
    train = tuple(record for record in records if record.domain not in domains)
    if not train:
        raise UserError("config.data.holdout_domains holds all source domains out: leave some to train on")
    return train, tuple(record for record in records if record.domain in domains)


def training_elements(
    config: RunConfig, splits: Splits, wrap: Callable[[Source[Any]], Source[Any]] = lambda source: source
) -> tuple[TileIndex | ClassBalancedIndex | Mixture, Augment]:
    """Return the elements of an epoch, and the function that makes an example of one.

    Args:
      config: the whole configuration.
      splits: its images.
      wrap: replaces the source, for measuring it.

    Raises:
      UserError: names the key.
    """
    photometric = visible_bands(config.bands, config.sensor) if config.augment.photometric else None
    augment = Augment(config.data.crop, config.augment, photometric)
    source, data = wrap(splits.source), config.data
    if config.augment.crop_on_labels and label_grid(source) is None:
        must = f"must be 0, as {type(splits.source).__name__} does not count the pixels of its labels"
        raise bad_value("config.augment.crop_on_labels", config.augment.crop_on_labels, must)

    def index(records: Sequence[Record]) -> TileIndex | ClassBalancedIndex:
        """Index the tiles of some records, by class if `class_temperature` is set."""
        least = data.min_labelled
        if data.class_temperature is None:
            # the labels of the images are counted if crops are to be placed over them
            exact = config.augment.crop_on_labels > 0
            return TileIndex(source, data.crop, records, min_labelled=least, exact=exact)
        temperature = data.class_temperature
        return ClassBalancedIndex(source, data.crop, records, temperature=temperature, min_labelled=least)

    if data.weights is None:
        return index(splits.train), augment
    parts = {
        name: [r for r in splits.train if name in (r.domain, getattr(r, "split", None))]
        for name in data.source
    }
    kept = [(index(records), weight) for records, weight in _weighted(parts, data.weights)]
    return Mixture(*zip(*kept, strict=True)), augment


def training_pixels(config: RunConfig, splits: Splits) -> np.ndarray:
    """Count the labelled pixels of each class in the training images, (K,) int64.

    The labels of a source that does not count them are read once.

    Args:
      config: the whole configuration.
      splits: its images.

    Raises:
      UserError: a file cannot be read.
    """
    grid = label_grid(splits.source, exact=True)
    if grid is not None:
        return grid.pixels(splits.train).sum(axis=0)  # (images, K) -> (K,)
    counts = np.zeros(IGNORE + 1, np.int64)
    for record in splits.train:
        counts += np.bincount(splits.source.read_label(record).ravel(), minlength=IGNORE + 1)
    return counts[: len(config.classes.names)]


def _weighted(
    parts: Mapping[str, Sequence[Record]], weights: Sequence[float]
) -> list[tuple[Sequence[Record], float]]:
    """Return the records and the weight of each source domain that is not held out as a whole."""
    if len(weights) != len(parts):
        raise UserError(
            f"config.data.weights has {len(weights)} entries for {len(parts)} domains of config.data.source "
            f"({', '.join(parts)}): give one each"
        )
    return [(records, weight) for records, weight in zip(parts.values(), weights, strict=True) if records]


def require_room_for_batches(config: RunConfig, host_count: int = 1) -> None:
    """Check that the tiles of a step fit into the memory, before one is read.

    Raises:
      UserError: they do not; names the larger of the keys that say how many there are.
    """
    tile = config.data.crop**2 * (len(config.bands) + 1)  # bytes, at least: bands of one byte, and the label
    train = config.train
    key = "accumulate" if train.accumulate > train.batch_size else "batch_size"
    needed = tile * train.images_per_step / host_count
    require_memory(f"config.train.{key}", getattr(train, key), needed, "the tiles of a step")


def training_batches(
    config: RunConfig, splits: Splits, start_step: int, host_index: int = 0, host_count: int = 1
) -> Generator[Batch]:
    """Yield endless augmented batches `{"image": (B, T, T, C), "label": (B, T, T) uint8}` from a step.

    B is the number of images of a step, all accumulated batches together.
    """
    require_room_for_batches(config, host_count)
    index, augment = training_elements(config, splits)
    return train_batches(
        index,
        augment,
        batch_size=config.train.images_per_step,
        seed=config.seed,
        start_step=start_step,
        workers=config.data.workers,
        threads=config.data.threads,
        host_index=host_index,
        host_count=host_count,
        corrupt=config.data.corrupt,
    )
