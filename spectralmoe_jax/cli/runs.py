"""Subcommands about runs: quickstart, train, evaluate, calibrate, probe, ablate and report."""

import contextlib
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import spectralmoe_jax
from spectralmoe_jax.cli.arguments import (
    add_allow_code,
    add_config,
    add_model,
    add_stream,
    add_tta,
    open_config,
    refuse_overrides,
)
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.escapes import printable
from spectralmoe_jax.weights.hub import fetch_first


def add_process_arguments(parser: ArgumentParser) -> None:
    """Add the options by which a subcommand joins other processes, on this host or on others."""
    group = parser.add_argument_group("several processes (detected on SLURM, JobSet and TPU VMs)")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address on which process 0 listens")
    group.add_argument("--processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process-id", type=int, metavar="I", help="number of this process, from 0")
    group.add_argument(
        "--start-timeout",
        type=int,
        default=300,
        metavar="SECONDS",
        help="give up if the processes have not met by then (default: 300)",
    )


@contextlib.contextmanager
def all_processes(arguments: Namespace) -> Iterator[None]:
    """Join the run's other processes, if the command line or the environment names any."""
    # imports JAX: not for --help
    from spectralmoe_jax.parallel.distributed import find_cluster, join_cluster

    cluster = find_cluster(os.environ, arguments.coordinator, arguments.processes, arguments.process_id)
    with join_cluster(cluster, arguments.start_timeout):
        yield


class Quickstart:
    """Train on one simulated sensor, test on another, and write a map and a picture. Needs no data."""

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        parser.add_argument(
            "--workdir",
            metavar="DIR",
            type=Path,
            default=Path("runs/quickstart"),
            help="folder of the run; default: runs/quickstart",
        )

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        spectralmoe_jax.quickstart(arguments.workdir, overrides)
        return 0


class Train:
    """Train on the source domains of a configuration.

    The same command resumes an interrupted run from its last checkpoint, and ends with the same parameters as
    a run that was never interrupted.
    """

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        add_config(parser)
        parser.add_argument(
            "--workdir", required=True, metavar="DIR", help="folder of the run, created if needed"
        )
        add_process_arguments(parser)

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        config = load_config(arguments.config, overrides)
        fetch_first(config.model.weight_files)
        with all_processes(arguments):
            import jax

            result = spectralmoe_jax.train(config, arguments.workdir)
            if jax.process_index() == 0:
                best = "" if result["best"] is None else f", best checkpoint at step {result['best']}"
                print(printable(f"{result['workdir']}: {result['step']} steps{best}"))
        return 0


class Evaluate:
    """Score a trained model on whole images, by domain and class."""

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        add_model(parser, workdir=True)
        parser.add_argument(
            "--split",
            choices=("target", "source", "holdout"),
            default="target",
            help="images to score; default: target",
        )
        parser.add_argument("--output", metavar="FILE.json", type=Path, help="also write the scores here")
        parser.add_argument(
            "--images", metavar="FILE.npz", type=Path, help="write the confusion matrix of every image here"
        )
        add_tta(parser)
        add_stream(parser)
        add_process_arguments(parser)

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        model = arguments.checkpoint if arguments.workdir is None else arguments.workdir
        config = open_config(
            model, overrides, arguments.stream, arguments.config, arguments.tta, arguments.allow_code
        )
        with all_processes(arguments):
            spectralmoe_jax.evaluate(
                model,
                config,
                split=arguments.split,
                output=arguments.output,
                images=arguments.images,
            )
        return 0


class Calibrate:
    """Fit how far to trust a trained model, on its source images, and keep the result with it.

    A temperature for its probabilities, by held-out pixels; and the features of the source, which tell how
    far a scene is from them. `predict --probabilities` and `--uncertainty` use them.
    """

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        add_model(parser, workdir=True)
        add_tta(parser)
        add_stream(parser)

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        model = arguments.checkpoint if arguments.workdir is None else arguments.workdir
        config = open_config(
            model, overrides, arguments.stream, arguments.config, arguments.tta, arguments.allow_code
        )
        spectralmoe_jax.calibrate(model, config)
        return 0


class Probe:
    """Score linear classifiers on the frozen features of every layer of the encoder.

    They are fitted on the source and tested on held-out source images and on the target: the first thing to
    run to see whether an encoder carries over to another sensor. Writes a table, probe.json and probe.png.
    """

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        given = parser.add_mutually_exclusive_group(required=True)
        given.add_argument(
            "file", nargs="?", metavar="CONFIG", help="configuration, e.g. configs/cloud_shadow.py:galileo"
        )
        given.add_argument("--config", metavar="FILE[:args]", help="the same")
        parser.add_argument(
            "--workdir", required=True, metavar="DIR", help="folder for results and features, made if needed"
        )
        parser.add_argument(
            "--seeds", type=int, default=1, metavar="N", help="number of held-out splits; default: 1"
        )
        parser.add_argument(
            "--penalty",
            type=float,
            metavar="P",
            help="weight of the squared coefficients of the logistic regression; default: chosen for each "
            "layer on held-out source images",
        )

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        config = load_config(arguments.config if arguments.file is None else arguments.file, overrides)
        fetch_first(config.model.weight_files)
        spectralmoe_jax.probe(config, arguments.workdir, seeds=arguments.seeds, penalty=arguments.penalty)
        return 0


class Ablate:
    """Run a grid of variants and seeds over one configuration, and write its tables.

    The same command resumes an interrupted grid: runs that are done are skipped, those that failed are tried
    again.
    """

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        parser.add_argument(
            "grid", metavar="FILE[:BASE]", help="grid, e.g. configs/ablations/experts.py:cloud_shadow"
        )
        parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the grid")
        parser.add_argument(
            "--base", metavar="FILE[:args]", help="configuration to vary, if not given after the colon"
        )
        parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N-1 instead of the grid's own")
        parser.add_argument(
            "--only",
            action="append",
            default=[],
            metavar="VARIANT",
            help="run only this variant (repeatable)",
        )
        parser.add_argument(
            "--side-by-side", type=int, metavar="N", help="runs at a time (default: one per GPU, or one)"
        )
        mode = parser.add_mutually_exclusive_group()
        mode.add_argument(
            "--task", type=int, metavar="INDEX", help="perform only run number INDEX, in this process"
        )
        mode.add_argument(
            "--collect", action="store_true", help="run nothing; write the tables of the runs that are done"
        )
        mode.add_argument("--list", action="store_true", help="print the folder of every run, one per line")
        parser.add_argument(
            "--end-with-parent", action="store_true", help="exit when standard input is closed"
        )

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        # imports JAX: not for --help
        from spectralmoe_jax.ablation.ablate import ablate, collect_results, list_folders, run_task

        grid = (arguments.grid, arguments.workdir)
        options = {"base": arguments.base, "seeds": arguments.seeds}
        if arguments.list:
            print("\n".join(map(printable, list_folders(*grid, overrides, **options))))
            return 0
        if arguments.task is not None:
            run_task(*grid, arguments.task, overrides, with_parent=arguments.end_with_parent, **options)
            return 0
        if arguments.collect:
            results = collect_results(*grid, overrides, **options)
        else:
            results = ablate(
                *grid, overrides, only=arguments.only, side_by_side=arguments.side_by_side, **options
            )
        print((Path(arguments.workdir) / "table.md").read_text(encoding="utf-8"))
        asked = arguments.only or results["variants"]
        done = all("miou" in run for variant in asked for run in results["variants"][variant]["runs"])
        return 0 if done or arguments.collect else 1


class Report:
    """Write one HTML page about a run or a grid, readable offline and on a phone.

    A run that has not been evaluated yet is evaluated on its target first.
    """

    @staticmethod
    def add_arguments(parser: ArgumentParser) -> None:
        """Add the options of the subcommand."""
        parser.add_argument("workdir", metavar="DIR", type=Path, help="folder that train or ablate wrote")
        parser.add_argument(
            "--output", metavar="FILE.html", type=Path, help="file to write (default: report.html in DIR)"
        )
        add_allow_code(parser)

    @staticmethod
    def run(arguments: Namespace, overrides: Sequence[str]) -> int:
        """Run the subcommand and return its exit status."""
        refuse_overrides(overrides, "report")
        path = spectralmoe_jax.report(arguments.workdir, arguments.output, allow_code=arguments.allow_code)
        print(printable(f"{path}: {path.stat().st_size / 1e6:.2f} MB"))
        return 0
