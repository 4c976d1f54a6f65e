"""Python files of configurations and grids: find one, run it, and call its function."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

from spectralmoe_jax.errors import UserError


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def shipped_files(package: str) -> dict[str, Path]:
    """Return the files shipped in the package `configs` or `configs.ablations`, by file name."""
    folders = importlib.import_module(f"spectralmoe_jax.{package}").__path__
    files = (file for folder in folders for file in sorted(Path(folder).glob("*.py")))
    return {file.name: file for file in files if file.name not in ("__init__.py", "common.py")}


def find_file(file: str, package: str, what: str = "configuration") -> Path:
    """Return the file at a path, or the shipped file of that name.

    Raises:
      UserError: there is no such file; lists the shipped ones.
    """
    if Path(file).is_file():
        return Path(file)
    shipped, name, folder = shipped_files(package), Path(file).name, package.replace(".", "/")
    is_bare = Path(file).parent in (Path("."), Path(folder))
    if is_bare and (found := shipped.get(name) or shipped.get(f"{name}.py")):
        return found
    listed = ", ".join(f"{folder}/{name}" for name in shipped) or "none"
    raise UserError(f"{what} {file} does not exist; shipped: {listed}")


def call_in_file(file: Path, function: str, argument: str = "") -> Any:
    """Run a Python file and return what one of its functions returns.

    Args:
      file: the file.
      function: name of the function.
      argument: passed to the function unless it is empty.

    Raises:
      UserError: the file is not Python, has no such function, or raises an error (names the line), or the
        function takes no argument.
    """
    spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise UserError(f"configuration {file} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        called = getattr(module, function, None)
        if called is None:
            raise UserError(f"configuration {file} has no function {function}()")
        takes_arguments = bool(inspect.signature(called).parameters)
        if argument and not takes_arguments:
            raise UserError(f"configuration {file} takes no arguments, but got {argument!r} after the colon")
        return called(argument) if argument else called()
    except UserError:
        raise
    except Exception as error:
        line = getattr(error, "lineno", None) or _line_in(file, error)
        where, said = f"{file}:{line}" if line else str(file), _one_line(error)
        raise UserError(f"configuration {where}: {type(error).__name__}: {said}") from error


def _line_in(file: Path, error: Exception) -> int | None:
    """Return the line of `file` where the error was raised or passed through, if any."""
    line, frame = None, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == str(file):
            line = frame.tb_lineno
        frame = frame.tb_next
    return line
