"""What a configuration's `data` and `augment` sections stand for: sources, splits, batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.loader import Batch, train_batches
from data_pipelines.sources.image_folder import ImageFolder
from data_pipelines.sources.records import Record, Source, examples, split_holdout
from data_pipelines.sources.tiles import TileIndex
from data_pipelines.transforms import Augment, visible_bands
from spectralmoe_jax.errors import UserError

SPLITS = ("train", "holdout", "source", "target")
KINDS = ("image_folder", "synthetic")


@dataclass(frozen=True)
class Splits:
    """The images of one benchmark: `train` and `holdout` are parts of the source domains, `target` is
    never trained on nor used to choose a checkpoint."""

    source: Source[Any]
    target: Source[Any]
    train: Sequence[Record]
    holdout: Sequence[Record]

    def examples(self, split: str) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
        """(domain, name, image (H, W, C), label (H, W)) of every image of a split."""
        if split not in SPLITS:
            raise UserError(f"--split {split}: choose from {', '.join(SPLITS)}")
        if split == "target":
            found = examples(self.target, self.target.records)
        else:
            records = {"train": self.train, "holdout": self.holdout, "source": self.source.records}[split]
            found = examples(self.source, records)
        for record, image, label in found:
            yield record.domain, record.name, image, label


def open_splits(config: ConfigDict, *, only: str | None = None) -> Splits:
    """Open and check the images of a configuration.

    Args:
      config: the whole configuration.
      only: a split's name, where no other will be read: the target then need not exist for `train`,
        `holdout` and `source`, nor the source for `target`. Nothing is held out for `source` and `target`.

    Raises UserError naming the file or the key.
    """
    if config.data.kind not in KINDS:
        raise UserError(f"config.data.kind = {config.data.kind!r}: choose from {', '.join(KINDS)}")
    both = set(config.data.source) & set(config.data.target)
    if both:
        raise UserError(f"config.data.target shares {', '.join(sorted(both))} with config.data.source")
    opened = {
        name: _open(config, tuple(config.data[name]))
        for name in ("source", "target")
        if only is None or (name == "target") == (only == "target")
    }
    source, target = (opened.get(name, next(iter(opened.values()))) for name in ("source", "target"))
    if only in ("source", "target"):
        return Splits(source, target, train=(), holdout=())
    train, holdout = split_holdout(source.records, config.data.holdout, config.data.get("holdout_seed", 0))
    return Splits(source, target, train, holdout)


def _open(config: ConfigDict, domains: tuple[str, ...]) -> Source[Any]:
    if config.data.kind == "synthetic":
        from data_pipelines.synthetic import open_domains

        return open_domains(config, domains)
    return ImageFolder(
        config.data.root,
        palette=config.classes.palette,
        bands=config.bands,
        domains=domains,
        image_glob=config.data.image_glob,
        mask_template=config.data.mask_template,
        ignore_colours=config.data.ignore_colours,
    )


def training_batches(config: ConfigDict, splits: Splits, start_step: int,
                     host_index: int = 0, host_count: int = 1) -> Iterator[Batch]:  # fmt: skip
    """Augmented batches `{"image": (B, T, T, C), "label": (B, T, T) uint8}` from a step on, endlessly."""
    settings = config.augment.to_dict()
    photometric = settings.pop("photometric")
    try:
        augment = Augment(
            crop=config.data.crop,
            photometric_bands=visible_bands(config.bands) if photometric else None,
            **settings,
        )
    except TypeError as problem:
        raise UserError(f"config.augment: {problem}") from None
    return train_batches(
        TileIndex(splits.source, config.data.crop, splits.train),
        augment,
        batch_size=config.train.batch_size,
        seed=config.seed,
        start_step=start_step,
        workers=config.data.workers,
        host_index=host_index,
        host_count=host_count,
    )
