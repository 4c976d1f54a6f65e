"""What there is to prepare, and in which pieces: a function of the sorted files alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.datasets.dataset import Benchmark, Listing, Pair
from spectralmoe_jax.errors import UserError

PIECE_TILES, PIECE_BYTES = 200, 1 << 29
"""Most that a piece holds, some seconds of work; an image of more tiles is a piece of its own."""

_PLAIN, _COMPRESSED = "group_size:1,uncompressed", "group_size:1"
_LAYOUT = 1  # of what a piece holds: raised where an older unfinished folder could not be gone on with


@dataclass(frozen=True)
class Piece:
    """One shard: consecutive files of one split.

    Attributes:
      split, number: the shard's place among those of its split.
      shard: its file name, as TensorFlow Datasets wants it.
      pairs: the files.
      tiles: how many tiles they give together.
      options: of the ArrayRecord writer.
      fingerprint: a hash of the names and sizes of the files, and of how they are cut and stored.
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
    """All pieces, in order of splits and files, and what they are made of.

    Attributes:
      files: size in bytes of every file, by its path below the source folder.
      size: bytes of all tiles before compression.
    """

    pieces: tuple[Piece, ...]
    files: Mapping[str, int]
    size: int

    @property
    def fingerprint(self) -> str:
        """A hash of those of all pieces."""
        return hashlib.sha256("".join(piece.fingerprint for piece in self.pieces).encode()).hexdigest()

    @property
    def tiles(self) -> int:
        return sum(piece.tiles for piece in self.pieces)

    @property
    def images(self) -> int:
        return sum(len(piece.pairs) for piece in self.pieces)


def list_source(benchmark: Benchmark, source: Path) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """The pairs of a source folder, sorted by split, domain and name, and what is missing, a line each.

    Raises:
      UserError: no such folder, none of the benchmark's files in it, or two files of one name.
    """
    if not source.is_dir():
        raise UserError(f"{source}: no such folder, give --source the folder of the downloaded files")
    listing = benchmark.find(source)
    if not listing.pairs:
        raise UserError(
            f"{source}: no file of {benchmark.title} is where it should be"
            + (f" (missing: {'; '.join(listing.missing[:3])})" if listing.missing else "")
            + f"; download: {benchmark.download}"
        )
    order = {split: place for place, split in enumerate(benchmark.splits)}
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
    return pairs, _missing(benchmark, listing)


def make_plan(benchmark: Benchmark, source: Path, pairs: Sequence[Pair], compress: bool = False) -> Plan:
    """Divides sorted pairs into pieces. Opens at most the headers of files.

    Args:
      compress: store smaller records; reading them takes several times as long.

    Raises:
      UserError: a file that cannot be opened or is not below `source`, or no tile at all.
    """
    with ThreadPoolExecutor(4) as pool:  # listing tens of thousands of files waits for the disk
        cuts = list(pool.map(lambda pair: _cut(benchmark, pair), pairs))
        files = dict(pool.map(lambda path: _size(source, path), _paths(pairs)))
    options = _COMPRESSED if compress else _PLAIN
    pieces = []
    for split in benchmark.splits:
        groups = _group([cut for cut in cuts if cut.pair.split == split])
        for number, group in enumerate(groups):
            shard = f"{benchmark.name}-{split}.array_record-{number:05d}-of-{len(groups):05d}"
            fingerprint = _fingerprint(benchmark, (shard, options), group, files, source)
            members = tuple(cut.pair for cut in group)
            tiles = sum(cut.tiles for cut in group)
            pieces.append(Piece(split, number, shard, members, tiles, options, fingerprint))
    if not pieces:
        raise UserError(f"{source}: its {len(pairs)} images are empty: download them again")
    return Plan(tuple(pieces), files, sum(cut.size for cut in cuts))


def difference(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    """What changed between two listings (path to size), in words; empty where nothing did."""
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


def _missing(benchmark: Benchmark, listing: Listing) -> tuple[str, ...]:
    found = dict.fromkeys(benchmark.splits, 0)
    for pair in listing.pairs:
        found[pair.split] += 1
    short = tuple(
        f"split {split}: {found[split]:,} of {count:,} published images are here"
        for split, count in benchmark.counts.items()
        if found[split] < count
    )
    return (*listing.missing, *short)


def _paths(pairs: Iterable[Pair]) -> list[Path]:
    return list(dict.fromkeys(path for pair in pairs for path in (pair.image, pair.label)))


def _size(source: Path, path: Path) -> tuple[str, int]:
    try:
        return _below(source, path), os.stat(path).st_size
    except OSError as problem:
        raise UserError(f"{path}: {problem.strerror}: restore the file") from problem


def _below(source: Path, path: Path) -> str:
    return Path(path).relative_to(source).as_posix()


class _Cut(NamedTuple):
    """An image, how many tiles it gives, and their bytes before compression."""

    pair: Pair
    tiles: int
    size: int


def _cut(benchmark: Benchmark, pair: Pair) -> _Cut:
    windows = benchmark.cells(pair)
    pixel = 1 + len(benchmark.bands) * np.dtype(benchmark.dtype).itemsize
    return _Cut(pair, len(windows), pixel * sum(window.height * window.width for window in windows))


def _group(cuts: Sequence[_Cut]) -> list[list[_Cut]]:
    """Consecutive images in groups that keep to `PIECE_TILES` and `PIECE_BYTES`, or of one image."""
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
    benchmark: Benchmark,
    how: tuple[str, str],
    group: Sequence[_Cut],
    files: Mapping[str, int],
    source: Path,
) -> str:
    what = _LAYOUT, how, benchmark.tile, np.dtype(benchmark.dtype).name, tuple(benchmark.bands)
    digest = hashlib.sha256(repr(what).encode())
    for pair, tiles, _ in group:
        paths = [_below(source, path) for path in (pair.image, pair.label)]
        sizes = [files[path] for path in paths]
        digest.update(repr((pair.split, pair.domain, pair.name, *paths, *sizes, tiles)).encode())
    return digest.hexdigest()
