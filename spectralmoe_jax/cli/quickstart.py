"""Train on one generated sensor, test on another, and write a map and a picture. Needs no data."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        type=Path,
        default=Path("runs/quickstart"),
        help="default: runs/quickstart",
    )


def run(arguments: Namespace, overrides: Sequence[str]) -> int:
    from spectralmoe_jax.demonstration import quickstart

    quickstart(arguments.workdir, overrides)
    return 0
