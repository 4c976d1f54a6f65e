"""What a published benchmark is: its facts, where its files lie, and how a tile of it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.records import Window


class Pair(NamedTuple):
    """An image and its label below a source folder. `name` is unique within the split."""

    split: str
    domain: str
    name: str
    image: Path
    label: Path


class Listing(NamedTuple):
    """What a source folder holds of a benchmark, in a fixed order, and what is missing, a line each."""

    pairs: tuple[Pair, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
      name: of the builder, its folder and `spectralmoe prepare NAME`.
      title, citation, licence, homepage, download: for people; `download` says where and how.
      classes, palette: training id = index.
      bands: in the order in which tiles carry them, names of `sensors`.
      sensors: domain or split to the name of its sensor (`data_pipelines.sensors`).
      splits: all splits; `source` and `target` are those of the published protocol, `holdout` those published
        for choosing a checkpoint (may be empty).
      tile: side of the tiles in pixels; None keeps files whole.
      dtype: of the tiles' pixels.
      find: lists a source folder.
      cells: the tiles of a pair, in file coordinates; they may run over the right and lower edge.
      read_tile: pixels (h, w, C) and ids (h, w) uint8 of a cell, padded with 0 and 255 where it runs over.
      counts: published number of files by split, where known.
      checksums: md5 of published archives by file name, where known.
    """

    name: str
    title: str
    citation: str
    licence: str
    homepage: str
    download: str
    classes: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    bands: Sequence[str]
    sensors: Mapping[str, str]
    splits: Sequence[str]
    source: Sequence[str]
    target: Sequence[str]
    tile: int | None
    dtype: type
    find: Callable[[Path], Listing]
    cells: Callable[[Pair], tuple[Window, ...]]
    read_tile: Callable[[Pair, Window], tuple[np.ndarray, np.ndarray]]
    holdout: Sequence[str] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    checksums: Mapping[str, str] = field(default_factory=dict)
