"""Former place of `load_config`, for configuration files that start from another one and change it."""

from collections.abc import Sequence
from typing import Any

from spectralmoe_jax.config.given import config_dict
from spectralmoe_jax.config.load import load_given


def load_config(spec: str, overrides: Sequence[str] = ()) -> Any:
    """Read `FILE[:args]` with overrides as a locked dictionary of `ml_collections`.

    Raises:
      UserError: as `config.load.load_given`.
    """
    return config_dict(load_given(spec, overrides))
