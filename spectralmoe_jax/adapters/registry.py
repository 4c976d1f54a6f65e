"""Adapters by name: those of the package, and a user's own by its import path.

`config.model.adapter.kind` is one of `BUILTIN`, or `module:Class`, or `file.py:Class`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from typing import Any

from spectralmoe_jax.adapters.base import Adapter
from spectralmoe_jax.errors import bad_value
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


def adapter_class(kind: str) -> type[Adapter]:
    """Find the class of a kind.

    Raises:
      UserError: there is no such kind, or the user's own cannot be imported or is no adapter.
    """
    if kind in BUILTIN:
        module, _, name = BUILTIN[kind].partition(":")
        return getattr(importlib.import_module(module), name)
    if ":" not in kind:
        near = difflib.get_close_matches(kind, BUILTIN, n=1)
        hint = f"did you mean {near[0]}? there are" if near else "choose from"
        message = f"{hint} {', '.join(BUILTIN)}, or your own as module:Class or file.py:Class"
        raise bad_value(KEY, kind, message)
    found = load_object(kind, KEY)
    _require_adapter(found, kind)
    return found


def _require_adapter(found: Any, kind: str) -> None:
    """Check that what a user's kind names is an adapter.

    Raises:
      UserError: it is not; says what is missing.
    """
    problem = ""
    if not (isinstance(found, type) and issubclass(found, Adapter)):
        problem = "is no subclass of spectralmoe_jax.adapters.base.Adapter"
    elif not (
        isinstance(config := getattr(found, "Config", None), type) and dataclasses.is_dataclass(config)
    ):
        problem = "has no dataclass Config"
    if problem:
        rule = "an adapter subclasses Adapter and has its settings in a dataclass Config"
        raise bad_value(KEY, kind, f"{problem}; {rule} (docs/adding_an_adapter.md)")
