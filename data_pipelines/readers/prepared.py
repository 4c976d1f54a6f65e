"""Tiles written by `spectralmoe prepare`: ArrayRecord shards, read one tile at a time."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.readers.prepared_files import (
    INDEX,
    INFO,
    STATISTICS,
    Layout,
    PreparedRecord,
    read_columns,
    read_layout,
    read_statistics,
    remedy_for,
)
from data_pipelines.records import Window, crop
from data_pipelines.sensors import select_bands
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError, shown

UNFINISHED = ".incomplete"
"""Suffix of the folder in which tiles are prepared; it is renamed when it is complete."""

_COLUMNS = ("domain", "name", "height", "width", "image")
_COMMAND = "spectralmoe prepare {} --source DIR --out DIR"


class PreparedTiles:
    """A `data_pipelines.records.Source` over a folder written by `spectralmoe prepare`.

    Names, sizes and class counts of all tiles are known without reading them. Each process opens shards when
    they are first read. A tile whose label and image are read one after the other by the same thread is
    decoded once.

    Args:
      root: the folder given to prepare as `--out`, or a data set's folder or version folder in it.
      splits: splits to use, in this order; default all.
      bands: names of the bands to read, in this order; default all as stored.
      classes: expected names of the classes; default any.
      dataset: name of the data set, if there are several below `root`.
      sensor: name of the sensor (`data_pipelines.sensors.SENSORS`) whose band aliases are known.

    Attributes:
      folder: folder of the shards.
      records: `PreparedRecord`s. A tile's domain is its place, sensor or season, not its split.
      class_pixels: labelled pixels of each class in each tile, (tiles, K) int64.
      bands: names of the channels.
      classes: names of the classes; the training id is the index.
      dtype: type of the pixels, as stored.

    Raises:
      UserError: there are no prepared tiles, a file of them is damaged, a split or band is unknown, or the
        classes are others. Reading raises it for a damaged shard.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        splits: Sequence[str] | None = None,
        bands: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        dataset: str | None = None,
        sensor: str | None = None,
    ):
        self.folder = find_prepared(Path(root), dataset)
        statistics = read_statistics(self.folder)
        self.classes: tuple[str, ...] = tuple(statistics["classes"])
        if classes is not None and tuple(classes) != self.classes:
            raise UserError(
                f"{self.folder}: its classes are {', '.join(self.classes)}; set config.classes.names to them"
            )
        stored = statistics["bands"]
        self.bands = tuple(stored if bands is None else bands)
        self._channels = select_bands(str(self.folder), self.bands, len(stored), stored, sensor=sensor)
        self._all_as_stored = self._channels == tuple(range(len(stored)))
        self.dtype = np.dtype(statistics["dtype"])
        wanted = tuple(statistics["splits"]) if splits is None else tuple(dict.fromkeys(splits))
        for split in wanted:
            if split not in statistics["splits"]:
                raise UserError(
                    f"{self.folder}: no split {split!r}, there are {', '.join(statistics['splits'])}: "
                    "correct data.source and data.target"
                )
        if not wanted:
            raise UserError(f"{self.folder}: no split named, there are {', '.join(statistics['splits'])}")
        self.records, self.class_pixels = _records(read_columns(self.folder, wanted, statistics))
        self._shards = _Shards(read_layout(self.folder, statistics))

    def read_image(self, record: PreparedRecord, window: Window | None = None) -> np.ndarray:
        """Read raw pixel values (H, W, C) of `dtype`, of the tile or a window; read-only."""
        image = crop(self._shards.read(record)["image"], window)
        if not self._all_as_stored:
            image = np.take(image, self._channels, axis=-1)
            image.setflags(write=False)
        return image

    def read_label(self, record: PreparedRecord, window: Window | None = None) -> np.ndarray:
        """Read training ids (H, W) uint8, 255 for no label, of the tile or a window; read-only."""
        return crop(self._shards.read(record)["label"], window)

    def describe(self) -> str:
        """Return a line for each split: number of tiles, domains and pixels, and share of labelled pixels."""
        lines = []
        for split in dict.fromkeys(record.split for record in self.records):
            chosen = [i for i, record in enumerate(self.records) if record.split == split]
            domains = len({self.records[i].domain for i in chosen})
            pixels = sum(self.records[i].height * self.records[i].width for i in chosen)
            lines.append(
                f"{split}: {len(chosen)} tiles of {domains} domain{'s' * (domains != 1)}, "
                f"{pixels / 1e6:.1f} Mpx, {self.class_pixels[chosen].sum() / pixels:.1%} labelled"
            )
        return "\n".join(lines)


def open_prepared(config: RunConfig, domains: Sequence[str]) -> PreparedTiles:
    """Open the tiles of a configuration with `data.kind` "prepared"; domains are splits.

    Raises:
      UserError: as for `PreparedTiles`.
    """
    return PreparedTiles(
        config.data.needs("root"),
        splits=domains,
        bands=config.bands,
        classes=config.classes.names,
        dataset=config.data.benchmark,
        sensor=config.sensor,
    )


def find_prepared(root: Path, dataset: str | None = None) -> Path:
    """Return the version folder that `root` means: itself, or the newest version of a data set in it.

    Args:
      root: a folder of prepared tiles, or one above it.
      dataset: name of the data set; may be left out if there is only one.

    Raises:
      UserError: nothing is prepared here, or there are several data sets and none is named; the message
        describes what to run or give.
    """
    below = (folder for folder in (*root.glob("*/"), *root.glob("*/*/")) if UNFINISHED not in str(folder))
    found: dict[str, list[Path]] = {}
    for folder in filter(_is_prepared, (root,) if _is_prepared(root) else below):
        found.setdefault(read_statistics(folder)["benchmark"], []).append(folder)
    if dataset is not None:
        found = {dataset: found[dataset]} if dataset in found else {}
    if len(found) > 1:
        names = ", ".join(sorted(found))
        raise UserError(f"{root}: several data sets are here, give the folder of one: {names}")
    for folders in found.values():
        return max(folders, key=_version)
    command = _COMMAND.format(dataset or "NAME")
    unfinished = sorted((*root.glob(f"*{UNFINISHED}"), *root.glob(f"*/*{UNFINISHED}")))
    if unfinished:
        raise UserError(f"{unfinished[0]}: preparing is not finished, run the same `{command}` again")
    raise UserError(f"{root}: no prepared tiles here, run `{command}` or correct data.root")


class _Shards:
    """Reads and parses the records of all shards of a folder; keeps the last tile of each thread."""

    def __init__(self, layout: Layout):
        self._layout = layout
        self._start()

    def _start(self) -> None:
        self._readers: dict[Path, Any] = {}
        self._lock = threading.Lock()
        self._last = threading.local()

    def __getstate__(self) -> dict[str, Layout]:
        return {"layout": self._layout}

    def __setstate__(self, state: dict[str, Layout]) -> None:
        self._layout = state["layout"]
        self._start()

    def read(self, record: PreparedRecord) -> Mapping[str, np.ndarray]:
        """Return `image` (h, w, C) as stored and `label` (h, w) of a tile, read-only."""
        place = record.split, record.index
        if getattr(self._last, "place", None) != place:
            self._last.place, self._last.example = None, None  # frees the last tile before the next is read
            self._last.example = self._parse(record)
            self._last.place = place
        return self._last.example

    def _parse(self, record: PreparedRecord) -> Mapping[str, np.ndarray]:
        path, length, position = self._layout.locate(record.split, record.index)
        try:
            (encoded,) = self._reader(path, length).read([position])
            return self._layout.decode(encoded, record)
        except (RuntimeError, ValueError, IndexError) as problem:
            reason = " ".join(str(problem).split())
            raise UserError(
                f"{path}: record {position} is damaged ({shown(reason)}): {remedy_for(path.parent)}"
            ) from problem

    def _reader(self, path: Path, length: int) -> Any:
        with self._lock:
            if path not in self._readers:
                self._readers[path] = _open_shard(path, length)
            return self._readers[path]


def _open_shard(path: Path, length: int) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.is_file():
        raise UserError(f"{path}: missing, restore it or remove {path.parent} and prepare it again")
    reader = ArrayRecordReader(str(path), options="readahead_buffer_size:0")
    if reader.num_records() != length:  # a truncated file opens without an error and looks empty
        raise UserError(
            f"{path}: damaged or another shard, it holds {reader.num_records()} readable tiles, "
            f"not {length}: {remedy_for(path.parent)}"
        )
    return reader


def _records(
    columns: Mapping[str, Mapping[str, np.ndarray]],
) -> tuple[tuple[PreparedRecord, ...], np.ndarray]:
    """Return the tiles of some splits, and their class counts."""
    records: list[PreparedRecord] = []
    for split, of_split in columns.items():
        labelled = of_split["class_pixels"].sum(axis=1, dtype=np.int64)
        rows = zip(*(of_split[key].tolist() for key in _COLUMNS), labelled.tolist(), strict=True)
        for number, (domain, name, height, width, image, pixels) in enumerate(rows):
            records.append(PreparedRecord(domain, name, height, width, image, split, number, pixels))
    return tuple(records), np.concatenate([of_split["class_pixels"] for of_split in columns.values()])


def _is_prepared(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (INFO, STATISTICS, INDEX))


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.name.split(".") if part.isdecimal())
