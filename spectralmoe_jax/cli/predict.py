"""Map a scene of any size: georeferencing is kept, classes and colours go into the file."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from spectralmoe_jax.configuration import apply_overrides


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", required=True, metavar="DIR", type=Path, help="folder of a run")
    parser.add_argument("--input", required=True, metavar="SCENE.tif", type=Path, help="scene to map")
    parser.add_argument("--output", required=True, metavar="MAP.tif", type=Path, help="map to write")
    parser.add_argument("--confidence", action="store_true", help="write MAP_confidence.tif as well")
    parser.add_argument(
        "--preview", metavar="FILE.png", type=Path, help="write a picture with a legend as well"
    )
    parser.add_argument(
        "--stream", metavar="NAME", help="of a run on several sensors: whose bands and statistics to use"
    )


def run(arguments: Namespace, overrides: Sequence[str]) -> int:
    from spectralmoe_jax.checkpoints.store import read_run_config

    config = apply_overrides(read_run_config(arguments.checkpoint), overrides)
    if arguments.stream:
        from data_pipelines.streams import choose_stream

        config = choose_stream(config, arguments.stream)
    from spectralmoe_jax.prediction.command import predict

    predict(
        arguments.checkpoint,
        config,
        input=arguments.input,
        output=arguments.output,
        confidence=arguments.confidence,
        preview=arguments.preview,
    )
    return 0
