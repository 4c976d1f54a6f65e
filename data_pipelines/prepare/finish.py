"""What stands beside the shards when all are there: TensorFlow Datasets' description, statistics, index."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.datasets.dataset import Benchmark
from data_pipelines.prepare.cut import Histograms, Workspace, read_note
from data_pipelines.prepare.plan import Piece, Plan

_INDEXED = ("name", "image", "domain", "height", "width", "valid", "labelled", "class_pixels")


def finish(benchmark: Benchmark, version: str, plan: Plan, workspace: Workspace) -> dict[str, Any]:
    """Writes all that is not a shard, but for the contact sheet; returns what stands in statistics.json.

    The same files give the same bytes: no times, no paths of this machine.
    """
    index: dict[str, np.ndarray] = {}
    splits: dict[str, Any] = {}
    shards: dict[str, tuple[list[int], int]] = {}
    present = list(dict.fromkeys(piece.split for piece in plan.pieces))
    source_splits = [split for split in present if split in benchmark.source] or present[:1]
    source = Histograms(len(benchmark.bands), benchmark.dtype)
    for split in present:
        pieces = [piece for piece in plan.pieces if piece.split == split]
        notes = [read_note(workspace.note(piece)) for piece in pieces]
        histograms = Histograms(len(benchmark.bands), benchmark.dtype)
        for note in notes:
            histograms.merge(note)
        if split in source_splits:
            source.counts += histograms.counts
        columns = _columns(notes)
        index.update({f"{split}/{key}": columns[key] for key in _INDEXED})
        splits[split] = _split_statistics(benchmark, pieces, columns, histograms)
        shards[split] = [piece.tiles for piece in pieces], sum(int(note["bytes"]) for note in notes)
    statistics = {
        "benchmark": benchmark.name,
        "version": version,
        "source_fingerprint": plan.fingerprint,
        "dtype": np.dtype(benchmark.dtype).name,
        "bands": list(benchmark.bands),
        "classes": list(benchmark.classes),
        "source_splits": source_splits,
        "source_bands": source.summary(benchmark.bands),
        "splits": splits,
    }
    with open(workspace.shards / "index.npz", "wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **index)
    (workspace.shards / "statistics.json").write_text(json.dumps(statistics, indent=2) + "\n")
    _describe_to_tfds(benchmark, version, shards, workspace.shards)
    return statistics


def _columns(notes: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    columns = {key: np.concatenate([note[key] for note in notes]) for key in _INDEXED if key != "labelled"}
    return {**columns, "labelled": columns["class_pixels"].sum(axis=1)}


def _split_statistics(
    benchmark: Benchmark, pieces: Sequence[Piece], columns: Mapping[str, np.ndarray], histograms: Histograms
) -> dict[str, Any]:
    pixels = columns["class_pixels"].sum(axis=0)
    labelled = int(pixels.sum())
    return {
        "images": sum(len(piece.pairs) for piece in pieces),
        "tiles": len(columns["name"]),
        "domains": len(set(columns["domain"].tolist())),
        "pixels": int((columns["height"].astype(np.int64) * columns["width"]).sum()),
        "valid_pixels": int(columns["valid"].sum()),
        "labelled_pixels": labelled,
        "bands": histograms.summary(benchmark.bands),
        "classes": {
            name: {"pixels": int(count), "share": float(count / labelled) if labelled else 0.0}
            for name, count in zip(benchmark.classes, pixels, strict=True)
        },
    }


def _describe_to_tfds(
    benchmark: Benchmark, version: str, shards: Mapping[str, tuple[list[int], int]], folder: Path
) -> None:
    """Writes dataset_info.json, features.json and LICENSE as a builder would."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    from data_pipelines.datasets.builder import dataset_info

    identity = DatasetIdentity(
        name=benchmark.name,
        version=tfds.core.Version(version),
        data_dir=str(folder),
        module_name=f"data_pipelines.datasets.{benchmark.name}",
    )
    info = dataset_info(benchmark, identity)
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(
        tfds.core.splits.SplitDict(
            [tfds.core.SplitInfo(name, lengths, size) for name, (lengths, size) in shards.items()]
        )
    )
    info.write_to_directory(folder)
