"""`spectralmoe ablate`: a grid of runs, and the tables they end in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from spectralmoe_jax.ablation.grid import Cell, Grid, cells, load_grid
from spectralmoe_jax.ablation.plots import write_plots
from spectralmoe_jax.ablation.results import Results, collect, timings
from spectralmoe_jax.ablation.run import check_folder, end_with_parent, run_cell, write_json
from spectralmoe_jax.ablation.schedule import own_command, run_all, shares
from spectralmoe_jax.ablation.tables import comma_separated, comma_separated_runs, latex, markdown
from spectralmoe_jax.errors import UserError, choose, require
from spectralmoe_jax.files import atomic_write

RESULTS, TIMINGS, GRID_FILE = "results.json", "timings.json", "grid.json"
_TABLES: dict[str, Callable[[Results], str]] = {
    "table.md": markdown,
    "table.tex": latex,
    "table.csv": comma_separated,
    "runs.csv": comma_separated_runs,
}


def ablate(spec: str, workdir: str | os.PathLike[str], overrides: Sequence[str] = (), *,
           base: str | None = None, seeds: int | None = None, only: Sequence[str] = (),
           side_by_side: int | None = None) -> Results:  # fmt: skip
    """Run what is not done of a grid and write its tables; run again, it goes on where it stopped.

    Args:
      spec: `FILE[:BASE]` of a grid; see `grid.load_grid`.
      workdir: folder of the grid; runs lie in `runs/VARIANT/seedN`.
      overrides: `--config.KEY=VALUE` for all runs.
      base: configuration to vary, instead of the grid's own.
      seeds: number of seeds, from 0, instead of the grid's own.
      only: variants to run now; the tables are of all.
      side_by_side: processes at a time; by default one a GPU, or one.

    Returns: what `results.json` holds; see `results.collect`.

    Raises UserError naming the file, variant or key that is wrong, before anything is run.
    """
    grid, found, workdir = _open(spec, workdir, overrides, base, seeds)
    for variant in only:
        choose("--only", variant, grid.variants)
    slots = shares(side_by_side)
    _check_workdir(found, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    _name_runs(grid, found, workdir)
    if at_random := _on_random_encoders(found):
        print(f"note: {', '.join(at_random)}: the frozen visual encoder has random weights, on which little "
              "is learnt: name a file in config.model.visual.weights", flush=True)  # fmt: skip
    command = own_command(_arguments(spec, workdir, overrides, base, seeds))
    run_all([cell for cell in found if not only or cell.variant in only], command, slots)
    return write_results(grid, found, workdir)


def run_task(spec: str, workdir: str | os.PathLike[str], number: int, overrides: Sequence[str] = (),
             *, base: str | None = None, seeds: int | None = None,
             with_parent: bool = False) -> bool:  # fmt: skip
    """Run one of a grid's runs in this process, as a task of an array job does; see `cell.run_cell`.

    Args:
      number: of the run, from 0: over the variants, and within each over the seeds.
      with_parent: end when the process that started this one does.
    """
    if with_parent:
        end_with_parent()
    _, found, _ = _open(spec, workdir, overrides, base, seeds)
    last = len(found) - 1
    require(0 <= number <= last, "--task", f"is {number}: the grid's runs are numbered 0..{last}")
    return run_cell(found[number])


def collect_results(spec: str, workdir: str | os.PathLike[str], overrides: Sequence[str] = (), *,
                    base: str | None = None, seeds: int | None = None) -> Results:  # fmt: skip
    """Write the tables of what is done, and run nothing."""
    grid, found, workdir = _open(spec, workdir, overrides, base, seeds)
    require(workdir.is_dir(), "--workdir", f"{workdir} does not exist: run the grid first")
    _check_workdir(found, workdir)
    return write_results(grid, found, workdir)


def _open(
    spec: str, workdir: str | os.PathLike[str], overrides: Sequence[str], base: str | None,
    seeds: int | None,
) -> tuple[Grid, list[Cell], Path]:  # fmt: skip
    grid = load_grid(spec, base, seeds)
    workdir = Path(workdir)
    return grid, cells(grid, workdir, overrides), workdir


def _on_random_encoders(found: Sequence[Cell]) -> list[str]:
    """Variants that adapt a frozen visual encoder without weights."""
    models = {cell.variant: cell.config.model for cell in found}
    return [
        variant
        for variant, model in models.items()
        if not (model.weights or model.visual.weights or model.visual.trainable)
        and model.adapter.kind != "full"
    ]


def _check_workdir(found: Sequence[Cell], workdir: Path) -> None:
    """Raises UserError where the folder is of another grid, or holds a run of other settings."""
    file = workdir / GRID_FILE
    if file.is_file():
        there = json.loads(file.read_text())
        if there["runs"].keys().isdisjoint(_places(found, workdir)):
            raise UserError(f"{workdir} holds another grid, {there['title']!r}: choose another --workdir")
    for cell in found:
        check_folder(cell)


def _places(found: Sequence[Cell], workdir: Path) -> dict[str, Cell]:
    """The runs by their folders below `workdir`."""
    return {cell.folder.relative_to(workdir).as_posix(): cell for cell in found}


def _name_runs(grid: Grid, found: Sequence[Cell], workdir: Path) -> None:
    """Says in the folder what its runs are."""
    runs = {
        place: {"variant": cell.variant, "seed": cell.seed} for place, cell in _places(found, workdir).items()
    }
    write_json({"title": grid.title, "runs": runs}, workdir / GRID_FILE)


def _arguments(
    spec: str, workdir: Path, overrides: Sequence[str], base: str | None, seeds: int | None
) -> list[str]:
    given = ["ablate", spec, "--workdir", str(workdir), *overrides]
    return given + (["--base", base] if base else []) + (["--seeds", str(seeds)] if seeds else [])


def write_results(grid: Grid, found: Sequence[Cell], workdir: Path) -> Results:
    """`results.json`, the tables and the plots, and apart from them `timings.json`."""
    results = collect(grid, found)
    write_json(results, workdir / RESULTS)
    write_json(timings(found), workdir / TIMINGS)
    _name_runs(grid, found, workdir)
    for name, make in _TABLES.items():
        with atomic_write(workdir / name) as aside:
            aside.write_text(make(results))
    write_plots(results, workdir / "plots")
    return results
