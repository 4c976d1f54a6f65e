"""Import of a user's own code by a path in the configuration: `module:name` or `file.py:name`."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import importlib.util
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from spectralmoe_jax.errors import UserError


def load_object(path: str, key: str) -> Any:
    """Return the object that an import path names.

    Args:
      path: `module:name` or `file.py:name`; modules are also found in the current folder.
      key: the configuration key that holds the path, for error messages.

    Raises:
      UserError: the module cannot be imported, or has no such name.
    """
    place, _, name = path.rpartition(":")
    module = _import(place, f"{key} = {path!r}")
    found = getattr(module, name, None)
    if found is None:
        near = difflib.get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{key} = {path!r}: {place} has no {name}{hint}")
    return found


def _import(place: str, setting: str) -> ModuleType:
    """Import a module by name or file; turn any exception into a UserError."""
    try:
        if place.endswith(".py"):
            file = Path(place).absolute()
            if not file.is_file():
                raise UserError(f"{setting}: there is no file {file}")
            return _import_file(file)
        with _current_folder_on_path():
            return importlib.import_module(place)
    except UserError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        raise UserError(f"{setting}: {place}: {type(error).__name__}: {message}") from error


@functools.cache  # a class that is imported twice would be two classes
def _import_file(file: Path) -> ModuleType:
    """Import a file under a name that depends on its path alone, so that other processes use the same one."""
    name = f"_user_{file.stem}_{zlib.crc32(str(file).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up the names in their annotations
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _current_folder_on_path() -> Iterator[None]:
    """Find modules in the current folder, whichever way the program was started."""
    folder = str(Path.cwd())
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
