"""Train on the source places of a configuration.

Run again with the same --workdir it goes on from the last checkpoint, and ends
with the same parameters as a run that was never interrupted.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from ml_collections import ConfigDict

from spectralmoe_jax.checkpoints.hub import fetch_first
from spectralmoe_jax.cli.processes import add_process_arguments, all_processes
from spectralmoe_jax.configuration import load_config


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--config", required=True, metavar="FILE[:args]", help="configuration, e.g. configs/dubai.py"
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run, made if needed")
    add_process_arguments(parser)


def run(arguments: Namespace, overrides: Sequence[str]) -> int:
    config = load_config(arguments.config, overrides)
    fetch_first(_weights(config))
    with all_processes(arguments):
        import jax

        from spectralmoe_jax.training.run import train

        result = train(config, arguments.workdir)
        if jax.process_index() == 0:
            best = "" if result["best"] is None else f", best checkpoint at step {result['best']}"
            print(f"{result['workdir']}: {result['step']} steps{best}")
    return 0


def _weights(config: ConfigDict) -> list[str]:
    """What the configuration reads weights from."""
    model = config.get("model") or {}  # what is missing or wrong in it is reported when it is built
    sections = (model, model.get("visual") or {}, model.get("depth") or {})
    given = [part.get("weights") or () for part in sections]
    return [spec for one in given for spec in (one.split(",") if isinstance(one, str) else one)]
