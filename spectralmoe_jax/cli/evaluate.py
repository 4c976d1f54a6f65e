"""Score a trained model on whole images, per domain and class."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from spectralmoe_jax.cli.processes import add_process_arguments, all_processes
from spectralmoe_jax.configuration import apply_overrides, load_config


def add_arguments(parser: ArgumentParser) -> None:
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--workdir", metavar="DIR", help="folder of a run; its best checkpoint is used")
    place.add_argument("--checkpoint", metavar="DIR", help="the same under its other name")
    parser.add_argument(
        "--config", metavar="FILE[:args]", help="instead of the configuration stored in the run"
    )
    parser.add_argument(
        "--split", choices=("target", "source", "holdout"), default="target", help="default: target"
    )
    parser.add_argument("--output", metavar="FILE.json", type=Path, help="write the scores here as well")
    parser.add_argument(
        "--images", metavar="FILE.npz", type=Path, help="write the confusion matrix of every image here"
    )
    parser.add_argument(
        "--stream", metavar="NAME", help="of a run on several sensors: whose bands and statistics to use"
    )
    add_process_arguments(parser)


def run(arguments: Namespace, overrides: Sequence[str]) -> int:
    workdir = Path(arguments.workdir or arguments.checkpoint)
    if arguments.config:
        config = load_config(arguments.config, overrides)
    else:
        from spectralmoe_jax.checkpoints.store import read_run_config

        config = apply_overrides(read_run_config(workdir), overrides)
    if arguments.stream:
        from data_pipelines.streams import choose_stream

        config = choose_stream(config, arguments.stream)
    with all_processes(arguments):
        from spectralmoe_jax.evaluation.command import evaluate

        evaluate(workdir, config, split=arguments.split, output=arguments.output, images=arguments.images)
    return 0
