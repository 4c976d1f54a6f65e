"""`spectralmoe report`: one HTML page of a run or a grid, readable offline.

`report` evaluates a run if needed, reads its records (`figures`) and fills the templates beside this module.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from spectralmoe_jax import __version__
from spectralmoe_jax.ablation.tables import caption, header, percent, rows
from spectralmoe_jax.config.given import flatten
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.config.stored import read_run_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.escapes import printable
from spectralmoe_jax.evaluation.evaluate import checkpoint_steps, evaluate_best_checkpoint
from spectralmoe_jax.evaluation.stored_scores import EVALUATION_FILE, damage_to_evaluation, read_evaluation
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.inference.calibration import FILE as CALIBRATION_FILE
from spectralmoe_jax.inference.pictures import PICTURES_FILE
from spectralmoe_jax.reporting import figures
from spectralmoe_jax.reporting.figures import GridRecord, RunRecord, is_grid, read_grid, read_run
from spectralmoe_jax.reporting.svg import EXPERTS, Dots, dot_chart

REPORT_FILE = "report.html"
_LAST = (-1,)


def report(
    workdir: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    allow_code: bool = False,
) -> Path:
    """Write the page of a run or a grid; it needs no other file and no network.

    A run whose best checkpoint is not evaluated yet is evaluated on the target first. A grid is shown as
    `spectralmoe ablate` left it; no model is read.

    Args:
      workdir: folder that `spectralmoe train` or `ablate` wrote.
      output: file to write; default `report.html` in there.
      allow_code: whether the run's configuration may name code, which its evaluation then runs.

    Returns:
      The file.

    Raises:
      UserError: names the file or key that is wrong.
    """
    workdir = Path(workdir)
    if is_grid(workdir):
        page = grid_page(read_grid(workdir), str(workdir))
    else:
        _evaluate_if_needed(workdir, allow_code)
        page = run_page(read_run(workdir), str(workdir))
    path = workdir / REPORT_FILE if output is None else Path(output)
    try:
        with atomic_write(path) as aside:
            aside.write_text(page, encoding="utf-8")
    except OSError as problem:
        raise UserError(f"{path}: cannot be written ({problem.strerror}); choose another --output") from None
    return path


def _evaluate_if_needed(workdir: Path, allow_code: bool) -> None:
    """Evaluate a run without evaluation or pictures, or with newer checkpoints or a newer calibration.

    One that is damaged is made anew.
    """
    config = read_run_config(workdir, allow_code=True)  # nothing is built from it yet
    step, last = checkpoint_steps(workdir, config)
    if step is None:
        raise UserError(f"{workdir}: holds no checkpoint yet; train first")
    damage = damage_to_evaluation(workdir)
    evaluation = None if damage else read_evaluation(workdir)
    evaluated = evaluation and (evaluation.get("step"), evaluation.get("trained"))
    files = [workdir / name for name in (EVALUATION_FILE, CALIBRATION_FILE)]
    times = [file.stat().st_mtime if file.is_file() else 0.0 for file in files]
    is_old = times[0] < times[1]  # calibrated since
    if evaluated != (step, last) or is_old or not (workdir / PICTURES_FILE).is_file():
        try:
            evaluate_best_checkpoint(workdir, read_run_config(workdir, allow_code=allow_code))
        except UserError as problem:
            if damage is None:
                raise
            raise UserError(f"{damage}; that failed now: {problem}") from None


def run_page(run: RunRecord, shown: str) -> str:
    """Render the page of a run; `shown` is its folder as the page names it."""
    names, palette = run.config.classes.names, palette_of(run.config)
    evaluation = run.evaluation
    return rendered(
        "run.html",
        title=f"{run.name}: report of a run",
        shown=shown,
        run=run,
        key_figures=_key_figures(run),
        names=names,
        palette=palette,
        experts=figures.experts_of(run),
        expert_colours=EXPERTS,
        curves=figures.curves(run),
        evaluation=evaluation,
        class_rows=_class_rows(evaluation) if evaluation else [],
        confusion=_confusion(evaluation) if evaluation else [],
        reliability=figures.reliability(run),
        scenes=[
            {
                "scene": scene,
                "panels": figures.panels(scene, names, palette),
                "experts": figures.expert_maps(scene),
                "depth": figures.depth_pictures(scene),
            }
            for scene in run.scenes
        ],
        usage=figures.usage(run),
        specialisation=figures.specialisation(run),
        routing=figures.routing_tables(run),
        configuration=[f"config.{key} = {value!r}" for key, value in flatten(run.config.given).items()],
    )


def grid_page(grid: GridRecord, shown: str) -> str:
    """Render the page of a grid: its table, and of each variant the first run that is done."""
    results = grid.results
    first = next(iter(grid.runs.values()), None)
    return rendered(
        "grid.html",
        title=f"{results['title'] or 'Ablation'}: report of a grid",
        shown=shown,
        results=results,
        caption=caption(results),
        header=header(results),
        rows=rows(results),
        scores=Markup(_scores(results)),
        names=first.config.classes.names if first else [],
        palette=palette_of(first.config) if first else [],
        expert_colours=EXPERTS,
        experts=max((figures.experts_of(run) for run in grid.runs.values()), default=0),
        scenes=_inputs(first) if first else [],
        variants=[_variant(grid, name, run) for name, run in grid.runs.items()],
    )


def _inputs(run: RunRecord) -> list[dict[str, Any]]:
    """Draw input and truth of the scenes, which all runs of a grid share."""
    names, palette = run.config.classes.names, palette_of(run.config)
    return [{"scene": scene, "panels": figures.panels(scene, names, palette)[:2]} for scene in run.scenes]


def _variant(grid: GridRecord, name: str, run: RunRecord) -> dict[str, Any]:
    """Collect what the page shows of a variant.

    Experts are those of all layers for the reference and of the last layer for others: the page stays small.
    """
    is_reference = name == grid.results["reference"]
    layers = None if is_reference else _LAST
    names, palette = run.config.classes.names, palette_of(run.config)
    return {
        "name": name,
        "run": run,
        "is_reference": is_reference,
        "settings": grid.results["variants"][name]["settings"],
        "curves": figures.curves(run)[:2],
        "scenes": [
            {
                "scene": scene,
                "panels": figures.panels(scene, names, palette, given=False),
                "experts": figures.expert_maps(scene, layers),
                "depth": figures.depth_pictures(scene)[-1:],
            }
            for scene in run.scenes
        ],
        "confusion": _confusion(run.evaluation) if run.evaluation else [],
        "usage": figures.usage(run, layers),
        "specialisation": figures.specialisation(run),
        "routing": figures.routing_tables(run, layers),
    }


def palette_of(config: RunConfig) -> list[tuple[int, int, int]]:
    """Return the colours of the classes, or those of the experts where a configuration has none."""
    names = config.classes.names
    return [
        (r, g, b) for r, g, b in config.classes.palette or (EXPERTS * (1 + len(names) // 16))[: len(names)]
    ]


def _key_figures(run: RunRecord) -> list[tuple[str, str]]:
    """Return the figures at the top of the page: (value, label)."""
    steps, _ = run.series("train", "loss")
    last, planned = steps[-1] if steps else 0, run.config.train.steps
    is_early = last < planned and (run.evaluation or {}).get("complete", False)
    label = f"of {planned:,} steps{', complete by patience' if is_early else ''}"
    found = [(f"{last:,}", label)]
    if run.evaluation:
        found += [
            (f"{percent(run.evaluation['miou'])} %", "mIoU on the target"),
            (f"{percent(run.evaluation['all']['overall_accuracy'])} %", "of its pixels right"),
            (f"{run.evaluation['images']:,}", "images of the target"),
            (f"{run.evaluation['trainable']:,}", "trainable parameters"),
        ]
        if run.evaluation["step"] is not None:
            found.append((f"{run.evaluation['step']:,}", "step of the evaluated checkpoint"))
    return found


def _class_rows(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row of scores for each class."""
    columns = {**evaluation["domains"], "all": evaluation["all"]}
    support = np.sum(evaluation["all"]["confusion"], axis=1)
    total = max(int(support.sum()), 1)
    return [
        {
            "name": name,
            "number": number,
            "iou": [scores["iou"][name] for scores in columns.values()],
            "accuracy": evaluation["all"]["accuracy"][name],
            "f1": evaluation["all"].get("f1", {}).get(name),
            "boundary_iou": evaluation["all"].get("boundary_iou", {}).get(name),
            "share": int(support[number]) / total,
        }
        for number, name in enumerate(evaluation["classes"])
    ]


def _confusion(evaluation: dict[str, Any]) -> list[tuple[str, list[float | None]]]:
    """Return (true class, share of its pixels predicted as each class); None for a class without pixels."""
    found = []
    for name, row in zip(evaluation["classes"], evaluation["all"]["confusion"], strict=True):
        total = sum(row)
        found.append((name, [value / total if total else None for value in row]))
    return found


def _scores(results: dict[str, Any]) -> str:
    """Chart the scores of all runs by variant."""
    dots = []
    for name, variant in results["variants"].items():
        values = [100 * run["miou"] for run in variant["runs"] if run.get("miou") is not None]
        dots.append(Dots(name, values, name == results["reference"]))
    means = [f"{name} {percent(v['miou']['mean'])}" for name, v in results["variants"].items()]
    return dot_chart(dots, f"mIoU on the target in %, mean over seeds: {'; '.join(means)}", "mIoU, %")


def _css(palette: Sequence[Sequence[int]]) -> list[str]:
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in palette]


def _finalized(value: Any) -> Any:
    """Make what a template shows printable; markup of our own stays as it is."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spectralmoe_jax.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalized,
    )
    environment.filters["percent"] = percent
    environment.filters["css"] = _css
    return environment


def rendered(template: str, **values: Any) -> str:
    """Render a page from its template."""
    return _environment().get_template(template).render(version=__version__, **values)
