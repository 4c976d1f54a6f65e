"""Plan of a preparation: the downloaded files in pieces, each of which becomes a shard.

The plan depends on the sorted files alone. `Workspace` determines which of its pieces are finished.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.datasets.dataset import Dataset, Listing, Pair
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.npz import read_npz

PIECE_TILES, PIECE_BYTES = 200, 1 << 29
"""Largest piece, some seconds of work; an image with more tiles is a piece of its own."""

_PLAIN, _COMPRESSED = "group_size:1,uncompressed", "group_size:1"  # options of the ArrayRecord writer
_LAYOUT = 1  # raised when the content of a piece changes, so that older unfinished folders are refused


@dataclass(frozen=True)
class Piece:
    """Consecutive files of one split that become one shard.

    Attributes:
      split: the split.
      number: position of the shard among those of its split.
      shard: its file name, in the form that TensorFlow Datasets expects.
      pairs: the files.
      tiles: number of tiles of all files.
      options: options of the ArrayRecord writer.
      fingerprint: hash of the names and sizes of the files, and of how they are cut and stored.
    """

    split: str
    number: int
    shard: str
    pairs: tuple[Pair, ...]
    tiles: int
    options: str
    fingerprint: str


@dataclass(frozen=True)
class Plan:
    """All pieces, in order of splits and files.

    Attributes:
      pieces: the pieces.
      files: size in bytes of every file, by its path below the download folder.
      size: bytes of all tiles before compression.
    """

    pieces: tuple[Piece, ...]
    files: Mapping[str, int]
    size: int

    @property
    def fingerprint(self) -> str:
        """Hash of the fingerprints of all pieces."""
        return hashlib.sha256("".join(piece.fingerprint for piece in self.pieces).encode()).hexdigest()

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return sum(piece.tiles for piece in self.pieces)

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(len(piece.pairs) for piece in self.pieces)


_NOTED = (
    "name", "image", "domain", "height", "width", "valid", "class_pixels", "bytes", "fingerprint", "band",
    "value", "count",
)  # fmt: skip


def read_note(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a piece's note.

    Returns:
      For each of N tiles: `name`, `image` (name of its image), `domain`, `height`, `width` and `valid`
      (number of pixels that are not zero in every band), (N,) each, and `class_pixels` (N, K). For the piece:
      `bytes` of the examples, `fingerprint`, and `band`, `value`, `count` of `Histograms.sparse`.

    Raises:
      UserError: the note is damaged.
    """
    return read_npz(path, f"remove {path.parent.parent} to begin anew", _NOTED)


class Workspace(NamedTuple):
    """Folders of an unfinished preparation, on one file system.

    Attributes:
      shards: becomes the prepared folder.
      notes: one file of statistics for each finished piece.
      partial: files that are being written.
    """

    shards: Path
    notes: Path
    partial: Path

    @classmethod
    def below(cls, folder: Path) -> Workspace:
        """Return the workspace in `folder`."""
        return cls(folder / "shards", folder / "notes", folder / "partial")

    def note(self, piece: Piece) -> Path:
        """Return the path of a piece's note."""
        return self.notes / f"{piece.shard}.npz"

    def finished(self, piece: Piece) -> bool:
        """Return whether a piece is complete; its note is written after its shard."""
        return self.note(piece).is_file() and (self.shards / piece.shard).is_file()

    def has_stale_notes(self, pieces: Sequence[Piece]) -> bool:
        """Return whether a finished piece is not among `pieces`, or was cut from other files."""
        fingerprints = {self.note(piece): piece.fingerprint for piece in pieces}
        notes = list(self.notes.iterdir())
        return any(fingerprints.get(path) != str(read_note(path)["fingerprint"]) for path in notes)


def list_downloads(dataset: Dataset, folder: Path) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """List a download folder.

    Args:
      dataset: the data set.
      folder: the download folder.

    Returns:
      The pairs, sorted by split, domain and name; and a line of text for each thing that is missing.

    Raises:
      UserError: there is no such folder, it has no file of the data set, or two files have the same name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, give --source the folder of the downloaded files")
    listing = dataset.find(folder)
    if not listing.pairs:
        raise UserError(
            f"{folder}: no file of {dataset.title} is where it should be"
            + (f" (missing: {'; '.join(listing.missing[:3])})" if listing.missing else "")
            + f"; download: {dataset.download}"
        )
    order = {split: place for place, split in enumerate(dataset.splits)}
    pairs = tuple(sorted(listing.pairs, key=lambda pair: (order[pair.split], pair.domain, pair.name)))
    seen: dict[tuple[str, str, str], Pair] = {}
    for pair in pairs:
        key = pair.split, pair.domain, pair.name
        if key in seen:
            raise UserError(
                f"{pair.image}: {pair.name} stands for {seen[key].image} already, in the split {pair.split}: "
                "remove one of the two"
            )
        seen[key] = pair
    return pairs, _missing(dataset, listing)


def make_plan(dataset: Dataset, folder: Path, pairs: Sequence[Pair], compress: bool = False) -> Plan:
    """Divide sorted pairs into pieces; reads at most the headers of files.

    Args:
      dataset: the data set.
      folder: the download folder.
      pairs: from `list_downloads`.
      compress: store smaller records, which take several times as long to read.

    Raises:
      UserError: a file cannot be opened or is not below `folder`, or there is no tile.
    """
    with ThreadPoolExecutor(4) as pool:  # listing tens of thousands of files waits for the disk
        cuts = list(pool.map(lambda pair: _cut(dataset, pair), pairs))
        files = dict(pool.map(lambda path: _size(folder, path), _paths(pairs)))
    options = _COMPRESSED if compress else _PLAIN
    pieces = []
    for split in dataset.splits:
        groups = _group([cut for cut in cuts if cut.pair.split == split])
        for number, group in enumerate(groups):
            shard = f"{dataset.name}-{split}.array_record-{number:05d}-of-{len(groups):05d}"
            fingerprint = _fingerprint(dataset, (shard, options), group, files, folder)
            members = tuple(cut.pair for cut in group)
            tiles = sum(cut.tiles for cut in group)
            pieces.append(Piece(split, number, shard, members, tiles, options, fingerprint))
    if not pieces:
        raise UserError(f"{folder}: its {len(pairs)} images are empty: download them again")
    return Plan(tuple(pieces), files, sum(cut.size for cut in cuts))


def difference(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    """Describe the changes between two listings (size by path); empty if there are none."""
    changes = {
        "new": sorted(now.keys() - before.keys()),
        "gone": sorted(before.keys() - now.keys()),
        "of another size": sorted(path for path in before.keys() & now.keys() if before[path] != now[path]),
    }
    return ", ".join(
        f"{len(paths)} {what} ({paths[0]}{', ...' if len(paths) > 1 else ''})"
        for what, paths in changes.items()
        if paths
    )


def _missing(dataset: Dataset, listing: Listing) -> tuple[str, ...]:
    """Return the listing's missing things, and the splits with fewer images than published."""
    found = dict.fromkeys(dataset.splits, 0)
    for pair in listing.pairs:
        found[pair.split] += 1
    short = tuple(
        f"split {split}: {found[split]:,} of {count:,} published images are here"
        for split, count in dataset.counts.items()
        if found[split] < count
    )
    return (*listing.missing, *short)


def _paths(pairs: Iterable[Pair]) -> list[Path]:
    return list(dict.fromkeys(path for pair in pairs for path in (pair.image, pair.label)))


def _size(folder: Path, path: Path) -> tuple[str, int]:
    try:
        return _below(folder, path), os.stat(path).st_size
    except OSError as problem:
        raise UserError(f"{path}: {problem.strerror}: restore the file") from problem


def _below(folder: Path, path: Path) -> str:
    return Path(path).relative_to(folder).as_posix()


class _Cut(NamedTuple):
    """An image with the number of its tiles and their bytes before compression."""

    pair: Pair
    tiles: int
    size: int


def _cut(dataset: Dataset, pair: Pair) -> _Cut:
    windows = dataset.cells(pair)
    pixel = len(dataset.bands) * np.dtype(dataset.dtype).itemsize + 1  # bytes, with the label
    return _Cut(pair, len(windows), pixel * sum(window.height * window.width for window in windows))


def _group(cuts: Sequence[_Cut]) -> list[list[_Cut]]:
    """Group consecutive images up to `PIECE_TILES` and `PIECE_BYTES`; a larger image is a group by itself."""
    groups: list[list[_Cut]] = []
    tiles = size = 0
    for cut in cuts:
        if not cut.tiles:
            continue
        if not groups or tiles + cut.tiles > PIECE_TILES or size + cut.size > PIECE_BYTES:
            groups.append([])
            tiles = size = 0
        groups[-1].append(cut)
        tiles, size = tiles + cut.tiles, size + cut.size
    return groups


def _fingerprint(
    dataset: Dataset,
    storage: tuple[str, str],
    group: Sequence[_Cut],
    files: Mapping[str, int],
    folder: Path,
) -> str:
    layout = _LAYOUT, storage, dataset.tile, np.dtype(dataset.dtype).name, tuple(dataset.bands)
    digest = hashlib.sha256(repr(layout).encode())
    for pair, tiles, _ in group:
        paths = [_below(folder, path) for path in (pair.image, pair.label)]
        sizes = [files[path] for path in paths]
        digest.update(repr((pair.split, pair.domain, pair.name, *paths, *sizes, tiles)).encode())
    return digest.hexdigest()
