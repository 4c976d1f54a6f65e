"""Cutting one piece: windows of its files into a shard, and beside it what is known about each tile.

A tile as the bytes of one record, the same bytes in every process.

Exact statistics of whole-number pixels, from the count of every value of every band.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.datasets.dataset import Benchmark, Pair
from data_pipelines.prepare.plan import Piece
from data_pipelines.readers.raster_file import kept_open
from data_pipelines.records import IGNORE, Window
from spectralmoe_jax.errors import UserError


class Encoder:
    """Encodes what `data_pipelines.datasets.builder.example` gives, as TensorFlow Datasets reads it.

    Its own serialisation puts a record's fields in an order that differs from process to process; here they
    are in the order of their names.
    """

    def __init__(self, benchmark: Benchmark):
        from tensorflow_datasets.core.example_serializer import ExampleSerializer

        from data_pipelines.datasets.builder import features

        self._features = features(benchmark)
        self._serializer = ExampleSerializer(self._features.get_serialized_info())

    def __call__(self, example: dict[str, Any]) -> bytes:
        encoded = self._features.encode_example(example)
        return self._serializer.get_tf_example(encoded).SerializeToString(deterministic=True)


def image_name(pair: Pair) -> str:
    """The name of an image, unique within its split."""
    return f"{pair.domain}/{pair.name}"


def tile_name(pair: Pair, cell: Window, cells: int) -> str:
    """The name of a tile, unique within its split; where an image is one tile, the image's."""
    name = image_name(pair)
    return name if cells == 1 else f"{name}_{cell.row:05d}_{cell.col:05d}"


PERCENTILES = (1, 2, 25, 50, 75, 98, 99)


class Histograms:
    """How often each value occurs in each band: mean, deviation and percentiles without rounding.

    Pixels that are zero in every band (padding at an image's edge, no data) do not count.

    Args:
      bands: number of bands.
      dtype: of the pixels, 8- or 16-bit integers.

    Attributes:
      values: every value of the type, ascending, (V,) int64.
      counts: their numbers, (bands, V) int64.
    """

    def __init__(self, bands: int, dtype: Any):
        self._dtype = np.dtype(dtype)
        if self._dtype.kind not in "ui" or self._dtype.itemsize > 2:
            raise ValueError(f"pixels of type {self._dtype}: store 8- or 16-bit integers")
        limits = np.iinfo(self._dtype)
        self.values = np.arange(limits.min, limits.max + 1)
        self.counts = np.zeros((bands, len(self.values)), np.int64)

    def add(self, image: np.ndarray) -> int:
        """Counts the pixels of `image` (H, W, bands); returns how many are not zero in every band."""
        unsigned = np.dtype(f"u{self._dtype.itemsize}")
        columns = np.ascontiguousarray(image.reshape(-1, image.shape[-1]).T)  # (bands, pixels)
        valid = int(np.count_nonzero(columns.any(axis=0)))
        first = -int(self.values[0])  # place of zero: values lie in ascending order, unsigned ones wrap
        for counts, column in zip(self.counts, columns.view(unsigned), strict=True):
            counts += np.roll(np.bincount(column, minlength=len(self.values)), first)
            counts[first] -= columns.shape[1] - valid
        return valid

    def merge(self, sparse: Mapping[str, np.ndarray]) -> None:
        """Adds what `sparse` of another one returned."""
        np.add.at(self.counts, (sparse["band"], sparse["value"]), sparse["count"])

    def sparse(self) -> dict[str, np.ndarray]:
        """The counts that are not zero: `band`, `value` (place in `values`) and `count`, (N,) each."""
        band, value = np.nonzero(self.counts)
        return {
            "band": band.astype(np.uint16),
            "value": value.astype(np.uint16),
            "count": self.counts[band, value],
        }

    def summary(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Of each band: mean, std (of the population), min, max, percentiles; None without any pixel."""
        return {name: self._band(counts) for name, counts in zip(names, self.counts, strict=True)}

    def _band(self, counts: np.ndarray) -> dict[str, Any]:
        total = int(counts.sum())
        if not total:
            return dict.fromkeys(("mean", "std", "min", "max", "percentiles"))
        mean = float(counts @ self.values / total)
        present = self.values[counts > 0]
        return {
            "mean": mean,
            "std": float(np.sqrt(counts @ (self.values - mean) ** 2 / total)),
            "min": int(present[0]),
            "max": int(present[-1]),
            "percentiles": {str(p): self._percentile(counts, total, p) for p in PERCENTILES},
        }

    def _percentile(self, counts: np.ndarray, total: int, percent: int) -> float:
        """Linear between the two order statistics around it, as `numpy.percentile` by default."""
        place, rest = divmod(percent * (total - 1), 100)
        ranks = np.searchsorted(np.cumsum(counts), [place, min(place + 1, total - 1)], side="right")
        low, high = (int(value) for value in self.values[ranks])
        return low + (high - low) * rest / 100


class Workspace(NamedTuple):
    """Where a preparation that is not finished keeps its files; all on one file system.

    `shards` becomes the prepared folder, `notes` holds a file for each finished piece, `partial` what is
    being written.
    """

    shards: Path
    notes: Path
    partial: Path

    @classmethod
    def below(cls, folder: Path) -> Workspace:
        return cls(folder / "shards", folder / "notes", folder / "partial")

    def note(self, piece: Piece) -> Path:
        return self.notes / f"{piece.shard}.npz"

    def finished(self, piece: Piece) -> bool:
        """Whether a piece is there as a whole: its note is written after its shard."""
        return self.note(piece).is_file() and (self.shards / piece.shard).is_file()


class Cancelled(Exception):
    """Raised by a `progress` callback to leave a piece unfinished."""


def cut_piece(
    benchmark: Benchmark, piece: Piece, workspace: Workspace, progress: Callable[[int, int], None]
) -> None:
    """Writes the shard of a piece, then its note; both appear whole or not at all.

    Args:
      progress: called with (tiles, images) finished since its last call; may raise `Cancelled`.

    Raises:
      UserError: naming the file that cannot be read, or the shard that cannot be written.
    """
    shard, note = workspace.shards / piece.shard, workspace.note(piece)
    partial = workspace.partial / f"{piece.shard}.{os.getpid()}"
    gathered = _Gathered(benchmark)
    try:
        with kept_open(), _Shard(partial, piece.options) as writing:
            for example in _examples(benchmark, piece, gathered, progress):
                writing.write(example)
        _move(partial, shard)
        with open(partial, "wb") as stream:
            facts = {"bytes": np.array(writing.bytes), "fingerprint": np.array(piece.fingerprint)}
            np.savez_compressed(stream, allow_pickle=False, **gathered.arrays(), **facts)
        _move(partial, note)
    except OSError as problem:
        raise UserError(
            f"{shard}: cannot be written ({problem.strerror or problem}): make room or choose another --out, "
            "then run the same command again"
        ) from problem
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def read_note(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a piece's note.

    Of each tile (N,): `name`, `image` (the name of its image), `domain`, `height`, `width` and `valid`
    (pixels that are not zero in every band); `class_pixels` (N, K). Of all together: `bytes` of the examples,
    `fingerprint` of the piece; `band`, `value` and `count` of `Histograms.sparse`.
    """
    with np.load(path) as arrays:
        return dict(arrays)


def stale_notes(workspace: Workspace, pieces: Sequence[Piece]) -> list[Path]:
    """Notes on finished pieces that are none of `pieces`, or were made of other files."""
    fingerprints = {workspace.note(piece): piece.fingerprint for piece in pieces}
    stale = []
    for path in sorted(workspace.notes.iterdir()):
        with np.load(path) as arrays:
            if fingerprints.get(path) != str(arrays["fingerprint"]):
                stale.append(path)
    return stale


class _Shard:
    """An ArrayRecord file that is written to the end and on the disk, or raises OSError."""

    def __init__(self, path: Path, options: str):
        self.path, self._options = path, options
        self.records, self.bytes = 0, 0

    def __enter__(self) -> _Shard:
        from array_record.python.array_record_module import ArrayRecordWriter

        self.path.touch()  # the writer reports a folder that cannot be written only at its first record
        self._writer = ArrayRecordWriter(str(self.path), self._options)
        return self

    def write(self, example: bytes) -> None:
        try:
            self._writer.write(example)
        except RuntimeError as problem:
            raise OSError(" ".join(str(problem).split())) from problem
        self.records += 1
        self.bytes += len(example)

    def __exit__(self, kind: type | None, *_: object) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        if kind is not None:
            with suppress(RuntimeError):
                self._writer.close()
            return
        try:
            self._writer.close()
            reader = ArrayRecordReader(str(self.path))
            there = reader.num_records()
            reader.close()
        except RuntimeError as problem:
            raise OSError(" ".join(str(problem).split())) from problem
        if there != self.records:
            raise OSError(f"{there} of {self.records} records arrived")


class _Gathered:
    """What is known about the tiles of a piece."""

    def __init__(self, benchmark: Benchmark):
        self._classes = len(benchmark.classes)
        self._histograms = Histograms(len(benchmark.bands), benchmark.dtype)
        self._rows: list[tuple[str, str, str, int, int, int]] = []
        self._class_pixels: list[np.ndarray] = []

    def add(self, pair: Pair, name: str, image: np.ndarray, label: np.ndarray) -> None:
        counts = np.bincount(label.ravel(), minlength=256)
        unknown = np.flatnonzero(counts[self._classes : IGNORE])
        if len(unknown):
            raise UserError(
                f"{pair.label}: class {unknown[0] + self._classes} is none of the {self._classes} classes, "
                "which are numbered from 0: correct the label"
            )
        height, width = label.shape
        valid = self._histograms.add(image)
        self._rows.append((name, image_name(pair), pair.domain, height, width, valid))
        self._class_pixels.append(counts[: self._classes])

    def arrays(self) -> dict[str, np.ndarray]:
        columns = zip(*self._rows, strict=True)
        named = zip(("name", "image", "domain", "height", "width", "valid"), columns, strict=True)
        return {
            **{key: np.array(column) for key, column in named},
            "class_pixels": np.stack(self._class_pixels),
            **self._histograms.sparse(),
        }


def _examples(
    benchmark: Benchmark, piece: Piece, gathered: _Gathered, progress: Callable[[int, int], None]
) -> Iterator[bytes]:
    encoder = Encoder(benchmark)
    for pair in piece.pairs:
        windows = benchmark.cells(pair)
        for window in windows:
            example = _read(benchmark, pair, window)
            gathered.add(pair, tile_name(pair, window, len(windows)), example["image"], example["label"])
            yield encoder(example)
            progress(1, 0)
        progress(0, 1)


def _read(benchmark: Benchmark, pair: Pair, window: Window) -> dict[str, Any]:
    from data_pipelines.datasets.builder import example

    try:
        return example(benchmark, pair, window)
    except OSError as problem:
        raise UserError(
            f"{problem.filename or pair.image}: cannot be read ({problem.strerror or problem}): "
            "restore the file"
        ) from problem
    except Exception as problem:
        problem.add_note(f"while cutting {pair.image} at row {window.row}, column {window.col}")
        raise


def _move(partial: Path, final: Path) -> None:
    """Gives a finished file its name once its bytes are on the disk."""
    with open(partial, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(partial, final)
