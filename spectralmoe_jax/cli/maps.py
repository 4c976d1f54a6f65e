"""Subcommands that map scenes: predict, view and serve."""

import contextlib
import os
import signal
import sys
import threading
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console

import spectralmoe_jax
from spectralmoe_jax.cli.arguments import add_config_of_model, add_model, add_stream, add_tta, open_config
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.escapes import printable
from spectralmoe_jax.part_files import leave

if TYPE_CHECKING:
    from spectralmoe_jax.inference.catalogue import Beside
    from spectralmoe_jax.inference.stac import Scenes


class Predict:
    """Map scenes of any size. Maps keep the georeference and contain class names and colours.

    With several scenes, --output is a folder. The same command continues what was interrupted.
    """

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        add_model(parser)
        parser.add_argument(
            "--input",
            required=True,
            nargs="+",
            metavar="SCENE",
            help="scenes to map: files, folders, patterns such as '2024/**/*.tif', lists (.txt), STAC "
            "(.json), or addresses that GDAL opens (https://, s3://, gs://, /vsi...)",
        )
        parser.add_argument(
            "--output",
            required=True,
            metavar="MAP.tif",
            type=Path,
            help="map to write, or the folder of the maps of several scenes",
        )
        parser.add_argument(
            "--confidence",
            action="store_true",
            help="also write MAP_confidence.tif, the probability of the chosen class",
        )
        parser.add_argument(
            "--probabilities",
            action="store_true",
            help="also write MAP_probabilities.tif, a band for each class; calibrated if `spectralmoe "
            "calibrate` was run on the model",
        )
        parser.add_argument(
            "--uncertainty",
            action="store_true",
            help="also write MAP_uncertainty.tif: entropy, and distance from the source's features; needs "
            "`spectralmoe calibrate`",
        )
        parser.add_argument(
            "--vector",
            metavar="FILE.gpkg",
            type=Path,
            help="also write the polygons of the map (.gpkg, .geojson, .fgb, .parquet); "
            "--confidence adds theirs; for several scenes, the folder of GeoPackages",
        )
        parser.add_argument(
            "--min-pixels",
            type=int,
            default=10,
            metavar="N",
            help="of --vector: join smaller areas to a neighbour (default: 10)",
        )
        parser.add_argument(
            "--simplify",
            type=float,
            default=1.0,
            metavar="PIXELS",
            help="of --vector: tolerance of simplified edges; 0 keeps those of pixels (default: 1)",
        )
        parser.add_argument(
            "--preview",
            metavar="FILE.png",
            type=Path,
            help="also write a picture with a legend; for several scenes, the folder of the pictures",
        )
        parser.add_argument(
            "--shard",
            metavar="I/N",
            help="map only part I (from 0) of N of the scenes; auto/N in a SLURM array or indexed job",
        )
        parser.add_argument(
            "--overwrite", action="store_true", help="make maps anew that are there, in a folder of maps"
        )
        add_tta(parser)
        add_stream(parser)

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        given = (arguments.stream, arguments.config, arguments.tta, arguments.allow_code)
        config = open_config(arguments.checkpoint, overrides, *given)
        # imports JAX: not for --help
        from spectralmoe_jax.inference.stac import without_stac

        with _ending_in_order(), without_stac(arguments.input, config.bands, config.sensor) as scenes:
            try:
                return Predict._map(arguments, config, scenes)
            except UserError as problem:
                raise UserError(scenes.said(str(problem))) from problem

    @staticmethod
    def _map(arguments: Namespace, config: RunConfig, scenes: "Scenes") -> int:
        from spectralmoe_jax.inference import catalogue

        beside = _beside(arguments)
        folder = arguments.output
        if folder.suffix.lower() in (".tif", ".tiff"):
            if scenes.failed:
                raise UserError(": ".join(scenes.failed[0]))
            scene = _only_scene(arguments, catalogue.find_scenes(scenes.inputs))
            spectralmoe_jax.predict(
                arguments.checkpoint,
                config,
                input=scene,
                output=folder,
                preview=beside.previews,
                vector=beside.vectors,
                outlines=beside.outlines,
                **dict.fromkeys(beside.products, True),
            )
            return 0
        index, count = catalogue.part_of_scenes(arguments.shard, os.environ) if arguments.shard else (0, 1)
        jobs = catalogue.plan(scenes.inputs, folder, beside)[index::count] if scenes.inputs else []
        console = Console() if sys.stdout.isatty() else Console(width=200)
        outcomes = catalogue.map_scenes(
            spectralmoe_jax.load(arguments.checkpoint, config),
            jobs,
            folder,
            beside,
            overwrite=arguments.overwrite,
            console=console,
            said=scenes.said,
        )
        for item, reason in scenes.failed if index == 0 else ():
            outcomes.append(catalogue.Outcome(catalogue.Job(item, folder), "failed", reason))
        catalogue.print_failures(outcomes, console, scenes.said)
        return 2 if any(outcome.state == "failed" for outcome in outcomes) else 0


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Make SIGTERM inside the block remove the hidden parts of maps, and end with the status of a shell."""

    def end(number: int, frame: FrameType | None) -> None:
        """End at once: an exception would be lost in the libraries that read checkpoints and compile."""
        leave(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _beside(arguments: Namespace) -> "Beside":
    """Return what is written beside every map.

    Raises:
      UserError: an option has a value that cannot be.
    """
    # imports JAX: not for --help
    from spectralmoe_jax.inference.catalogue import Beside
    from spectralmoe_jax.inference.polygons import Outlines
    from spectralmoe_jax.inference.products import PRODUCTS

    if arguments.min_pixels < 1:
        raise UserError(f"--min-pixels {arguments.min_pixels}: give 1 (every area) or more pixels")
    if not 0 <= arguments.simplify < float("inf"):
        raise UserError(f"--simplify {arguments.simplify}: give 0 (every edge) or more pixels")
    products = tuple(name for name in PRODUCTS if getattr(arguments, name))
    outlines = Outlines(arguments.min_pixels, arguments.simplify)
    return Beside(products, arguments.preview, arguments.vector, outlines)


def _only_scene(arguments: Namespace, scenes: Sequence[tuple[str, object]]) -> str:
    """Return the only scene, for the file of one map.

    Raises:
      UserError: there are several, or options for several are given.
    """
    if len(scenes) > 1:
        raise UserError(
            f"--output {arguments.output}: is the file of one map; give a folder for {len(scenes)} scenes"
        )
    for option in ("shard", "overwrite"):
        if getattr(arguments, option):
            raise UserError(f"--{option}: is for several scenes; give a folder as --output, or leave it out")
    return scenes[0][0]


class View:
    """Write one HTML page that shows the map of a scene over its image, to pan, zoom and click.

    It gives class, probability and expert of a pixel, and needs neither network nor server.
    """

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        add_model(parser)
        parser.add_argument(
            "--input",
            required=True,
            metavar="SCENE",
            help="scene to map: a file, or an address that GDAL opens",
        )
        parser.add_argument("--output", required=True, metavar="FILE.html", type=Path, help="page to write")
        add_tta(parser)
        add_stream(parser)

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        given = (arguments.stream, arguments.config, arguments.tta, arguments.allow_code)
        config = open_config(arguments.checkpoint, overrides, *given)
        # imports JAX: not for --help
        from spectralmoe_jax.inference.stac import without_stac

        with without_stac([arguments.input], config.bands, config.sensor) as scenes:
            if len(scenes.inputs) != 1:
                why = ": ".join(scenes.failed[0]) if scenes.failed else "names several scenes; give one"
                raise UserError(f"--input {arguments.input}: {why}")
            page = spectralmoe_jax.view(
                arguments.checkpoint, config, input=scenes.inputs[0], output=arguments.output
            )
        print(printable(f"{page}: {page.stat().st_size / 1e6:.2f} MB"))
        return 0


class Serve:
    """Serve a trained model over HTTP: POST a GeoTIFF, PNG or JPEG, get a GeoTIFF, PNG or GeoJSON.

    Paths: /predict, /healthz, /info, /docs and /openapi.json. Ends in order on SIGTERM.
    """

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        model = parser.add_mutually_exclusive_group(required=True)
        model.add_argument(
            "run",
            nargs="?",
            metavar="RUN",
            help="folder of a run, whose best checkpoint is used; or weight files, separated by commas, or "
            "hf://owner/name",
        )
        model.add_argument("--checkpoint", metavar="RUN", help="the same")
        add_config_of_model(parser)
        parser.add_argument(
            "--host",
            default="127.0.0.1",
            metavar="ADDRESS",
            help="address to listen on; default: 127.0.0.1, which this machine alone can reach",
        )
        parser.add_argument(
            "--port", type=int, default=8000, metavar="N", help="port; default: 8000, 0 for a free one"
        )
        parser.add_argument(
            "--queue",
            type=int,
            default=32,
            metavar="N",
            help="requests at a time; further ones are answered with 429; default: 32",
        )
        parser.add_argument(
            "--max-mb", type=float, default=64, metavar="MB", help="largest file of an image; default: 64"
        )
        parser.add_argument(
            "--max-megapixels",
            type=float,
            default=50,
            metavar="N",
            help="largest image in millions of pixels; default: 50",
        )
        parser.add_argument(
            "--timeout",
            type=float,
            default=60,
            metavar="SECONDS",
            help="time in which a body has to arrive, and then its map to be made; default: 60",
        )
        add_tta(parser)
        add_stream(parser)

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        # an extra: not for --help
        from spectralmoe_jax.serving.limits import Limits

        limits = Limits(arguments.queue, arguments.max_mb, arguments.max_megapixels, arguments.timeout)
        model = arguments.checkpoint if arguments.run is None else arguments.run
        config = open_config(
            model, overrides, arguments.stream, arguments.config, arguments.tta, arguments.allow_code
        )
        spectralmoe_jax.serve(model, config, host=arguments.host, port=arguments.port, limits=limits)
        return 0
