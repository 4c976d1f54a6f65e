"""Configurations that are stored: in the folder of a run, or in a file that carries one.

Such a configuration may be damaged or somebody else's: code that it names is not run unless the user says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from spectralmoe_jax.config.given import Given, as_given, config_dict
from spectralmoe_jax.config.load import require_read
from spectralmoe_jax.config.overrides import apply_overrides
from spectralmoe_jax.config.own_code import require_allowed_code
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.files import atomic_write, read_json

CONFIG_FILE, CHECKPOINTS = "config.json", "checkpoints"
"""Names, in a run's folder, of the file with its configuration and of the folder with its checkpoints."""


def read_run_config(
    workdir: str | os.PathLike[str], overrides: Sequence[str] = (), allow_code: bool = False
) -> RunConfig:
    """Read the configuration stored in a run's folder, and apply overrides.

    Raises:
      UserError: as in `read_config`.
    """
    return read_config(Path(workdir) / CONFIG_FILE, overrides, allow_code)


def read_run_given(workdir: str | os.PathLike[str]) -> Given:
    """Read the configuration stored in a run's folder as nested dictionaries, not as a RunConfig.

    Raises:
      UserError: the folder holds no configuration.
    """
    return read_given(Path(workdir) / CONFIG_FILE)


def save_config(config: RunConfig, path: str | os.PathLike[str]) -> None:
    """Write what the user gave in a configuration as JSON; the file is never left incomplete."""
    with atomic_write(Path(path)) as aside:
        aside.write_text(json.dumps(config_dict(config.given).to_dict(), indent=2) + "\n", encoding="utf-8")


def read_config(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), allow_code: bool = False
) -> RunConfig:
    """Read a file that `save_config` wrote, and apply overrides.

    Args:
      path: the file.
      overrides: from the command line.
      allow_code: whether the configuration may name code that is not in `overrides`; True where nothing is
        built from it.

    Raises:
      UserError: the file is missing or not a stored configuration, an override does not fit it, or it names
        code.
    """
    return stored_config(read_given(path), path, overrides, allow_code)


def stored_config(
    given: Given, place: object, overrides: Sequence[str] = (), allow_code: bool = False
) -> RunConfig:
    """Return a stored configuration with overrides; arguments as in `read_config`.

    It may hold keys that the kind of its data does not read.

    Raises:
      UserError: names the place and the key that is wrong; or it names code.
    """
    changed = apply_overrides(given, overrides)
    require_allowed_code(changed, place, overrides, allow_code)
    require_read(changed, overrides)
    try:
        return RunConfig.from_given(changed)
    except UserError as problem:
        if overrides:  # which may be what is wrong
            raise
        raise UserError(f"{place}: {problem}") from None


def read_given(path: str | os.PathLike[str]) -> Given:
    """Read a file that `save_config` wrote as nested dictionaries, not as a RunConfig.

    Raises:
      UserError: the file is missing or not a stored configuration.
    """
    remedy = "name a folder that `spectralmoe train` wrote, or restore its config.json"
    try:
        return as_given(read_json(Path(path), remedy))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; {remedy.partition(',')[0]}") from None
