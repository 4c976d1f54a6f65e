"""Subcommands about data and configurations: init, prepare, data and config."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import spectralmoe_jax
from spectralmoe_jax.cli.arguments import refuse_overrides
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.reference import reference, show_config
from spectralmoe_jax.config.schema import MAIN
from spectralmoe_jax.config.stored import read_run_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.escapes import printable


class Init:
    """Write a configuration for a folder of images and labels.

    Finds pairs of images and labels, domains, bands and sensor, classes, statistics of the source, and sizes
    that fit. Prints what it understood, draws it as a picture beside the configuration, and prints the next
    command. What the folder leaves open is never guessed: it is asked for at a terminal, and otherwise an
    error names the option that settles it.
    """

    _OPTIONS = (
        ("--images", "GLOB", "pattern of the images below FOLDER, as in '{domain}/images/*.tif'"),
        ("--labels", "PATH", "labels of an image, as in '{domain}/masks/{stem}.png', or a file of polygons"),
        ("--source", "NAMES", "domains to train on, or patterns of them; default: all but the target"),
        ("--target", "NAMES", "domains to test on and never to train on, or patterns of them"),
        (
            "--bands",
            "NAMES",
            "bands to use by name; or names of all bands in their order, if files give none",
        ),
        ("--sensor", "NAME", "sensor of the images"),
        ("--classes", "NAMES", "names of the classes, in ascending order of their values or colours"),
        ("--ignore", "VALUES", "values, or colours as #rrggbb, that mean 'no label'; or none"),
        ("--attribute", "NAME", "attribute of polygons that holds the class"),
        ("--layer", "NAME", "layer of the polygons"),
        ("--encoder", "PRESET", "published encoder to use frozen; default: a small one that is trained"),
        ("--weights", "FILE", "its weights: a file, a folder or hf://owner/name"),
    )

    @classmethod
    def add_arguments(cls, parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        parser.add_argument("folder", metavar="FOLDER", help="folder of the images and labels")
        parser.add_argument(
            "--output", required=True, metavar="FILE.py", type=Path, help="configuration to write"
        )
        for option, value, text in cls._OPTIONS:
            parser.add_argument(option, metavar=value, default="", help=text)

    @classmethod
    def run(cls, arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        refuse_overrides(overrides, "init")
        names = [option.removeprefix("--") for option, _, _ in cls._OPTIONS]
        given = {name: getattr(arguments, name) for name in names}
        ask = cls._ask if sys.stdin.isatty() else None
        spectralmoe_jax.init_config(arguments.folder, arguments.output, ask=ask, **given)
        return 0

    @staticmethod
    def _ask(question: Any) -> str:
        """Ask at the terminal for what a folder leaves open; an empty answer stops with the error."""
        print(f"{printable(question)}\n{question.option}: ", end="", flush=True)
        answer = sys.stdin.readline().strip()
        if not answer:
            raise question
        return answer


class Prepare:
    """Cut a published benchmark into tiles that are checked, counted and ready to train on.

    Benchmarks: whu_ohs, fbp_cross_sensor, fbp_cross_geospatial, flair, loveda, potsdam_vaihingen,
    open_earth_map. The folder OUT/BENCHMARK/VERSION appears when it is complete; the same command resumes
    after an interruption.
    """

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        parser.add_argument("benchmark", metavar="BENCHMARK", help="name of the benchmark")
        parser.add_argument(
            "--source",
            required=True,
            metavar="DIR",
            type=Path,
            help="folder of the downloaded and unpacked files",
        )
        parser.add_argument("--out", metavar="DIR", type=Path, help="folder to write BENCHMARK/VERSION in")
        parser.add_argument(
            "--workers", metavar="N", type=int, help="processes; default: one per CPU; 0: this one only"
        )
        parser.add_argument(
            "--partial",
            action="store_true",
            help="continue even if published files are missing",
        )
        parser.add_argument(
            "--compress",
            action="store_true",
            help="write shards that are 20 to 40 %% smaller but take several times as long to read",
        )
        parser.add_argument(
            "--check",
            action="store_true",
            help="only list what is there and what is missing (status 1 if anything is missing)",
        )

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        refuse_overrides(overrides, "prepare")
        if arguments.check:
            return int(bool(spectralmoe_jax.check(arguments.benchmark, arguments.source)))
        if arguments.out is None:
            raise UserError("spectralmoe prepare: --out is required, except with --check")
        spectralmoe_jax.prepare(
            arguments.benchmark,
            arguments.source,
            arguments.out,
            workers=arguments.workers,
            partial=arguments.partial,
            compress=arguments.compress,
        )
        return 0


class Data:
    """Draw training batches of a configuration as a picture, with statistics and timings.

    Shows the model's input: crops after augmentation with their masks, class shares, mean and standard
    deviation of each band before and after normalisation, and the time to read and transform a tile.
    """

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        parser.add_argument("config", metavar="CONFIG[:args]", help="configuration, e.g. configs/dubai.py")
        parser.add_argument("--batches", type=int, default=4, metavar="N", help="batches to draw; default: 4")
        parser.add_argument(
            "--output",
            type=Path,
            metavar="FILE.png",
            help="picture to write; default: data_NAME.png in this folder",
        )
        parser.add_argument("--stream", metavar="NAME", help="in a run on several sensors: the one to show")

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        config = load_config(arguments.config, overrides).stream(arguments.stream or MAIN)
        output = arguments.output or Path(f"data_{config.name}.png")
        spectralmoe_jax.show_data(config, arguments.batches, output)
        return 0


class Config:
    """Print a complete configuration: every key with its value, defaults and presets filled in.

    The output is itself a configuration file. Comments give the origin of values that FILE does not set.
    """

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument(
            "config", nargs="?", metavar="FILE[:args]", help="configuration, e.g. configs/dubai.py"
        )
        what.add_argument(
            "--workdir", metavar="DIR", type=Path, help="folder of a run whose stored configuration to print"
        )
        what.add_argument(
            "--reference",
            action="store_true",
            help="print the reference of every key (docs/configuration.md)",
        )

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        if arguments.reference:
            refuse_overrides(overrides, "config --reference")
            print(reference(), end="")
        elif arguments.workdir is not None:
            print(show_config(read_run_config(arguments.workdir, overrides, allow_code=True)), end="")
        else:
            print(show_config(load_config(arguments.config, overrides)), end="")
        return 0
