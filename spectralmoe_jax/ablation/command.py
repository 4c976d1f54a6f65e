"""`spectralmoe ablate`: a grid of runs, and the tables they end in."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from spectralmoe_jax.ablation.cell import check_folder, end_with_parent, run_cell, write_json
from spectralmoe_jax.ablation.grid import Cell, Grid, cells, load_grid
from spectralmoe_jax.ablation.plots import write_plots
from spectralmoe_jax.ablation.results import Results, collect, timings
from spectralmoe_jax.ablation.schedule import own_command, run_all, shares
from spectralmoe_jax.ablation.tables import comma_separated, latex, markdown
from spectralmoe_jax.configuration import choose, require
from spectralmoe_jax.files import replacing

RESULTS, TIMINGS, GRID_FILE = "results.json", "timings.json", "grid.json"
_TABLES: dict[str, Callable[[Results], str]] = {
    "table.md": markdown,
    "table.tex": latex,
    "table.csv": comma_separated,
}


def ablate(spec: str, workdir: str | os.PathLike[str], overrides: Sequence[str] = (), *,
           base: str | None = None, seeds: int | None = None, only: Sequence[str] = (),
           side_by_side: int | None = None) -> Results:  # fmt: skip
    """Run what is not done of a grid and write its tables; run again, it goes on where it stopped.

    Args:
      spec: `FILE[:BASE]` of a grid; see `grid.load_grid`.
      workdir: folder of the grid; runs lie in `runs/VARIANT/seedN`.
      overrides: `--config.KEY=VALUE` for all runs.
      base, seeds: instead of the grid's own.
      only: variants to run now; the tables are of all.
      side_by_side: processes at a time; by default one a GPU, or one.

    Returns: what `results.json` holds; see `results.collect`.

    Raises UserError naming the file, variant or key that is wrong, before anything is run.
    """
    grid, found, workdir = _open(spec, workdir, overrides, base, seeds)
    for variant in only:
        choose("--only", variant, grid.variants)
    slots = shares(side_by_side)
    for cell in found:
        check_folder(cell)
    workdir.mkdir(parents=True, exist_ok=True)
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
    return write_results(grid, found, workdir)


def _open(
    spec: str, workdir: str | os.PathLike[str], overrides: Sequence[str], base: str | None,
    seeds: int | None,
) -> tuple[Grid, list[Cell], Path]:  # fmt: skip
    grid = load_grid(spec, base, seeds)
    workdir = Path(workdir)
    return grid, cells(grid, workdir, overrides), workdir


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
    folders = {
        cell.folder.relative_to(workdir).as_posix(): {"variant": cell.variant, "seed": cell.seed}
        for cell in found
    }
    write_json({"title": grid.title, "runs": folders}, workdir / GRID_FILE)
    for name, make in _TABLES.items():
        with replacing(workdir / name) as aside:
            aside.write_text(make(results))
    write_plots(results, workdir / "plots")
    return results
