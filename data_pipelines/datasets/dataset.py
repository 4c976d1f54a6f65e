"""Description of a published data set: metadata, files, and how its tiles are cut and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.records import Window

VERSION = "1.0.0"
"""Version of the tiles that are cut from published files."""


class Pair(NamedTuple):
    """An image file and its label file.

    Attributes:
      split: the split that the image belongs to.
      domain: place, sensor or season of the image.
      name: unique within the split and domain.
      image, label: paths of the two files.
    """

    split: str
    domain: str
    name: str
    image: Path
    label: Path


class Listing(NamedTuple):
    """Contents of a download folder.

    Attributes:
      pairs: images with their labels, in a fixed order.
      missing: one line of text for each thing that is not there.
    """

    pairs: tuple[Pair, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """One published data set with the protocol that scores on it are reported for.

    Attributes:
      name: name for `spectralmoe prepare NAME`, of the output folder and of the builder.
      title, citation, licence, homepage: for the reader.
      download: where to get the files and how to unpack them, as a sentence.
      classes, palette: name and colour of each class; the training id is the index.
      bands: names of the bands of a tile, in order, as `sensors` names them.
      sensors: name of the sensor (`data_pipelines.sensors`) of each domain or split.
      splits: all splits.
      source, target: splits of the source and the target domain in the published protocol.
      tile: side of the tiles in pixels; None for whole files.
      dtype: type of a tile's pixels.
      find: lists a download folder.
      cells: returns the tiles of a pair in pixels of its files; they may extend beyond the right and lower
        edge.
      read_tile: returns pixels (h, w, C) of `dtype` and training ids (h, w) uint8 of one tile, padded with 0
        and 255 beyond the edge.
      holdout: splits that are published for model selection; may be empty.
      counts: published number of images of each split, where known.
      checksums: MD5 of each published archive by file name, where known.
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
