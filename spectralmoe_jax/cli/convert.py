"""Convert published weights to a file of ours, or a trained run to the authors' layout, safetensors or
Hugging Face."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from spectralmoe_jax.checkpoints.hub import fetch_first
from spectralmoe_jax.cli.arguments import refuse_overrides


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE",
        help="weights of an encoder or of parts of a segmenter (.safetensors, .pth, .pt, .ckpt, .bin, a "
        "Hugging Face folder, hf://owner/name[@revision][/file]), several separated by commas; or the "
        "folder of a run",
    )  # fmt: skip
    parser.add_argument("destination", metavar="DEST", help="file or folder to write; it must not exist")
    parser.add_argument(
        "--as", dest="format", metavar="FORMAT", help="format of SOURCE, instead of the one seen"
    )
    parser.add_argument("--preset", metavar="NAME", help="the encoder that SOURCE has to hold")
    parser.add_argument(
        "--to", metavar="LAYOUT", choices=("released", "safetensors", "hf"),
        help="safetensors (our names; the default), released (a run in the authors' names, .pth or "
        ".safetensors), hf (an encoder as a Hugging Face folder)",
    )  # fmt: skip
    parser.add_argument(
        "--config",
        metavar="FILE[:args]",
        help="what parts of a segmenter are made to fit; as they are without",
    )


def run(arguments: Namespace, overrides: Sequence[str]) -> int:
    config = None
    if arguments.config is None:
        refuse_overrides(overrides, "convert without --config")
    else:
        from spectralmoe_jax.configuration import load_config

        config = load_config(arguments.config, overrides)
    fetch_first(arguments.source.split(","))
    from spectralmoe_jax.checkpoints.convert import convert

    print(
        convert(
            arguments.source, arguments.destination, format=arguments.format, preset=arguments.preset,
            to=arguments.to, config=config,
        )
    )  # fmt: skip
    return 0
