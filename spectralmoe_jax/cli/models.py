"""Subcommands about models and weights: convert, export, push, verify, params and compile."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import spectralmoe_jax
from spectralmoe_jax.cli.arguments import (
    add_allow_code,
    add_config,
    add_model,
    add_stream,
    open_config,
    refuse_overrides,
)
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.escapes import printable
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.weights.hub import fetch_first


class Convert:
    """Convert published weights to our format, or a trained run to another layout.

    Layouts of a trained run: that of the authors' PyTorch code, safetensors, a Hugging Face folder, or the
    published one of a plain mask decoder.
    """

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        parser.add_argument(
            "source",
            metavar="SOURCE",
            help="weights of an encoder or of parts of a segmenter (.safetensors, .pth, .pt, .ckpt, .bin, a "
            "Hugging Face folder, hf://owner/name[@revision][/file]), several separated by commas; or the "
            "folder of a run",
        )
        parser.add_argument("destination", metavar="DEST", help="file or folder to write; must not exist")
        parser.add_argument(
            "--as", dest="format", metavar="FORMAT", help="format of SOURCE, instead of the detected one"
        )
        parser.add_argument("--preset", metavar="NAME", help="the encoder that SOURCE must contain")
        parser.add_argument(
            "--to",
            metavar="LAYOUT",
            choices=("released", "safetensors", "hf", "published", "pmt"),
            help="safetensors (our names; the default), released (a run in the authors' names, .pth or "
            ".safetensors), hf (an encoder as a Hugging Face folder), published (an encoder in its "
            "publisher's names, .pth or .safetensors), pmt (a run's plain mask decoder in its published "
            "names)",
        )
        parser.add_argument(
            "--config",
            metavar="FILE[:args]",
            help="model to fit parts of a segmenter to; default: they stay as they are",
        )
        add_allow_code(parser)

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        if arguments.config is None:
            refuse_overrides(overrides, "convert without --config")
        config = None if arguments.config is None else load_config(arguments.config, overrides)
        fetch_first(arguments.source.split(","))
        done = spectralmoe_jax.convert(
            arguments.source,
            arguments.destination,
            format=arguments.format,
            preset=arguments.preset,
            to=arguments.to,
            config=config,
            allow_code=arguments.allow_code,
        )
        print(printable(done))
        return 0


class Export:
    """Write a trained model as a StableHLO program with its weights and a short loader.

    The folder needs jax and flatbuffers, and not this package. It runs on CPUs, NVIDIA GPUs and TPUs.
    """

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        add_model(parser)
        parser.add_argument("--to", choices=("stablehlo",), default="stablehlo", help="format, the only one")
        parser.add_argument(
            "--output", required=True, metavar="DIR", type=Path, help="folder to write; must not exist"
        )
        add_stream(parser)

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        config = open_config(
            arguments.checkpoint,
            overrides,
            arguments.stream,
            arguments.config,
            allow_code=arguments.allow_code,
        )
        folder = spectralmoe_jax.export(arguments.checkpoint, arguments.output, config)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        print(printable(f"{folder}: {size:.1f} MB; {folder / 'load.py'} loads it"))
        return 0


class Push:
    """Publish the best checkpoint of a run on the Hugging Face hub, with a model card.

    `hf://owner/name` then takes the place of a run's folder. Uploading needs a token of the hub: HF_TOKEN, or
    that of `hf auth login`.
    """

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        parser.add_argument("run_folder", metavar="RUN", help="folder of a run")
        parser.add_argument("target", metavar="hf://owner/name", help="repository to create")
        parser.add_argument(
            "--licence",
            "--license",
            required=True,
            metavar="NAME",
            help="licence of what was trained, such as apache-2.0; weights of encoders keep theirs",
        )
        parser.add_argument("--private", action="store_true", help="create a private repository")
        parser.add_argument("--message", metavar="TEXT", help="message of the commit")
        parser.add_argument(
            "--overwrite", action="store_true", help="commit to a repository that exists already"
        )
        parser.add_argument(
            "--evaluate", action="store_true", help="score the model on the target images first, for the card"
        )
        parser.add_argument(
            "--dry-run",
            metavar="DIR",
            type=Path,
            help="write the folder that would be uploaded, and upload nothing; must not exist",
        )
        add_allow_code(parser)

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        refuse_overrides(overrides, "push")
        done = spectralmoe_jax.push(
            arguments.run_folder,
            arguments.target,
            licence=arguments.licence,
            private=arguments.private,
            message=arguments.message,
            overwrite=arguments.overwrite,
            evaluate=arguments.evaluate,
            dry_run=arguments.dry_run,
            allow_code=arguments.allow_code,
        )
        print(printable(done))
        return 0


class Verify:
    """Compare the model numerically with every reference file in a folder."""

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        parser.add_argument(
            "directory", metavar="DIR", type=Path, help="folder of reference values, at any depth"
        )

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        refuse_overrides(overrides, "verify")
        if not arguments.directory.is_dir():
            raise UserError(f"{arguments.directory} is not a folder; name one with reference values (*.npz)")
        return 0 if spectralmoe_jax.verify(arguments.directory) else 1


class Params:
    """Count the parameters of a configuration by part, trainable and frozen, without allocating them."""

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        add_config(parser)

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        parts = spectralmoe_jax.params(load_config(arguments.config, overrides))
        rows = [(part.name, part.trainable, part.frozen) for part in parts]
        rows.append(("total", sum(part.trainable for part in parts), sum(part.frozen for part in parts)))
        print(f"{'':<20}{'trainable':>15}{'frozen':>15}")
        for name, trainable, frozen in rows:
            print(f"{printable(name):<20}{trainable:>15,}{frozen:>15,}")
        return 0


class Compile:
    """Compile the train and predict steps ahead of time and report memory, FLOPs and collectives.

    The hardware need not be present: for a TPU slice, this needs libtpu (pip install libtpu) but no TPU.
    Nothing is allocated.
    """

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        add_config(parser, "configs/flair.py")
        parser.add_argument(
            "--topology",
            default="local",
            metavar="GENERATION:SHAPE",
            help="devices to compile for, e.g. v5e:16x16; default: local",
        )
        parser.add_argument(
            "--mesh", metavar="AXIS=N,...", help="mesh in place of config.parallel, e.g. data=64,expert=4"
        )
        parser.add_argument(
            "--step",
            choices=("train", "predict", "both"),
            default="both",
            help="step to compile; default: both",
        )
        parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures here")

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        # imports JAX: not for --help
        from spectralmoe_jax.ahead_of_time.compile import STEPS, compile_steps, print_report, with_mesh

        file = arguments.json
        if file and (file.is_dir() or not file.parent.is_dir()):
            raise UserError(f"--json {file}: give a file in a folder that exists")
        config = with_mesh(load_config(arguments.config, overrides), arguments.mesh)
        steps = STEPS if arguments.step == "both" else (arguments.step,)
        report = compile_steps(config, arguments.topology, steps)
        print_report(report)
        if file:
            with atomic_write(file) as aside:
                aside.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        return 0 if all(report[step]["fits"] is not False for step in steps) else 1
