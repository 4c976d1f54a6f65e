"""Tiles that `spectralmoe prepare` wrote: ArrayRecord shards, read one tile at a time."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.records import Record, Window, crop
from data_pipelines.sensors import select_bands
from spectralmoe_jax.errors import UserError

UNFINISHED = ".incomplete"
"""Ending of the folder in which tiles are prepared; it is renamed when all is there."""

_COLUMNS = ("domain", "name", "height", "width", "image")
_COMMAND = "spectralmoe prepare {} --source DIR --out DIR"


@dataclass(frozen=True)
class PreparedRecord(Record):
    """A `Record` with the image that it was cut from, and its place: number `index` of `split`."""

    image: str
    split: str
    index: int

    @property
    def image_name(self) -> str:
        return self.image


class PreparedTiles:
    """A `data_pipelines.records.Source` over a folder that `spectralmoe prepare` wrote.

    Which tiles there are, and which classes they hold, is known without reading them. Shards are opened
    when they are first read, in each process; a tile whose label and image are read one after the other by
    the same thread is decoded once.

    Args:
      root: the folder given to prepare as `--out`, or a benchmark's folder or version folder in it.
      splits: the splits to use, in this order; default all.
      bands: names of the bands to give, in this order; default all of them as they lie.
      classes: what the classes have to be; default whatever they are.
      benchmark: which of several benchmarks below `root`.
      sensor: one of `data_pipelines.sensors.SENSORS`, whose other names of bands are understood, too.

    Attributes:
      folder: where the shards are.
      records: `PreparedRecord`s. A tile's domain is its place, sensor or season, not its split.
      class_pixels: labelled pixels of each class in each tile, (tiles, K) int64.
      bands, classes: what channels and ids mean.
      dtype: of the pixels, as stored.

    Raises:
      UserError: nothing prepared here, an unknown split or band, or other classes. Reading raises it for a
        shard that is damaged.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        splits: Sequence[str] | None = None,
        bands: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        benchmark: str | None = None,
        sensor: str | None = None,
    ):
        self.folder = find_prepared(Path(root), benchmark)
        facts = _facts(self.folder)
        self.classes: tuple[str, ...] = tuple(facts["classes"])
        if classes is not None and tuple(classes) != self.classes:
            raise UserError(
                f"{self.folder}: its classes are {', '.join(self.classes)}; set config.classes.names to them"
            )
        stored = facts["bands"]
        self.bands = tuple(stored if bands is None else bands)
        self._channels = select_bands(str(self.folder), self.bands, len(stored), stored, sensor=sensor)
        self._all_as_stored = self._channels == tuple(range(len(stored)))
        self.dtype = np.dtype(facts["dtype"])
        wanted = tuple(facts["splits"]) if splits is None else tuple(dict.fromkeys(splits))
        for split in wanted:
            if split not in facts["splits"]:
                raise UserError(
                    f"{self.folder}: no split {split!r}, there are {', '.join(facts['splits'])}: "
                    "correct data.source and data.target"
                )
        if not wanted:
            raise UserError(f"{self.folder}: no split named, there are {', '.join(facts['splits'])}")
        self.records, self.class_pixels = _read_index(self.folder, wanted)
        self._shards = _Shards(self.folder)

    def read_image(self, record: PreparedRecord, window: Window | None = None) -> np.ndarray:
        """Raw pixel values (H, W, C) of `dtype`, of the tile or of `window`. Read-only."""
        image = crop(self._shards.read(record)["image"], window)
        if not self._all_as_stored:
            image = np.take(image, self._channels, axis=-1)
            image.setflags(write=False)
        return image

    def read_label(self, record: PreparedRecord, window: Window | None = None) -> np.ndarray:
        """Training ids (H, W) uint8, 255 for ignore, of the tile or of `window`. Read-only."""
        return crop(self._shards.read(record)["label"], window)

    def describe(self) -> str:
        """One line a split: how many tiles, of how many domains, how many pixels, how much is labelled."""
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


def find_prepared(root: Path, benchmark: str | None = None) -> Path:
    """The version folder that `root` means: itself, or the newest of its only or named benchmark.

    Raises:
      UserError: nothing prepared here, or several benchmarks and none named; says what to run or give.
    """
    below = (folder for folder in (*root.glob("*/"), *root.glob("*/*/")) if UNFINISHED not in str(folder))
    found: dict[str, list[Path]] = {}
    for folder in filter(_is_prepared, (root,) if _is_prepared(root) else below):
        found.setdefault(_facts(folder)["benchmark"], []).append(folder)
    if benchmark is not None:
        found = {benchmark: found[benchmark]} if benchmark in found else {}
    if len(found) > 1:
        names = ", ".join(sorted(found))
        raise UserError(f"{root}: several benchmarks are here, give the folder of one: {names}")
    for folders in found.values():
        return max(folders, key=_version)
    command = _COMMAND.format(benchmark or "BENCHMARK")
    unfinished = sorted((*root.glob(f"*{UNFINISHED}"), *root.glob(f"*/*{UNFINISHED}")))
    if unfinished:
        raise UserError(f"{unfinished[0]}: preparing is not finished, run the same `{command}` again")
    raise UserError(f"{root}: no prepared tiles here, run `{command}` or correct data.root")


class _Shards:
    """The records of all shards of a folder, parsed; one tile a thread is kept."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._begin()

    def _begin(self) -> None:
        self._layout: _Layout | None = None
        self._readers: dict[Path, Any] = {}
        self._lock = threading.Lock()
        self._last = threading.local()

    def __getstate__(self) -> dict[str, Path]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.folder = state["folder"]
        self._begin()

    def read(self, record: PreparedRecord) -> Mapping[str, np.ndarray]:
        """`image` (h, w, C) as stored and `label` (h, w) of a tile, read-only."""
        place = record.split, record.index
        if getattr(self._last, "place", None) != place:
            self._last.place, self._last.example = None, None  # frees the last tile before the next is read
            self._last.example = self._parse(*place)
            self._last.place = place
        return self._last.example

    def _parse(self, split: str, index: int) -> Mapping[str, np.ndarray]:
        with self._lock:
            if self._layout is None:
                self._layout = _Layout(self.folder)
            layout = self._layout
        path, length, position = layout.locate(split, index)
        try:
            (encoded,) = self._reader(path, length).read([position])
            return layout.decode(encoded)
        except (RuntimeError, ValueError, KeyError) as problem:
            reason = " ".join(str(problem).split())
            raise UserError(
                f"{path}: record {position} is damaged ({reason}): restore the file, or remove "
                f"{path.parent} and prepare it again"
            ) from problem

    def _reader(self, path: Path, length: int) -> Any:
        with self._lock:
            if path not in self._readers:
                self._readers[path] = _open_shard(path, length)
            return self._readers[path]


class _Layout:
    """Where each tile's record is, and what is in it, as TensorFlow Datasets' files say."""

    def __init__(self, folder: Path):
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core.example_parser import ExampleParserNp

        info = tfds.builder_from_directory(folder).info
        self._features = {name: info.features[name] for name in ("image", "label")}
        specification = info.features.get_serialized_info()
        self._parser = ExampleParserNp({name: specification[name] for name in self._features})
        self._paths = {name: [Path(p) for p in split.filepaths] for name, split in info.splits.items()}
        self._ends = {name: np.cumsum(split.shard_lengths) for name, split in info.splits.items()}

    def locate(self, split: str, index: int) -> tuple[Path, int, int]:
        """(shard, its number of records, place in it) of tile `index` of `split`."""
        ends = self._ends[split]
        shard = int(np.searchsorted(ends, index, side="right"))
        start = int(ends[shard - 1]) if shard else 0
        return self._paths[split][shard], int(ends[shard]) - start, index - start

    def decode(self, encoded: bytes) -> dict[str, np.ndarray]:
        parsed = self._parser.parse_example(encoded)
        return {name: feature.decode_example_np(parsed[name]) for name, feature in self._features.items()}


def _open_shard(path: Path, length: int) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    if not path.is_file():
        raise UserError(f"{path}: missing, restore it or remove {path.parent} and prepare it again")
    reader = ArrayRecordReader(str(path), options="readahead_buffer_size:0")
    if reader.num_records() != length:  # a truncated file opens without an error and looks empty
        raise UserError(
            f"{path}: truncated, {reader.num_records()} of {length} tiles are readable: restore the file, or "
            f"remove {path.parent} and prepare it again"
        )
    return reader


def _read_index(folder: Path, splits: Sequence[str]) -> tuple[tuple[PreparedRecord, ...], np.ndarray]:
    records: list[PreparedRecord] = []
    class_pixels = []
    with np.load(folder / "index.npz") as index:
        for split in splits:
            columns = (index[f"{split}/{key}"].tolist() for key in _COLUMNS)
            for number, (domain, name, height, width, image) in enumerate(zip(*columns, strict=True)):
                records.append(PreparedRecord(domain, name, height, width, image, split, number))
            class_pixels.append(index[f"{split}/class_pixels"])
    return tuple(records), np.concatenate(class_pixels)


def _is_prepared(folder: Path) -> bool:
    return all((folder / name).is_file() for name in ("dataset_info.json", "statistics.json", "index.npz"))


def _facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "statistics.json").read_text())


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.name.split(".") if part.isdigit())
