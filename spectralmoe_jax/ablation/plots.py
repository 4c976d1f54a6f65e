"""The results of a grid as pictures, for a paper or a slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spectralmoe_jax.ablation.results import Results
from spectralmoe_jax.files import atomic_write

_INK, _QUIET, _REFERENCE = "#1b1f24", "#8a93a0", "#0072b2"


def draw_scores(results: Results) -> Any:
    """A matplotlib figure: mIoU of every run, their mean and deviation, a line a variant."""
    from matplotlib.figure import Figure

    names = list(results["variants"])
    figure = Figure(figsize=(6.4, 1.1 + 0.32 * len(names)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for row, name in enumerate(names):
        variant = results["variants"][name]
        values = [100 * run["miou"] for run in variant["runs"] if run.get("miou") is not None]
        colour = _REFERENCE if name == results["reference"] else _INK
        axes.plot(values, [row] * len(values), "o", color=_QUIET, markersize=4, alpha=0.8, zorder=2)
        if values:
            deviation = 100 * (variant["miou"]["std"] or 0)
            axes.errorbar(np.mean(values), row, xerr=deviation, fmt="D", color=colour, markersize=5,
                          capsize=3, linewidth=1.2, zorder=3)  # fmt: skip
    reference = results["variants"][results["reference"]]["miou"]["mean"]
    if reference is not None:
        axes.axvline(100 * reference, color=_REFERENCE, linewidth=0.8, linestyle=":", zorder=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("mIoU on the target, %: each seed, mean and standard deviation")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def draw_classes(results: Results) -> Any:
    """A matplotlib figure: IoU of every class and variant as a map of colours with its numbers."""
    from matplotlib.figure import Figure

    names, classes = list(results["variants"]), results["classes"]
    means = [[results["variants"][name]["iou"][each]["mean"] for each in classes] for name in names]
    values = 100 * np.array([[np.nan if v is None else v for v in row] for row in means], np.float64)
    size = (2.2 + 0.72 * len(classes), 1.2 + 0.34 * len(names))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(values, vmin=0, vmax=100, cmap="cividis", aspect="auto")
    for row, column in np.argwhere(~np.isnan(values)):
        value = values[row, column]
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", size=8,
                  color="white" if value < 55 else _INK)  # fmt: skip
    axes.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_title("IoU on the target by class, %, mean over seeds", size=10)
    axes.tick_params(length=0)
    return figure


def write_plots(results: Results, folder: Path) -> None:
    """`scores` and `classes`, as PNG and PDF; nothing where no run is done."""
    if not results["classes"]:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (("scores", draw_scores(results)), ("classes", draw_classes(results))):
        for kind in ("png", "pdf"):
            with atomic_write(folder / f"{name}.{kind}") as aside:
                figure.savefig(aside, format=kind)
