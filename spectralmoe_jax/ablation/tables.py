"""The results of a grid as tables: Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from spectralmoe_jax.ablation.results import Results

MISSING = "-"


class Row(NamedTuple):
    """cells: texts below `header`. note: why runs are missing, or empty. is_reference: the variant is it."""

    cells: list[str]
    note: str
    is_reference: bool


def header(results: Results) -> list[str]:
    """The names of the columns, mIoU and differences in percent and percentage points."""
    domains = domains_of(results)
    shown = [f"mIoU {domain}" for domain in domains] if len(domains) > 1 else []
    level = f"{100 * results['bootstrap']['level']:g} %"
    return ["variant", "trainable", "runs", "mIoU", "± std", *shown, "difference", f"{level} interval"]


def domains_of(results: Results) -> list[str]:
    """The target's domains, in the order of the first run that is done."""
    runs = (run for variant in results["variants"].values() for run in variant["runs"])
    return next((list(run["domains"]) for run in runs if "domains" in run), [])


def rows(results: Results) -> list[Row]:
    """One row a variant."""
    domains = domains_of(results)
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
    """A share as a percentage with two decimals."""
    return MISSING if value is None else f"{100 * value:{'+' if sign else ''}.2f}"


def markdown(results: Results) -> str:
    """A table, what it is of, and what failed."""
    names, lines = header(results), []
    lines.append(f"{caption(results)}\n")
    lines.append(f"| {' | '.join(names)} |")
    lines.append(f"|---|{'---:|' * (len(names) - 1)}")
    for row in rows(results):
        first, *rest = row.cells
        shown = [f"**{first}**" if row.is_reference else first, *rest]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in shown)} |")
    failed = [f"- {row.cells[0]}: {row.note}" for row in rows(results) if row.note]
    return "\n".join([*lines, *(["\nFailed:\n", *failed] if failed else [])]) + "\n"


def caption(results: Results) -> str:
    """What the numbers of a table are."""
    seeds = ", ".join(map(str, results["seeds"]))
    return (
        f"{results['title'] or 'Ablation'}. {results['base']}, seeds {seeds}; mIoU on the target's "
        f"{results['images']} images in %, mean and sample standard deviation over seeds; difference to "
        f"{results['reference']} in points, with the paired bootstrap interval over the images."
    )


def latex(results: Results) -> str:
    """A `tabular` of booktabs."""
    names = [_escaped(name) for name in header(results)]
    lines = [f"% {caption(results)}", rf"\begin{{tabular}}{{l{'r' * (len(names) - 1)}}}", r"\toprule"]
    lines += [" & ".join(names) + r" \\", r"\midrule"]
    lines += [" & ".join(_number(cell) for cell in row.cells) + r" \\" for row in rows(results)]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


_SPECIAL = {"\\": r"\textbackslash{}", "±": r"$\pm$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def _escaped(text: str) -> str:
    return "".join(_SPECIAL.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _number(cell: str) -> str:
    """Minus signs as such in what starts with a sign or a digit."""
    text = _escaped(cell)
    return f"${text}$".replace(" to ", "$ to $") if cell[:1] in ("+", "-") and len(cell) > 1 else text


def comma_separated(results: Results) -> str:
    """The table as it is shown, a line a variant."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header(results), *(row.cells for row in rows(results))])
    return out.getvalue()


def comma_separated_runs(results: Results) -> str:
    """One line a run, with full precision and every class: for other programs."""
    classes: list[str] = results["classes"]
    domains = domains_of(results)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["variant", "seed", "trainable", "miou", "mean_miou", "overall_accuracy",
         *(f"miou {domain}" for domain in domains), *(f"iou {name}" for name in classes), "error"]
    )  # fmt: skip
    for name, variant in results["variants"].items():
        for run in variant["runs"]:
            values: list[Any] = [run.get(k) for k in ("trainable", "miou", "mean_miou", "overall_accuracy")]
            values += [run.get("domains", {}).get(domain) for domain in domains]
            values += [run.get("iou", {}).get(each) for each in classes]
            writer.writerow([name, run["seed"], *values, run.get("error")])
    return out.getvalue()
