"""What a report is made of: a run's files, or a grid's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spectralmoe_jax.ablation.ablate import GRID_FILE, RESULTS
from spectralmoe_jax.config.load import CONFIG_FILE, read_run_config
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.best_checkpoint import EVALUATION, read_evaluation
from spectralmoe_jax.inference.pictures import Scene, read_pictures
from spectralmoe_jax.training.logging import METRICS_FILE


class Run(NamedTuple):
    """What a run left.

    metrics: records by kind (`train`, `evaluate`, `experts`), by step. evaluation: of the target, None where
    there is none yet. scenes: may be empty.
    """

    name: str
    config: RunConfig
    metrics: dict[str, list[dict[str, Any]]]
    evaluation: dict[str, Any] | None
    scenes: list[Scene]

    def series(self, kind: str, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of a logged number, NaN where it was not finite; empty where it is not there."""
        records = [record for record in self.metrics.get(kind, ()) if name in record]
        values = [np.nan if record[name] is None else record[name] for record in records]
        return [record["step"] for record in records], values


class GridRecord(NamedTuple):
    """results: of `results.json`. runs: of each variant the first that is done, by its name."""

    results: dict[str, Any]
    runs: dict[str, Run]


def read_run(folder: Path, name: str = "") -> Run:
    """A run's files. Raises UserError where the folder holds none."""
    config = read_run_config(folder)
    metrics: dict[str, list[dict[str, Any]]] = {}
    path = folder / METRICS_FILE
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a killed run may leave its last line unfinished
        metrics.setdefault(record["kind"], []).append(record)
    return Run(name or config.name, config, metrics, read_evaluation(folder), read_pictures(folder))


def read_grid(folder: Path) -> GridRecord:
    """A grid's files. Raises UserError where there are no results yet."""
    path = folder / RESULTS
    if not path.is_file():
        raise UserError(f"{path} does not exist: let `spectralmoe ablate` finish, or give it --collect")
    results = json.loads(path.read_text())
    places = json.loads((folder / GRID_FILE).read_text())["runs"]
    runs: dict[str, Run] = {}
    for place, cell in places.items():
        if cell["variant"] not in runs and (folder / place / EVALUATION).is_file():
            runs[cell["variant"]] = read_run(folder / place, cell["variant"])
    return GridRecord(results, runs)


def is_grid(folder: Path) -> bool:
    """Whether a folder is that of a grid. Raises UserError where it is that of nothing we know."""
    if (folder / GRID_FILE).is_file():
        return True
    if (folder / CONFIG_FILE).is_file():
        return False
    raise UserError(f"{folder}: neither a run nor a grid; give a folder that `train` or `ablate` wrote")
