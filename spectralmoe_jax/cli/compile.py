"""Compile the train and predict steps for a machine that need not be here, and say what they take there.

For a TPU slice it needs libtpu (pip install libtpu) and no TPU. Nothing is allocated.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from spectralmoe_jax.configuration import load_config


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--config", required=True, metavar="FILE[:args]", help="configuration, e.g. configs/flair.py"
    )
    parser.add_argument(
        "--topology", default="local", metavar="GENERATION:SHAPE", help="e.g. v5e:16x16; default: local"
    )
    parser.add_argument(
        "--mesh", metavar="AXIS=N,...", help="instead of config.parallel, e.g. data=64,expert=4"
    )
    parser.add_argument("--step", choices=("train", "predict", "both"), default="both", help="default: both")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures here as well")


def run(arguments: Namespace, overrides: Sequence[str]) -> int:
    from spectralmoe_jax.compilation.report import print_report, with_mesh

    config = with_mesh(load_config(arguments.config, overrides), arguments.mesh)
    from spectralmoe_jax.compilation.command import STEPS, compile_steps

    steps = STEPS if arguments.step == "both" else (arguments.step,)
    report = compile_steps(config, arguments.topology, steps)
    print_report(report)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(report[step]["fits"] is not False for step in steps) else 1
