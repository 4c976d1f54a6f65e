"""Adapters by name: those that come with the package, and a user's own by its import path.

`config.model.adapter.kind` is one of `BUILTIN`, or `module:Class`, or `file.py:Class`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flax import nnx

from spectralmoe_jax.errors import UserError

KEY = "config.model.adapter.kind"
_PACKAGE = "spectralmoe_jax.adapters"
BUILTIN = {
    "spectral_moe": f"{_PACKAGE}.spectral_moe:SpectralMoE",
    "none": f"{_PACKAGE}.baselines:NoAdapter",
    "full": f"{_PACKAGE}.baselines:Full",
    "bitfit": f"{_PACKAGE}.bitfit:BitFit",
    "rein": f"{_PACKAGE}.rein:Rein",
    "depthforge": f"{_PACKAGE}.depthforge:DepthForge",
    "set": f"{_PACKAGE}.set:SpectralTokens",
    "fada": f"{_PACKAGE}.fada:FrequencyAdapted",
    "lora": f"{_PACKAGE}.lora:LoRA",
    "adaptformer": f"{_PACKAGE}.adaptformer:AdaptFormer",
    "vpt": f"{_PACKAGE}.vpt:VisualPrompts",
}
METHODS = ("stacked", "layer", "queries")


def adapter_class(kind: str) -> Any:
    """The class of a kind.

    Raises UserError where there is no such kind, or the user's own cannot be imported or is no adapter.
    """
    if kind in BUILTIN:
        module, _, name = BUILTIN[kind].partition(":")
        return getattr(importlib.import_module(module), name)
    if ":" not in kind:
        near = difflib.get_close_matches(kind, BUILTIN, n=1)
        hint = f"did you mean {near[0]}? there are" if near else "choose from"
        raise UserError(
            f"{KEY} = {kind!r}: {hint} {', '.join(BUILTIN)}, or your own as module:Class or file.py:Class"
        )
    place, _, name = kind.rpartition(":")
    module = _import(place, kind)
    found = getattr(module, name, None)
    if found is None:
        near = difflib.get_close_matches(name, dir(module), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{KEY} = {kind!r}: {place} has no {name}{hint}")
    _require_adapter(found, kind)
    return found


def _require_adapter(found: Any, kind: str) -> None:
    """Raises UserError, naming what is missing, where a class is no adapter."""
    rules = "an adapter is an nnx.Module with a dataclass Config and the methods " + ", ".join(METHODS)
    problem = ""
    if not (isinstance(found, type) and issubclass(found, nnx.Module)):
        problem = "is no nnx.Module"
    elif missing := [name for name in METHODS if not callable(getattr(found, name, None))]:
        problem = f"has no method {' and no '.join(missing)}"
    elif not (
        isinstance(config := getattr(found, "Config", None), type) and dataclasses.is_dataclass(config)
    ):
        problem = "has no dataclass Config"
    if problem:
        raise UserError(f"{KEY} = {kind!r}: {problem}; {rules} (docs/adding_an_adapter.md)")


def _import(place: str, kind: str) -> Any:
    """A module by its name or file; whatever it raises becomes a UserError."""
    try:
        if place.endswith(".py"):
            file = Path(place).absolute()
            if not file.is_file():
                raise UserError(f"{KEY} = {kind!r}: there is no file {file}")
            return _from_file(file)
        with _folder_on_path(str(Path.cwd())):
            return importlib.import_module(place)
    except UserError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        raise UserError(f"{KEY} = {kind!r}: {place}: {type(error).__name__}: {message}") from error


@functools.cache
def _from_file(file: Path) -> Any:
    """Once a file: one class has to stay one."""
    name = f"_adapter_{file.stem}_{len(sys.modules)}"
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
def _folder_on_path(folder: str) -> Iterator[None]:
    """A module beside the user is found, whichever way the program was started."""
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
