"""Cut a published benchmark into tiles, checked, counted and ready to train on.

Benchmarks: whu_ohs, fbp_cross_sensor, fbp_cross_geospatial, flair, loveda, potsdam_vaihingen,
open_earth_map. The folder OUT/BENCHMARK/VERSION appears when it is complete; after an interruption
the same command goes on where it stopped."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from spectralmoe_jax.cli.arguments import refuse_overrides
from spectralmoe_jax.errors import UserError


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("benchmark", metavar="BENCHMARK", help="name of the benchmark")
    parser.add_argument(
        "--source", required=True, metavar="DIR", type=Path, help="folder of the downloaded, unpacked files"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder to write BENCHMARK/VERSION in")
    parser.add_argument(
        "--workers", metavar="N", type=int, help="processes; default: one a CPU; 0: none but this one"
    )
    parser.add_argument(
        "--partial", action="store_true", help="prepare what is there although published files are missing"
    )
    parser.add_argument(
        "--compress", action="store_true", help="smaller shards, by a fifth to two fifths, that take several "
        "times as long to read",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true", help="only list what is there and what is missing (then status 1)"
    )


def run(arguments: Namespace, overrides: Sequence[str]) -> int:
    refuse_overrides(overrides, "prepare")
    from data_pipelines.prepare.run import check, prepare

    if arguments.check:
        return int(bool(check(arguments.benchmark, arguments.source)))
    if arguments.out is None:
        raise UserError("spectralmoe prepare: --out is required, except with --check")
    prepare(
        arguments.benchmark,
        arguments.source,
        arguments.out,
        workers=arguments.workers,
        partial=arguments.partial,
        compress=arguments.compress,
    )
    return 0
