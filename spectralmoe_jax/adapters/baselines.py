"""Adapters without parameters: none at all, the whole encoder trained, or its biases alone."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.base import Grid, LayerOutput, Path
from spectralmoe_jax.config.adapters import FullConfig, NoAdapterConfig


def passed_on(visual: Array) -> LayerOutput:
    """The output of a layer that leaves the tokens as they are."""
    return LayerOutput(visual, jnp.zeros((), jnp.promote_types(jnp.float32, visual.dtype)))


class NoAdapter(nnx.Module):
    """The encoder's own tokens: the frozen encoder as a baseline."""

    Config: ClassVar[type] = NoAdapterConfig

    def __init__(self, config: Any, *, layers: int, width: int, param_dtype=jnp.float32, rngs: nnx.Rngs):
        self.config: Any = config

    def stacked(self) -> dict[str, Array]:
        return {}

    def layer(self, weights: Any, visual: Array, depth: Array | None, noise: Array | None,
              grid: Grid) -> LayerOutput:  # fmt: skip
        return passed_on(visual)

    def queries(self) -> None:
        return None


class Full(NoAdapter):
    """Fine-tuning: every weight of the visual encoder that its features use is trained."""

    Config: ClassVar[type] = FullConfig

    def trains(self, path: Path) -> bool:
        return True
