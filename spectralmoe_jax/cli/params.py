"""Count the parameters of a configuration by part, trainable and frozen, without allocating them."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from spectralmoe_jax.configuration import load_config


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--config", required=True, metavar="FILE[:args]", help="configuration, e.g. configs/dubai.py"
    )


def run(arguments: Namespace, overrides: Sequence[str]) -> int:
    config = load_config(arguments.config, overrides)
    from spectralmoe_jax.models.parameters import describe

    parts = describe(config)
    rows = [(part.name, part.trainable, part.frozen) for part in parts]
    rows.append(("total", sum(part.trainable for part in parts), sum(part.frozen for part in parts)))
    print(f"{'':<20}{'trainable':>15}{'frozen':>15}")
    for name, trainable, frozen in rows:
        print(f"{name:<20}{trainable:>15,}{frozen:>15,}")
    return 0
