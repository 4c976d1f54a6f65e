"""Adapters by name: those that come with the package, and a user's own by its import path.

`config.model.adapter.kind` is one of `BUILTIN`, or `module:Class`, or `file.py:Class`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from typing import Any

from flax import nnx

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.import_path import load_object

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
    found = load_object(kind, KEY)
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
