"""Seeing, before the first step, that all hosts run the same thing."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from spectralmoe_jax import __version__
from spectralmoe_jax.errors import UserError


def require_agreement(config: dict[str, Any]) -> None:
    """Compares a flat configuration, and the versions of this package and of JAX, over all hosts.

    Raises:
      UserError: on every host, naming the first host that differs from host 0 and in what.
    """
    if jax.process_count() == 1:
        return
    versions = {"spectralmoe_jax version": __version__, "jax version": jax.__version__}
    everyone = _from_all({**config, **versions})
    for host, other in enumerate(everyone):
        differing = sorted(k for k in other.keys() | everyone[0].keys() if other.get(k) != everyone[0].get(k))
        if differing:
            listed = "; ".join(
                f"{k} is {everyone[0].get(k)!r} on host 0, {other.get(k)!r}" for k in differing[:4]
            )
            raise UserError(f"hosts {host} and 0 do not run the same: {listed}; start all hosts alike")


def _from_all(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The values that every host gives, in their order."""
    text = json.dumps(values, sort_keys=True, default=str).encode()
    longest = int(multihost_utils.process_allgather(np.int32(len(text))).max())
    padded = np.frombuffer(text.ljust(longest), np.uint8)
    return [json.loads(bytes(row)) for row in multihost_utils.process_allgather(padded)]
