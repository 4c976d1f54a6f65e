"""What a user wrote in a configuration: nested dictionaries, a ConfigDict, or values by dotted key."""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from typing import Any

# ml_collections is imported where it is used: the model and the step also run without it.
if typing.TYPE_CHECKING:
    from ml_collections import ConfigDict

Given = dict[str, Any]
"""What a user wrote: nested dictionaries, with every list as a tuple."""


def given_of(config: ConfigDict) -> Given:
    """Convert a ConfigDict to nested dictionaries."""
    return as_given(config.to_dict())


def config_dict(given: Mapping[str, Any]) -> ConfigDict:
    """Convert nested dictionaries to a locked ConfigDict."""
    from ml_collections import ConfigDict

    return ConfigDict(dict(given)).lock()


def as_given(value: Any) -> Any:
    """Return nested values as a configuration has them: lists as tuples, and paths as strings."""
    if isinstance(value, dict):
        return {key: as_given(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(as_given(item) for item in value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def flatten(given: Any, prefix: str = "") -> dict[str, Any]:
    """Return values by dotted key, as in `{"train.steps": 100}`; an empty section is kept as `{}`."""
    if not isinstance(given, Mapping) or (prefix and not given):
        return {prefix: given}
    flat: dict[str, Any] = {}
    for key, value in given.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
