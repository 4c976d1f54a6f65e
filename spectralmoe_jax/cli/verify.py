"""Compare the model with every reference file of a folder, number for number."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from spectralmoe_jax.cli.arguments import refuse_overrides
from spectralmoe_jax.errors import UserError


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "directory", metavar="DIR", type=Path, help="folder of reference values, at any depth"
    )


def run(arguments: Namespace, overrides: Sequence[str]) -> int:
    refuse_overrides(overrides, "verify")
    if not arguments.directory.is_dir():
        raise UserError(f"{arguments.directory} is not a folder; name one with reference values (*.npz)")
    from spectralmoe_jax.verification.goldens import verify

    return 0 if verify(arguments.directory) else 1
