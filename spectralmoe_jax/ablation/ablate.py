"""`spectralmoe ablate`: run a grid and write its tables and plots."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spectralmoe_jax.ablation.grid import Grid, GridRun, grid_runs, load_grid
from spectralmoe_jax.ablation.results import Results, collect, timings
from spectralmoe_jax.ablation.run import check_folder, end_with_parent, execute, write_json
from spectralmoe_jax.ablation.schedule import divide_devices, own_command, run_all
from spectralmoe_jax.ablation.stored_results import RESULTS_FILE
from spectralmoe_jax.ablation.tables import csv_of_runs, csv_table, latex_table, markdown_table, write_plots
from spectralmoe_jax.errors import UserError, bad_value, choose, require
from spectralmoe_jax.escapes import printable
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.one_writer import one_writer
from spectralmoe_jax.stored_files import read_form

TIMINGS_FILE, GRID_FILE = "timings.json", "grid.json"
_GRID = {"title": str, "runs": {"*": {"variant": str, "seed": int}}}
_TABLES: dict[str, Callable[[Results], str]] = {
    "table.md": markdown_table,
    "table.tex": latex_table,
    "table.csv": csv_table,
    "runs.csv": csv_of_runs,
}


def ablate(
    spec: str,
    workdir: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    base: str | None = None,
    seeds: int | None = None,
    only: Sequence[str] = (),
    side_by_side: int | None = None,
) -> Results:
    """Run the unfinished runs of a grid and write its tables; the same call resumes after an interruption.

    Args:
      spec: `FILE[:BASE]` of a grid; see `grid.load_grid`.
      workdir: folder of the grid; its runs are in `runs/VARIANT/seedN`.
      overrides: `--config.KEY=VALUE` for all runs.
      base: configuration to vary, instead of the grid's own.
      seeds: number of seeds, from 0, instead of the grid's own.
      only: variants to run now; the tables are of all.
      side_by_side: processes at a time; by default one for each GPU, or one.

    Returns:
      The content of `results.json`; see `results.collect`.

    Raises:
      UserError: names the file, variant or key that is wrong; raised before anything is run.
    """
    # 1. check everything before the first run
    opened = _open(spec, workdir, overrides, base, seeds)
    for variant in only:
        choose("--only", variant, opened.grid.variants)
    shares = divide_devices(side_by_side)
    _check_workdir(opened)

    # 2. run
    opened.workdir.mkdir(parents=True, exist_ok=True)
    with one_writer(opened.workdir, "runs a grid"):
        _write_grid_file(opened)
        _note_random_encoders(opened.runs)
        command = own_command(_arguments(spec, opened.workdir, overrides, base, seeds))
        run_all([run for run in opened.runs if not only or run.variant in only], command, shares)

        # 3. tables and plots
        return write_results(opened.grid, opened.runs, opened.workdir)


def run_task(
    spec: str,
    workdir: str | os.PathLike[str],
    number: int,
    overrides: Sequence[str] = (),
    *,
    base: str | None = None,
    seeds: int | None = None,
    with_parent: bool = False,
) -> bool:
    """Run one of a grid's runs in this process, as a task of an array job does; see `run.execute`.

    Args:
      spec: as in `ablate`.
      workdir: as in `ablate`.
      number: of the run, from 0: over the variants, and within each over the seeds.
      overrides: as in `ablate`.
      base: as in `ablate`.
      seeds: as in `ablate`.
      with_parent: end when the process that started this one does.
    """
    if with_parent:
        end_with_parent()
    runs = _open(spec, workdir, overrides, base, seeds).runs
    if not 0 <= number < len(runs):
        raise bad_value("--task", number, f"must be the number of a run, 0 to {len(runs) - 1}")
    return execute(runs[number])


def collect_results(
    spec: str,
    workdir: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    base: str | None = None,
    seeds: int | None = None,
) -> Results:
    """Write the tables of the runs that are done, and run nothing; arguments as in `ablate`."""
    opened = _open(spec, workdir, overrides, base, seeds)
    require(opened.workdir.is_dir(), "--workdir", f"{workdir} does not exist: run the grid first")
    _check_workdir(opened)
    return write_results(opened.grid, opened.runs, opened.workdir)


def list_folders(
    spec: str,
    workdir: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    base: str | None = None,
    seeds: int | None = None,
) -> list[Path]:
    """List the folder of every run, by the numbers of `run_task`; arguments as in `ablate`."""
    return [run.folder for run in _open(spec, workdir, overrides, base, seeds).runs]


def write_results(grid: Grid, runs: Sequence[GridRun], workdir: Path) -> Results:
    """Write `results.json`, the tables and the plots, and `timings.json` apart from them."""
    results = collect(grid, runs)
    write_json(results, workdir / RESULTS_FILE)
    write_json(timings(runs), workdir / TIMINGS_FILE)
    _write_grid_file(_OpenGrid(grid, runs, workdir))
    for name, make in _TABLES.items():
        with atomic_write(workdir / name) as aside:
            aside.write_text(make(results), encoding="utf-8")
    write_plots(results, workdir / "plots")
    return results


class _OpenGrid(NamedTuple):
    """A grid, its runs and its folder."""

    grid: Grid
    runs: Sequence[GridRun]
    workdir: Path

    def by_folder(self) -> dict[str, GridRun]:
        """Return the runs by their folders below the grid's."""
        return {run.folder.relative_to(self.workdir).as_posix(): run for run in self.runs}


def _open(
    spec: str,
    workdir: str | os.PathLike[str],
    overrides: Sequence[str],
    base: str | None,
    seeds: int | None,
) -> _OpenGrid:
    grid = load_grid(spec, base, seeds)
    return _OpenGrid(grid, grid_runs(grid, Path(workdir), overrides), Path(workdir))


def _check_workdir(opened: _OpenGrid) -> None:
    """Check that the folder is new or the grid's own.

    Raises:
      UserError: the folder holds another grid, or a run of other settings.
    """
    file = opened.workdir / GRID_FILE
    if file.is_file():
        stored = read_grid_file(opened.workdir)
        if stored["runs"].keys().isdisjoint(opened.by_folder()):
            raise UserError(
                f"{opened.workdir} holds another grid, {stored['title']!r}: choose another --workdir"
            )
    for run in opened.runs:
        check_folder(run)


def _write_grid_file(opened: _OpenGrid) -> None:
    """Write the grid's title, and the variant and seed of each run by its folder."""
    runs = {folder: {"variant": run.variant, "seed": run.seed} for folder, run in opened.by_folder().items()}
    write_json({"title": opened.grid.title, "runs": runs}, opened.workdir / GRID_FILE)


def read_grid_file(workdir: Path) -> dict[str, Any]:
    """Return title and runs of a grid, as its folder has them.

    Raises:
      UserError: the file is damaged.
      OSError: it cannot be read.
    """
    remedy = "remove it, and `spectralmoe ablate` with --collect writes it anew"
    return read_form(workdir / GRID_FILE, _GRID, remedy)


def _note_random_encoders(runs: Sequence[GridRun]) -> None:
    """Print the variants that adapt a frozen visual encoder without pretrained weights."""
    models = {run.variant: run.config.model for run in runs}
    at_random = [
        variant
        for variant, model in models.items()
        if not (model.weights or model.visual.weights or model.visual.trainable)
        and model.adapter.kind != "full"
    ]
    if at_random:
        note = (
            f"note: {', '.join(at_random)}: the frozen visual encoder has random weights, on which little "
            "is learnt: name a file in config.model.visual.weights"
        )
        print(printable(note), flush=True)


def _arguments(
    spec: str, workdir: Path, overrides: Sequence[str], base: str | None, seeds: int | None
) -> list[str]:
    """Return the command line of this program for the same grid."""
    given = ["ablate", spec, "--workdir", str(workdir), *overrides]
    return given + (["--base", base] if base else []) + (["--seeds", str(seeds)] if seeds else [])
