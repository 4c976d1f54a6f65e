"""Scores by domain and class: computed from a tally, stored as JSON, printed as a table."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from spectralmoe_jax.config.schema import EvaluateConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.escapes import plain
from spectralmoe_jax.evaluation.metrics import ConfusionMatrix, Tally, mutual_information
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.inference.sliding_window import Predict

Report = dict[str, Any]
MODALITIES = ("visual", "depth")
_LOG_WIDTH = 200  # without a terminal, rich would cut wide tables at 80 columns


def score(
    predict: Predict,
    examples: Iterable[tuple[str, str, np.ndarray, np.ndarray]],
    names: Sequence[str],
    settings: EvaluateConfig,
) -> Report:
    """Score whole images.

    Args:
      predict: see `inference.sliding_window`.
      examples: (domain, name, image (H, W, bands) raw, label (H, W) with 255 for ignore).
      names: names of the classes.
      settings: side and overlap of the windows.

    Returns:
      See `make_report`.

    Raises:
      UserError: there is no image.
    """
    tally = Tally(names)
    tally.count_images(predict, examples, settings)
    return make_report(tally)


def make_report(tally: Tally) -> Report:
    """Compute the scores of a tally, as JSON values.

    Returns:
      `miou`, `overall_accuracy`, `kappa`, `iou`, `f1` and `accuracy` by class of all pixels together (`all`)
      and of each domain (`domains`), `mean_miou` over the domains that have labels, the confusion matrices,
      the number of images, and `routing` (see `routing_report`) where tokens of experts were counted. Where
      scores were counted, `reliability` (see `Reliability.report`) with each temperature, and `boundary_iou`
      by class in `all`.

    Raises:
      UserError: there is no image.
    """
    names, total, domains = tally.names, tally.total(), tally.domains()
    report: Report = {
        "classes": names,
        "images": len(tally.images),
        "miou": total.miou,
        "mean_miou": _mean([matrix.miou for matrix in domains.values()]),
        "all": _scores(total, names),
        "domains": {domain: _scores(matrix, names) for domain, matrix in domains.items()},
    }
    if tally.routing is not None and tally.routing.counts is not None:
        report["routing"] = routing_report(tally.routing.counts)
    if tally.boundaries is not None:
        report["all"]["boundary_iou"] = dict(zip(names, tally.boundaries.iou.tolist(), strict=True))
    if tally.reliability:
        report["reliability"] = [reliability.report() for reliability in tally.reliability]
    return report


def routing_report(counts: np.ndarray) -> list[Report]:
    """Compute how strongly experts specialise in classes.

    Args:
      counts: (L, J, E, C) of `RoutingCounts`.

    Returns:
      One entry for each layer and modality, layers numbered from 1: `nmi`, the normalised mutual information
      of expert and class, and the tokens' `counts` (E, C).
    """
    return [
        {
            "layer": layer + 1,
            "modality": MODALITIES[modality],
            "nmi": mutual_information(counts[layer, modality]),
            "counts": counts[layer, modality].tolist(),
        }
        for layer, modality in np.ndindex(*counts.shape[:2])
    ]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _scores(matrix: ConfusionMatrix, names: Sequence[str]) -> Report:
    return {
        "miou": matrix.miou,
        "overall_accuracy": matrix.overall_accuracy,
        "kappa": matrix.kappa,
        "iou": dict(zip(names, matrix.iou.tolist(), strict=True)),
        "f1": dict(zip(names, matrix.f1.tolist(), strict=True)),
        "accuracy": dict(zip(names, matrix.accuracy.tolist(), strict=True)),
        "confusion": matrix.counts.tolist(),
    }


def write_report(report: Report, path: str | os.PathLike[str]) -> None:
    """Write a report as JSON, whole or not at all; a score that does not exist is null.

    Raises:
      UserError: the file cannot be written.
    """
    path = Path(path)
    try:
        with atomic_write(path) as aside:
            aside.write_text(json.dumps(without_nan(report), indent=2) + "\n", encoding="utf-8")
    except OSError as problem:
        raise UserError(f"{path}: cannot be written ({problem.strerror}); choose another --output") from None


def print_table(report: Report, title: str = "", console: Console | None = None) -> None:
    """Print IoU by class, a column for each domain and one for all pixels, mIoU and accuracy below.

    Further columns have the accuracy, F1 and boundary IoU of all pixels.

    Args:
      report: from `make_report`.
      title: line above the table.
      console: where to print; standard output by default.
    """
    columns = {**report["domains"], "all": report["all"]}
    table = Table(box=None, header_style="bold")
    table.add_column("IoU, %")
    for name in columns:
        table.add_column(plain(name), justify="right")
    further = {"accuracy": "accuracy, all", "f1": "F1, all", "boundary_iou": "boundary IoU, all"}
    further = {key: title for key, title in further.items() if key in report["all"]}
    for title_of_column in further.values():
        table.add_column(title_of_column, justify="right")
    for name in report["classes"]:
        more = (_percent(report["all"][key][name]) for key in further)
        table.add_row(plain(name), *(_percent(scores["iou"][name]) for scores in columns.values()), *more)
    table.add_section()
    means = {key: _mean(list(report["all"][key].values())) for key in further}
    means["accuracy"] = report["all"]["overall_accuracy"]
    overall = (_percent(means[key]) for key in further)
    table.add_row("mIoU", *(_percent(scores["miou"]) for scores in columns.values()), *overall, style="bold")
    console = console or (Console() if sys.stdout.isatty() else Console(width=_LOG_WIDTH))
    if title:
        console.print(plain(title, "bold"))
    console.print(table)
    labelled = sum(not math.isnan(scores["miou"]) for scores in report["domains"].values())
    if labelled > 1:
        console.print(f"mean mIoU over {labelled} domains: {_percent(report['mean_miou'])}")
    for found in report.get("reliability", ()):
        console.print(
            f"probabilities with temperature {found['temperature']:.3g}: expected calibration error "
            f"{_percent(found['expected_calibration_error'])}, Brier score {found['brier']:.3f}",
            highlight=False,
        )
    for modality in dict.fromkeys(entry["modality"] for entry in report.get("routing", ())):
        nmi = [f"{e['nmi']:.2f}" for e in report["routing"] if e["modality"] == modality]
        console.print(plain(f"mutual information of expert and class by layer, {modality}: {' '.join(nmi)}"))


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def without_nan(value: Any) -> Any:
    """Return JSON values with null for every NaN."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
