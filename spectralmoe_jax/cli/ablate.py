"""Run a grid of variants and seeds over one configuration, and write its tables.

Run again with the same --workdir it goes on where it stopped: what is done is not
done again, what failed is tried again.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "grid", metavar="FILE[:BASE]", help="grid, e.g. configs/ablations/experts.py:cloud_shadow"
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the grid")
    parser.add_argument("--base", metavar="FILE[:args]", help="configuration to vary; or after the colon")
    parser.add_argument("--seeds", type=int, metavar="N", help="0 to N-1 instead of the grid's own")
    parser.add_argument(
        "--only", action="append", default=[], metavar="VARIANT", help="run this variant now (repeatable)"
    )
    parser.add_argument(
        "--side-by-side", type=int, metavar="N", help="runs at a time (default: one a GPU, or one)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--task", type=int, metavar="INDEX", help="do run number INDEX alone, in this process")
    what.add_argument("--collect", action="store_true", help="run nothing; write the tables of what is done")
    what.add_argument("--list", action="store_true", help="print the folder of every run, a line each")
    parser.add_argument("--end-with-parent", action="store_true", help="end when standard input does")


def run(arguments: Namespace, overrides: Sequence[str]) -> int:
    given = (arguments.grid, arguments.workdir)
    options = {"base": arguments.base, "seeds": arguments.seeds}
    if arguments.list:
        from spectralmoe_jax.ablation.grid import cells, load_grid

        grid = load_grid(arguments.grid, **options)
        for cell in cells(grid, Path(arguments.workdir), overrides):
            print(cell.folder)
        return 0
    if arguments.task is not None:
        from spectralmoe_jax.ablation.command import run_task

        run_task(*given, arguments.task, overrides, with_parent=arguments.end_with_parent, **options)
        return 0
    from spectralmoe_jax.ablation.command import ablate, collect_results
    from spectralmoe_jax.ablation.tables import markdown

    if arguments.collect:
        results = collect_results(*given, overrides, **options)
    else:
        results = ablate(
            *given, overrides, only=arguments.only, side_by_side=arguments.side_by_side, **options
        )
    print(markdown(results))
    asked = arguments.only or results["variants"]
    done = all("miou" in run for variant in asked for run in results["variants"][variant]["runs"])
    return 0 if done or arguments.collect else 1
