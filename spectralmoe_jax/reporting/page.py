"""The page itself: what the templates are given.

`spectralmoe report`: one HTML page of a run or a grid.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from spectralmoe_jax import __version__
from spectralmoe_jax.ablation.tables import caption, header, percent, rows
from spectralmoe_jax.config.load import flatten, read_run_config
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.best_checkpoint import evaluate_best_checkpoint, read_evaluation, steps_of
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.inference.pictures import PICTURES
from spectralmoe_jax.reporting import figures
from spectralmoe_jax.reporting import svg as encode
from spectralmoe_jax.reporting.run_records import GridRecord, Run, is_grid, read_grid, read_run
from spectralmoe_jax.reporting.svg import Dots, dot_chart

_LAST = (-1,)


def run_page(run: Run, shown: str) -> str:
    """The page of a run; `shown` says where it lies."""
    names, palette = run.config.classes.names, palette_of(run.config)
    evaluation = run.evaluation
    return _rendered(
        "run.html",
        title=f"{run.name}: report of a run",
        shown=shown,
        run=run,
        facts=_facts(run),
        names=names,
        palette=palette,
        experts=figures.experts_of(run),
        expert_colours=encode.EXPERTS,
        curves=figures.curves(run),
        evaluation=evaluation,
        class_rows=_class_rows(evaluation) if evaluation else [],
        confusion=_confusion(evaluation) if evaluation else [],
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
    """The page of a grid: its table, and of each variant the first run that is done."""
    results = grid.results
    first = next(iter(grid.runs.values()), None)
    return _rendered(
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
        expert_colours=encode.EXPERTS,
        experts=max((figures.experts_of(run) for run in grid.runs.values()), default=0),
        scenes=_given(first) if first else [],
        variants=[_variant(grid, name, run) for name, run in grid.runs.items()],
    )


def _given(run: Run) -> list[dict[str, Any]]:
    """Input and truth of the scenes, which all runs of a grid share."""
    names, palette = run.config.classes.names, palette_of(run.config)
    return [{"scene": scene, "panels": figures.panels(scene, names, palette)[:2]} for scene in run.scenes]


def _variant(grid: GridRecord, name: str, run: Run) -> dict[str, Any]:
    """Of the reference the experts of all layers, of the others those of the last: the page stays small."""
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
    """The colours of the classes; where a configuration has none, those of the experts."""
    names = config.classes.names
    return [
        (r, g, b)
        for r, g, b in config.classes.palette or (encode.EXPERTS * (1 + len(names) // 16))[: len(names)]
    ]


def _facts(run: Run) -> list[tuple[str, str]]:
    """What is said first: (value, what it is)."""
    steps, _ = run.series("train", "loss")
    found = [(f"{steps[-1]:,}" if steps else "0", f"of {run.config.train.steps:,} steps")]
    if run.evaluation:
        found += [
            (f"{percent(run.evaluation['miou'])} %", "mIoU on the target"),
            (f"{percent(run.evaluation['all']['overall_accuracy'])} %", "of its pixels right"),
            (f"{run.evaluation['images']:,}", "images of the target"),
            (f"{run.evaluation['trainable']:,}", "trainable parameters"),
        ]
        if run.evaluation["step"] is not None:
            found.append((f"{run.evaluation['step']:,}", "step of the checkpoint judged"))
    return found


def _class_rows(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """One a class, and the means."""
    columns = {**evaluation["domains"], "all": evaluation["all"]}
    support = np.sum(evaluation["all"]["confusion"], axis=1)
    total = max(int(support.sum()), 1)
    return [
        {
            "name": name,
            "number": number,
            "iou": [scores["iou"][name] for scores in columns.values()],
            "accuracy": evaluation["all"]["accuracy"][name],
            "share": int(support[number]) / total,
        }
        for number, name in enumerate(evaluation["classes"])
    ]


def _confusion(evaluation: dict[str, Any]) -> list[tuple[str, list[float | None]]]:
    """(true class, share of its pixels predicted as each class), or None where there is none of it."""
    found = []
    for name, row in zip(evaluation["classes"], evaluation["all"]["confusion"], strict=True):
        total = sum(row)
        found.append((name, [value / total if total else None for value in row]))
    return found


def _scores(results: dict[str, Any]) -> str:
    dots = [
        Dots(name, [100 * run["miou"] for run in variant["runs"] if run.get("miou") is not None],
             name == results["reference"])
        for name, variant in results["variants"].items()
    ]  # fmt: skip
    means = [f"{name} {percent(v['miou']['mean'])}" for name, v in results["variants"].items()]
    return dot_chart(dots, f"mIoU on the target in %, mean over seeds: {'; '.join(means)}", "mIoU, %")


def _css(palette: Sequence[Sequence[int]]) -> list[str]:
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in palette]


def _rendered(template: str, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("spectralmoe_jax.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["percent"] = percent
    environment.filters["css"] = _css
    return environment.get_template(template).render(version=__version__, **values)


REPORT = "report.html"


def report(workdir: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> Path:
    """Write the page of a run or a grid; it needs no other file and no network.

    A run whose best checkpoint was not judged yet is evaluated on the target first, see `evaluation.judged`;
    of a grid, what `spectralmoe ablate` left is shown, and no model is read.

    Args:
      workdir: folder that `spectralmoe train` or `ablate` wrote.
      output: file to write; default `report.html` in there.

    Returns: the file.

    Raises UserError naming the file or key that is wrong.
    """
    workdir = Path(workdir)
    if is_grid(workdir):
        page = grid_page(read_grid(workdir), str(workdir))
    else:
        _judge_anew(workdir)
        page = run_page(read_run(workdir), str(workdir))
    path = workdir / REPORT if output is None else Path(output)
    try:
        with atomic_write(path) as aside:
            aside.write_text(page, encoding="utf-8")
    except OSError as problem:
        raise UserError(f"{path}: cannot be written ({problem.strerror}); choose another --output") from None
    return path


def _judge_anew(workdir: Path) -> None:
    """Evaluate a run where it was not, or where checkpoints came since."""
    config = read_run_config(workdir)
    (step, last), known = steps_of(workdir, config), read_evaluation(workdir)
    if step is None:
        raise UserError(f"{workdir}: holds no checkpoint yet; train first")
    judged = known and (known.get("step"), known.get("trained"))
    if judged != (step, last) or not (workdir / PICTURES).is_file():
        evaluate_best_checkpoint(workdir, config)
