"""Statistics, index and description of prepared tiles, gathered from the notes of all pieces.

Means, deviations and percentiles are exact: they come from the count of every value of every band.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.datasets.dataset import Dataset
from data_pipelines.prepare.plan import Piece, Plan, Workspace, read_note

PERCENTILES = (1, 2, 25, 50, 75, 98, 99)
_INDEXED = ("name", "image", "domain", "height", "width", "valid", "labelled", "class_pixels")


class Histograms:
    """Count of every value in every band, for mean, deviation and percentiles without rounding.

    Pixels that are zero in every band (padding at an image's edge, no data) do not count.

    Args:
      bands: number of bands.
      dtype: type of the pixels, 8- or 16-bit integers.

    Attributes:
      values: all values of the type in ascending order, (V,) int64.
      counts: their counts, (bands, V) int64.
    """

    def __init__(self, bands: int, dtype: Any):
        self._dtype = np.dtype(dtype)
        if self._dtype.kind not in "ui" or self._dtype.itemsize > 2:
            raise ValueError(f"pixels of type {self._dtype}: store 8- or 16-bit integers")
        limits = np.iinfo(self._dtype)
        self.values = np.arange(limits.min, limits.max + 1)
        self.counts = np.zeros((bands, len(self.values)), np.int64)

    def add(self, image: np.ndarray) -> int:
        """Count the pixels of an image (H, W, bands); return how many are not zero in every band."""
        unsigned = np.dtype(f"u{self._dtype.itemsize}")
        columns = np.ascontiguousarray(image.reshape(-1, image.shape[-1]).T)  # (H, W, bands) -> (bands, H W)
        valid = int(np.count_nonzero(columns.any(axis=0)))
        zero = -int(self.values[0])  # position of the value 0; seen as unsigned, negative values come last
        for counts, column in zip(self.counts, columns.view(unsigned), strict=True):
            counts += np.roll(np.bincount(column, minlength=len(self.values)), zero)
            counts[zero] -= columns.shape[1] - valid
        return valid

    def merge(self, sparse: Mapping[str, np.ndarray]) -> None:
        """Add the counts that `sparse` of another histogram returned."""
        np.add.at(self.counts, (sparse["band"], sparse["value"]), sparse["count"])

    def sparse(self) -> dict[str, np.ndarray]:
        """Return the counts above zero: `band`, `value` (position in `values`) and `count`, (N,) each."""
        band, value = np.nonzero(self.counts)
        return {
            "band": band.astype(np.uint16),
            "value": value.astype(np.uint16),
            "count": self.counts[band, value],
        }

    def summary(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return mean, std (of the population), min, max and percentiles of each band; None without pixels.

        Args:
          names: names of the bands.
        """
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
        """Interpolate linearly between the two nearest order statistics, as `numpy.percentile` does."""
        place, rest = divmod(percent * (total - 1), 100)
        ranks = np.searchsorted(np.cumsum(counts), [place, min(place + 1, total - 1)], side="right")
        low, high = (int(value) for value in self.values[ranks])
        return low + (high - low) * rest / 100


def write_metadata(dataset: Dataset, version: str, plan: Plan, workspace: Workspace) -> dict[str, Any]:
    """Write index, statistics and TensorFlow Datasets' description beside the shards.

    The same files give the same bytes: nothing written depends on time or machine.

    Args:
      dataset: the data set.
      version: version of the prepared tiles.
      plan: all pieces, each of them finished.
      workspace: their shards and notes.

    Returns:
      The content of statistics.json.
    """
    index: dict[str, np.ndarray] = {}
    splits: dict[str, Any] = {}
    shards: dict[str, tuple[list[int], int]] = {}
    present = list(dict.fromkeys(piece.split for piece in plan.pieces))
    source_splits = [split for split in present if split in dataset.source] or present[:1]
    source = Histograms(len(dataset.bands), dataset.dtype)
    for split in present:
        pieces = [piece for piece in plan.pieces if piece.split == split]
        notes = [read_note(workspace.note(piece)) for piece in pieces]
        histograms = Histograms(len(dataset.bands), dataset.dtype)
        for note in notes:
            histograms.merge(note)
        if split in source_splits:
            source.counts += histograms.counts
        columns = _columns(notes)
        index.update({f"{split}/{key}": columns[key] for key in _INDEXED})
        splits[split] = _split_statistics(dataset, pieces, columns, histograms)
        shards[split] = [piece.tiles for piece in pieces], sum(int(note["bytes"]) for note in notes)
    statistics = {
        "benchmark": dataset.name,
        "version": version,
        "source_fingerprint": plan.fingerprint,
        "dtype": np.dtype(dataset.dtype).name,
        "bands": list(dataset.bands),
        "classes": list(dataset.classes),
        "source_splits": source_splits,
        "source_bands": source.summary(dataset.bands),
        "splits": splits,
    }
    with open(workspace.shards / "index.npz", "wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **index)
    (workspace.shards / "statistics.json").write_text(
        json.dumps(statistics, indent=2) + "\n", encoding="utf-8"
    )
    # TensorFlow Datasets takes seconds to import, which checking a download folder does not need
    from data_pipelines.datasets.builder import write_description

    write_description(dataset, version, shards, workspace.shards)
    return statistics


def _columns(notes: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenate the notes of a split: (N,) each, `class_pixels` (N, K)."""
    columns = {key: np.concatenate([note[key] for note in notes]) for key in _INDEXED if key != "labelled"}
    return {**columns, "labelled": columns["class_pixels"].sum(axis=1)}


def _split_statistics(
    dataset: Dataset, pieces: Sequence[Piece], columns: Mapping[str, np.ndarray], histograms: Histograms
) -> dict[str, Any]:
    pixels = columns["class_pixels"].sum(axis=0)  # (N, K) -> (K,)
    labelled = int(pixels.sum())
    return {
        "images": sum(len(piece.pairs) for piece in pieces),
        "tiles": len(columns["name"]),
        "domains": len(set(columns["domain"].tolist())),
        "pixels": int((columns["height"].astype(np.int64) * columns["width"]).sum()),
        "valid_pixels": int(columns["valid"].sum()),
        "labelled_pixels": labelled,
        "bands": histograms.summary(dataset.bands),
        "classes": {
            name: {"pixels": int(count), "share": float(count / labelled) if labelled else 0.0}
            for name, count in zip(dataset.classes, pixels, strict=True)
        },
    }
