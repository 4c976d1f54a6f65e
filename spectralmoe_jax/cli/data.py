"""Draw training batches of a configuration as a picture, with their statistics and the time they take.

Shows what the model will see: crops after augmentation with their masks, the classes' shares, each band's
mean and deviation before and after normalisation, and how long reading and transforming a tile takes.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from spectralmoe_jax.configuration import load_config


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG[:args]", help="configuration, e.g. configs/dubai.py")
    parser.add_argument("--batches", type=int, default=4, metavar="N", help="batches to draw; default: 4")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.png", help="the picture; default: data_NAME.png in this folder"
    )
    parser.add_argument("--stream", metavar="NAME", help="of a run on several sensors: which one")


def run(arguments: Namespace, overrides: Sequence[str]) -> int:
    config = load_config(arguments.config, overrides)
    from data_pipelines.streams import MAIN, choose_stream
    from data_pipelines.survey.command import show

    config = choose_stream(config, arguments.stream or MAIN)
    show(config, arguments.batches, arguments.output or Path(f"data_{config.name}.png"))
    return 0
