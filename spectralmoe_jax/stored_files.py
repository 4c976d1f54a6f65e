"""Strict reading of JSON files that a run stored for itself, which may be damaged."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.files import read_json

NUMBER = (int, float)
OPTIONAL_NUMBER = (int, float, type(None))
CHECKSUM = "checksum"
"""Key of a JSON object that holds the CRC-32 of the rest."""


def has_form(value: Any, form: Any) -> bool:
    """Return whether a JSON value has a form.

    Args:
      value: the value.
      form: a type or a tuple of types; a list of one form, for lists of it; a dictionary of forms by key, for
        objects that have these keys and maybe others. A key that ends in `?` may be missing, and the key `*`
        stands for all keys of the object.
    """
    if isinstance(form, list):
        return isinstance(value, list) and all(has_form(item, form[0]) for item in value)
    if not isinstance(form, Mapping):
        kinds = form if isinstance(form, tuple) else (form,)
        if isinstance(value, bool):
            return bool in kinds
        return isinstance(value, kinds) and not (isinstance(value, float) and not math.isfinite(value))
    if not isinstance(value, dict):
        return False
    if "*" in form:
        return all(has_form(item, form["*"]) for item in value.values())
    for key, inner in form.items():
        name = key.removesuffix("?")
        if name in value:
            if not has_form(value[name], inner):
                return False
        elif name == key:
            return False
    return True


def with_checksum(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with the checksum of its content."""
    return {**value, CHECKSUM: _checksum(value)}


def read_form(path: Path, form: Any, remedy: str) -> Any:
    """Read a JSON file of a form, and compare its checksum if it has one.

    Raises:
      UserError: it is damaged, or of another form.
      OSError: it cannot be read.
    """
    value = read_json(path, remedy, (dict, list))
    if isinstance(value, dict) and CHECKSUM in value and value[CHECKSUM] != _checksum(value):
        raise UserError(f"{path}: damaged, its content does not match its checksum: {remedy}")
    if not has_form(value, form):
        raise UserError(f"{path}: damaged, values are missing or of another kind: {remedy}")
    return value


def _checksum(value: Mapping[str, Any]) -> int:
    rest = {key: item for key, item in value.items() if key != CHECKSUM}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())
