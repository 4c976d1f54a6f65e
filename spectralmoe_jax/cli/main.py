"""Entry point of the command line: find the subcommand, run it, and turn errors into one line and a status.

Status 0: done. 1: done, but with a negative result (`verify`) or with failed runs (`ablate`). 2: bad input,
explained in one line on standard error. 75: a run of several processes lost one; the same command resumes.
130: interrupted.
"""

import difflib
import importlib
import inspect
import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from spectralmoe_jax import __version__
from spectralmoe_jax.cli.signals import listen, was_interrupted
from spectralmoe_jax.errors import RunLost, UserError, shown
from spectralmoe_jax.escapes import PrintableFormatter, printable
from spectralmoe_jax.part_files import INTERRUPTED, leave

# To add a subcommand, add a line here and a class of the same name to the module that the line names, with
# `add_arguments(parser)` and `run(arguments, overrides) -> exit status`.
COMMANDS = {
    "quickstart": ("runs", "train, test and map a simulated two-sensor benchmark; needs no data"),
    "prepare": ("data", "cut a published benchmark into tiles that are fast to read"),
    "init": ("data", "look at a folder of images and labels, and write a configuration for it"),
    "data": ("data", "draw batches of a configuration as a picture, with statistics and timings"),
    "config": ("data", "print a complete configuration: every key with its value and its origin"),
    "train": ("runs", "train on the source domains; an interrupted run can be resumed"),
    "evaluate": ("runs", "score a trained model on whole images, by domain and class"),
    "calibrate": ("runs", "fit the temperature of a model's probabilities, and what its source looks like"),
    "probe": ("runs", "score linear classifiers on a frozen encoder's features, layer by layer"),
    "ablate": ("runs", "run a grid of variants and seeds over one configuration, summarised in one table"),
    "report": (
        "runs",
        "write one HTML page about a run or a grid: curves, tables, scenes, experts; readable offline",
    ),
    "predict": ("maps", "map scenes of any size to georeferenced rasters"),
    "view": ("maps", "write one page that shows the map of a scene over its image"),
    "serve": ("maps", "serve maps of posted images over HTTP"),
    "convert": ("models", "convert published weights to our format, or a trained run to PyTorch"),
    "export": ("models", "write a trained model as a program that needs JAX alone"),
    "push": ("models", "publish a trained model on the Hugging Face hub, with a model card"),
    "verify": ("models", "compare the model numerically with reference values"),
    "compile": (
        "models",
        "compile the steps for a TPU slice or for local devices: memory, FLOPs, collectives",
    ),
    "params": ("models", "count the parameters of a configuration by part"),
}


WITHOUT_JAX = {"prepare", "init", "data", "config"}
"""Subcommands that compute nothing on an accelerator."""


_LONGEST = 4000  # characters of an error, which may name what stands in a hostile file


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status.

    Args:
      argv: the words after the command's name. None for those of this process, which is then the command's
        own: it gets handlers of signals, and is ended without waiting for what still runs in it.
    """
    is_own = argv is None
    arguments = list(sys.argv[1:] if argv is None else argv)
    if is_own:
        _prepare_process(arguments)
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except UserError as error:
        return _fail(str(error))
    except RunLost as error:
        _fail(str(error))
        return 75
    except BrokenPipeError:
        _discard_output()
        return 1
    except OSError as error:
        _discard_output()
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except MemoryError as error:
        return _fail(_no_memory(error))
    except KeyboardInterrupt:
        if is_own:
            leave(INTERRUPTED, "error: interrupted")
        _fail("interrupted")
        return INTERRUPTED


def _no_memory(error: Exception) -> str:
    reason = shown(" ".join(str(error).split())) or "Python could not get more"
    return f"not enough memory ({reason}): try smaller windows, crops or batches"


def _run(argv: list[str]) -> int:
    """Dispatch, and turn errors of the platform into a UserError."""
    try:
        return _dispatch(argv)
    except Exception as error:
        if was_interrupted():
            raise KeyboardInterrupt from error
        if isinstance(error, UnicodeEncodeError) and error.encoding.replace("-", "") == "utf8":
            raise UserError(f"{error.object}: the name is not UTF-8: rename it") from error
        from spectralmoe_jax.cli.platform import is_about_memory, platform_problem  # not for --help

        problem = _no_memory(error) if is_about_memory(error) else platform_problem(error)
        if problem is None:
            raise
        raise UserError(problem) from error


def _prepare_process(argv: Sequence[str]) -> None:
    """Make streams, logging and signals of this process those of a command."""
    # 1. streams: closed ones discard, and names that the encoding lacks are shown with backslashes
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")

    # 2. logging: warnings are one line each
    assert logging.lastResort is not None
    logging.lastResort.setFormatter(PrintableFormatter("%(message)s"))
    warnings.formatwarning = _one_line
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where it cannot keep its cache
    # Orbax reads in tasks: of a damaged checkpoint the first that fails is the error, the others are let go.
    logging.getLogger("asyncio").addFilter(lambda record: "was never retrieved" not in record.getMessage())
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    # for the process of Python's that frees the shared memory of workers after a sudden end, and says so
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")

    # 3. signals
    listen(argv[0] if argv else "")


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    """Format a warning of Python's `warnings` without its place and source."""
    return f"warning: {printable(str(message).strip())}\n"


def _discard_output() -> None:
    """Let nothing else fail at a standard output that takes no more."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        print(f"spectralmoe {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(COMMANDS)}"
        raise UserError(f"unknown subcommand {name!r}; {hint}")
    from spectralmoe_jax.cli.arguments import Parser, split_overrides
    from spectralmoe_jax.cli.platform import check_platform

    module, summary = COMMANDS[name]
    command = getattr(importlib.import_module(f"spectralmoe_jax.cli.{module}"), name.capitalize())
    parser = Parser(prog=f"spectralmoe {name}", description=inspect.cleandoc(command.__doc__ or summary))
    command.add_arguments(parser)
    overrides, rest = split_overrides(argv[1:])
    arguments = parser.parse_args(rest)
    if name not in WITHOUT_JAX:
        check_platform()
    return command.run(arguments, overrides)


def _overview() -> str:
    lines = [f"  {name:<12}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: spectralmoe SUBCOMMAND [options]",
            "",
            "Segmentation of remote-sensing imagery that generalises to unseen sensors, places and seasons.",
            "",
            *lines,
            "",
            "spectralmoe SUBCOMMAND --help lists its options; any key of a configuration can be set,",
            "as in --config.train.batch_size=4.",
        ]
    )


def _fail(message: str) -> int:
    print(f"error: {shown(message.strip(), _LONGEST)}", file=sys.stderr)
    return 2
