"""Parsing of arguments that subcommands share."""

import argparse
import difflib
from collections.abc import Sequence
from typing import NoReturn

from spectralmoe_jax.config.own_code import ALLOW_CODE
from spectralmoe_jax.config.schema import TTA, RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.model_files import config_of_model, weight_specs
from spectralmoe_jax.weights.hub import fetch_first


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises a one-line UserError instead of printing its usage."""

    def __init__(self, prog: str, description: str | None):
        super().__init__(
            prog=prog,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def parse_args(self, argv: Sequence[str]) -> argparse.Namespace:  # type: ignore[override]
        """Parse arguments; an unknown option is an error that names the nearest known one."""
        arguments, unknown = self.parse_known_args(argv)
        if unknown:
            name = unknown[0].partition("=")[0]
            options = [option for option in self._option_string_actions if option.startswith("--")]
            near = difflib.get_close_matches(name, options, n=1)
            self.error(f"unknown argument {name}; " + (f"did you mean {near[0]}?" if near else "see --help"))
        return arguments

    def error(self, message: str) -> NoReturn:
        """Raise a UserError with the message."""
        raise UserError(f"{self.prog}: {message}")


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate `--config.a.b=value` and `--config.a.b value` from the other arguments.

    Returns:
      The overrides, each as `--config.a.b=value`, and the rest in order.

    Raises:
      UserError: an override without a value.
    """
    overrides, rest = [], []
    remaining = iter(argv)
    for argument in remaining:
        if not argument.startswith("--config."):
            rest.append(argument)
        elif "=" in argument:
            overrides.append(argument)
        else:
            value = next(remaining, None)
            if value is None or value.startswith("--"):
                raise UserError(f"{argument.removeprefix('--')} needs a value, as in {argument}=...")
            overrides.append(f"{argument}={value}")
    return overrides, rest


def refuse_overrides(overrides: Sequence[str], command: str) -> None:
    """Raise a UserError if there are overrides for a subcommand without a configuration.

    Args:
      overrides: from `split_overrides`.
      command: name of the subcommand, for the message.
    """
    if overrides:
        name = overrides[0].partition("=")[0]
        raise UserError(f"spectralmoe {command} has no configuration, so {name} has no meaning there")


def add_config(parser: argparse.ArgumentParser, example: str = "configs/dubai.py") -> None:
    """Add the required option `--config`."""
    parser.add_argument(
        "--config", required=True, metavar="FILE[:args]", help=f"configuration, e.g. {example}"
    )


def add_model(parser: argparse.ArgumentParser, *, workdir: bool = False) -> None:
    """Add the options `--checkpoint`, perhaps with an alias, and `--config` of a trained model.

    Args:
      parser: the subcommand's.
      workdir: whether `--workdir` means the same.
    """
    model = parser.add_mutually_exclusive_group(required=True)
    what = "folder of a run, whose best checkpoint is used; or weight files, separated by commas"
    if workdir:
        model.add_argument("--workdir", metavar="RUN", help=what + ", or hf://owner/name")
    model.add_argument(
        "--checkpoint",
        metavar="RUN",
        help="the same as --workdir" if workdir else what + ", or hf://owner/name",
    )
    add_config_of_model(parser)


def add_config_of_model(parser: argparse.ArgumentParser) -> None:
    """Add the option `--config` of a trained model."""
    parser.add_argument(
        "--config",
        metavar="FILE[:args]",
        help="configuration to use instead of the model's own; needed for weights that carry none",
    )
    add_allow_code(parser)


def add_allow_code(parser: argparse.ArgumentParser) -> None:
    """Add the option `--allow-code`."""
    parser.add_argument(
        ALLOW_CODE,
        action="store_true",
        help="run the code that the model's stored configuration names: an adapter or a data source of "
        "one's own; only for models of people you trust",
    )


def add_tta(parser: argparse.ArgumentParser) -> None:
    """Add the option `--tta`, short for `--config.evaluate.tta`."""
    parser.add_argument(
        "--tta",
        choices=TTA,
        help="average over copies of every window: flips, d4 (flips and turns), multiscale, or released (as "
        "the authors' --tta); default: none, or what the configuration says",
    )


def add_stream(parser: argparse.ArgumentParser) -> None:
    """Add the option `--stream`, which selects one sensor of a run on several."""
    parser.add_argument(
        "--stream",
        metavar="NAME",
        help="in a run on several sensors: the one whose bands and statistics to use",
    )


def open_config(
    model: str,
    overrides: Sequence[str],
    stream: str | None,
    file: str | None = None,
    tta: str | None = None,
    allow_code: bool = False,
) -> RunConfig:
    """Read the configuration of a trained model, which is first fetched if it is on the hub.

    Args:
      model: as `spectralmoe_jax.load` takes it.
      overrides: from `split_overrides`.
      stream: in a run on several sensors, the one to use, or None.
      file: `FILE[:args]` of a configuration instead of the model's own, or None.
      tta: from the option `--tta`.
      allow_code: from the option `--allow-code`.
    """
    fetch_first(weight_specs(model))
    overrides = [*overrides, f"--config.evaluate.tta={tta}"] if tta else overrides
    config = config_of_model(model, overrides, file, allow_code)
    return config.stream(stream) if stream else config
