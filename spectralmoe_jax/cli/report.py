"""Write one HTML page of a run or a grid that is readable offline and on a phone.

A run that was not evaluated yet is evaluated on its target first.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from spectralmoe_jax.cli.arguments import refuse_overrides


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("workdir", metavar="DIR", type=Path, help="folder that train or ablate wrote")
    parser.add_argument(
        "--output", metavar="FILE.html", type=Path, help="file to write (default: report.html in DIR)"
    )


def run(arguments: Namespace, overrides: Sequence[str]) -> int:
    refuse_overrides(overrides, "report")
    from spectralmoe_jax.reporting.command import report

    path = report(arguments.workdir, arguments.output)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return 0
