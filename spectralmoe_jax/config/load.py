"""Read configurations from Python files and the command line.

A configuration is a Python file whose `get_config()` or `get_config(args)` returns an
`ml_collections.ConfigDict`. It is converted to nested dictionaries of what the user wrote, and these to a
`RunConfig`.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from spectralmoe_jax.config.fields import unread_keys, warn_once
from spectralmoe_jax.config.given import Given, given_of
from spectralmoe_jax.config.overrides import apply_overrides
from spectralmoe_jax.config.python_files import call_in_file, find_file
from spectralmoe_jax.config.schema import DataConfig, RunConfig
from spectralmoe_jax.errors import UserError, require

if typing.TYPE_CHECKING:
    from ml_collections import ConfigDict

Configuration: typing.TypeAlias = "RunConfig | ConfigDict | str"
"""Configuration as public functions accept it: a RunConfig, a ConfigDict, or `FILE[:args]`."""


def load_config(spec: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `FILE[:args]` and apply overrides.

    Args:
      spec: path of a configuration file, optionally followed by `:args`, a string for `get_config`.
        A path that does not exist is looked up by name among the shipped configurations.
      overrides: dotted assignments such as `--config.train.batch_size=4`.

    Raises:
      UserError: the file is missing or broken, a key is unknown or missing, or a value is not allowed.
    """
    given = load_given(spec, overrides)
    require_read(given)
    return RunConfig.from_given(given)


def require_read(given: Mapping[str, Any], only: Sequence[str] | None = None) -> None:
    """Check that the kind of the data reads every key of `data` that is given, in each stream too.

    Args:
      given: the configuration.
      only: assignments such as `--config.data.tile=512`, whose keys alone are checked; a warning is logged
        of others. None to check all keys.

    Raises:
      UserError: it does not; names the key, the kind, and the kinds that read the key.
    """
    data = given.get("data")
    sections: dict[str, Any] = {"config.data": data}
    streams = given.get("streams")
    for name, stream in streams.items() if isinstance(streams, Mapping) else ():
        own = stream.get("data") if isinstance(stream, Mapping) else None
        if isinstance(own, Mapping) and isinstance(data, Mapping):
            sections[f"config.streams.{name}.data"] = {"kind": data.get("kind"), **own}
    assigned = {override.removeprefix("--").partition("=")[0] for override in only or ()}
    for place, section in sections.items():
        for key, kinds in unread_keys(DataConfig, section).items():
            problem = (
                f"{place}.{key}: data of the kind {section['kind']!r} does not read it, "
                f"{' and '.join(kinds)} {'do' if len(kinds) > 1 else 'does'}: leave it out, or choose "
                f"another {place}.kind"
            )
            if only is None or f"{place}.{key}" in assigned:
                raise UserError(problem)
            warn_once(f"ignored: {problem}")


def as_run_config(config: Configuration) -> RunConfig:
    """Convert a configuration in any form to a RunConfig.

    Raises:
      UserError: as in `load_config`.
    """
    if isinstance(config, RunConfig):
        return config
    if isinstance(config, str):
        return load_config(config)
    given = given_of(config)
    require_read(given)
    return RunConfig.from_given(given)


def load_given(spec: str, overrides: Sequence[str] = ()) -> Given:
    """Read `FILE[:args]` and apply overrides, without building a RunConfig.

    Raises:
      UserError: the file is missing or broken, or an override is wrong.
    """
    from ml_collections import ConfigDict

    file, _, arguments = spec.partition(":")
    path = find_file(file, "configs")
    config = call_in_file(path, "get_config", arguments)
    if isinstance(config, RunConfig):  # the file starts from another one with `load_config`
        return apply_overrides(config.given, overrides)
    is_config = isinstance(config, ConfigDict)
    require(is_config, str(path), "get_config() has to return an ml_collections.ConfigDict")
    return apply_overrides(given_of(config), overrides)
