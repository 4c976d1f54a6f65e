"""Results of a grid as tables (Markdown, LaTeX, CSV) and plots (PNG, PDF)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spectralmoe_jax.ablation.results import Results
from spectralmoe_jax.escapes import csv_cell, drawn, latex, markdown, printable
from spectralmoe_jax.files import atomic_write

MISSING = "-"
_INK, _QUIET, _REFERENCE = "#1b1f24", "#8a93a0", "#0072b2"


class Row(NamedTuple):
    """One row of the table.

    Attributes:
      cells: texts below `header`.
      note: why runs are missing, or empty.
      is_reference: whether the row is that of the reference.
    """

    cells: list[str]
    note: str
    is_reference: bool


def header(results: Results) -> list[str]:
    """Return the names of the columns; mIoU is in percent, differences in percentage points."""
    domains = domains_of(results)
    shown = [f"mIoU {domain}" for domain in domains] if len(domains) > 1 else []
    level = f"{100 * results['bootstrap']['level']:g} %"
    held_out = ["held-out"] if _has_held_out(results) else []
    return [
        "variant", "trainable", "runs", *held_out, "mIoU", "± std", *shown, "difference", f"{level} interval"
    ]  # fmt: skip


def _has_held_out(results: Results) -> bool:
    """Return whether any run was scored on held-out source images."""
    return any(_held_out(variant) is not None for variant in results["variants"].values())


def _held_out(variant: Results) -> float | None:
    """Return the mean held-out score of a variant; results of earlier versions have none."""
    return variant.get("held_out", {}).get("mean")


def domains_of(results: Results) -> list[str]:
    """Return the target's domains, in the order of the first run that is done."""
    runs = (run for variant in results["variants"].values() for run in variant["runs"])
    return next((list(run["domains"]) for run in runs if "domains" in run), [])


def rows(results: Results) -> list[Row]:
    """Return one row for each variant."""
    domains, has_held_out = domains_of(results), _has_held_out(results)
    found = []
    for name, variant in results["variants"].items():
        done = [run for run in variant["runs"] if "miou" in run]
        difference = variant["difference"] or {}
        interval = difference.get("interval")
        shown = [_mean([run["domains"].get(domain) for run in done]) for domain in domains]
        cells = [
            name,
            f"{done[0]['trainable']:,}" if done else MISSING,
            f"{len(done)}/{len(variant['runs'])}",
            *([percent(_held_out(variant))] if has_held_out else []),
            percent(variant["miou"]["mean"]),
            percent(variant["miou"]["std"]),
            *([percent(value) for value in shown] if len(domains) > 1 else []),
            percent(difference.get("mean"), sign=True),
            MISSING if interval is None else f"{percent(interval[0], True)} to {percent(interval[1], True)}",
        ]
        errors = list(dict.fromkeys(run["error"] for run in variant["runs"] if "error" in run))
        found.append(Row(cells, "; ".join(errors), name == results["reference"]))
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def percent(value: float | None, sign: bool = False) -> str:
    """Format a share as a percentage with two decimals."""
    return MISSING if value is None else f"{100 * value:{'+' if sign else ''}.2f}"


def markdown_table(results: Results) -> str:
    """Format a Markdown table with its caption and what failed."""
    names, lines = header(results), []
    lines.append(f"{markdown(caption(results).strip())}\n")
    lines.append(f"| {' | '.join(map(markdown, names))} |")
    lines.append(f"|---|{'---:|' * (len(names) - 1)}")
    for row in rows(results):
        first, *rest = row.cells
        shown = [markdown(cell) for cell in (first, *rest)]
        shown[0] = f"**{shown[0]}**" if row.is_reference else shown[0]
        lines.append(f"| {' | '.join(shown)} |")
    failed = [
        f"- {markdown(row.cells[0].strip())}: {markdown(row.note)}" for row in rows(results) if row.note
    ]
    return "\n".join([*lines, *(["\nFailed:\n", *failed] if failed else [])]) + "\n"


def caption(results: Results) -> str:
    """Return a caption that explains the numbers of the table."""
    seeds = ", ".join(map(str, results["seeds"]))
    over = " and ".join(results["bootstrap"].get("over", ["images"]))
    held_out = "held-out: mIoU on held-out source images; " if _has_held_out(results) else ""
    return (
        f"{results['title'] or 'Ablation'}. {results['base']}, seeds {seeds}; {held_out}mIoU on the target's "
        f"{results['images']} images in %, mean and sample standard deviation over seeds; difference to "
        f"{results['reference']} in points, with the paired bootstrap interval over {over}."
    )


def latex_table(results: Results) -> str:
    """Format a LaTeX `tabular` with booktabs."""
    names = [latex(name) for name in header(results)]
    lines = [
        f"% {printable(caption(results))}",
        rf"\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}",
        r"\toprule",
    ]
    lines += [" & ".join(names) + r" \\", r"\midrule"]
    for row in rows(results):
        first, *rest = row.cells
        lines.append(" & ".join([latex(first), *map(_number, rest)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _number(cell: str) -> str:
    """Set a cell that starts with a sign in math mode, for a true minus sign."""
    text = latex(cell)
    return f"${text}$".replace(" to ", "$ to $") if cell[:1] in ("+", "-") and len(cell) > 1 else text


def csv_table(results: Results) -> str:
    """Format the table as CSV, as it is shown, one line for each variant."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(
        map(csv_cell, cells) for cells in (header(results), *(row.cells for row in rows(results)))
    )
    return out.getvalue()


def csv_of_runs(results: Results) -> str:
    """Format one line for each run as CSV, with full precision and every class, for other programs."""
    classes: list[str] = results["classes"]
    domains = domains_of(results)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "variant",
            "seed",
            "trainable",
            "miou",
            "mean_miou",
            "held_out",
            "overall_accuracy",
            *(csv_cell(f"miou {domain}") for domain in domains),
            *(csv_cell(f"iou {name}") for name in classes),
            "error",
        ]
    )
    for name, variant in results["variants"].items():
        for run in variant["runs"]:
            known = ("trainable", "miou", "mean_miou", "held_out", "overall_accuracy")
            values: list[Any] = [run.get(key) for key in known]
            values += [run.get("domains", {}).get(domain) for domain in domains]
            values += [run.get("iou", {}).get(each) for each in classes]
            writer.writerow([csv_cell(name), run["seed"], *values, csv_cell(run.get("error"))])
    return out.getvalue()


def write_plots(results: Results, folder: Path) -> None:
    """Write plots of scores and classes as PNG and PDF; none where no run is done."""
    if not results["classes"]:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in (("scores", draw_scores(results)), ("classes", draw_classes(results))):
        for kind in ("png", "pdf"):
            with atomic_write(folder / f"{name}.{kind}") as aside:
                figure.savefig(aside, format=kind)


def draw_scores(results: Results) -> Any:
    """Plot mIoU of every run with mean and deviation, a line for each variant, as a matplotlib figure."""
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
            axes.errorbar(
                np.mean(values),
                row,
                xerr=deviation,
                fmt="D",
                color=colour,
                markersize=5,
                capsize=3,
                linewidth=1.2,
                zorder=3,
            )
    reference = results["variants"][results["reference"]]["miou"]["mean"]
    if reference is not None:
        axes.axvline(100 * reference, color=_REFERENCE, linewidth=0.8, linestyle=":", zorder=1)
    axes.set_yticks(range(len(names)), list(map(drawn, names)))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("mIoU on the target, %: each seed, mean and standard deviation")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def draw_classes(results: Results) -> Any:
    """Plot IoU of every class and variant as a heat map with numbers, as a matplotlib figure."""
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
        axes.text(
            column,
            row,
            f"{value:.1f}",
            ha="center",
            va="center",
            size=8,
            color="white" if value < 55 else _INK,
        )
    axes.set_xticks(range(len(classes)), list(map(drawn, classes)), rotation=30, ha="right")
    axes.set_yticks(range(len(names)), list(map(drawn, names)))
    axes.set_title("IoU on the target by class, %, mean over seeds", size=10)
    axes.tick_params(length=0)
    return figure
