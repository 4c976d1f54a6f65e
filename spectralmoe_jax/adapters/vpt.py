"""Deep visual prompt tuning (VPT-deep, arXiv 2203.12119): learned tokens in every block."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.base import Adapter, RunBlock
from spectralmoe_jax.adapters.rein import PATCH
from spectralmoe_jax.config.adapters import VPTConfig


class VisualPrompts(Adapter):
    """Learned tokens that every block attends to and that are dropped after it.

    They stand before all other tokens, which makes no difference to attention.

    Attributes:
      prompts: (L, prompts, D), not decayed.
    """

    Config: ClassVar[type] = VPTConfig
    adds_tokens: ClassVar[bool] = True

    def __init__(
        self, config: VPTConfig, *, layers: int, width: int, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        self.config = config
        bound = (6 / (3 * PATCH**2 + width)) ** 0.5
        shape = (layers, config.num_prompts, width)
        self.prompts = nnx.Param(jax.random.uniform(rngs.params(), shape, param_dtype, -bound, bound))

    def stacked(self) -> dict[str, Array]:
        """Prompts of all layers."""
        return {"prompts": self.prompts[...]}

    def block(self, weights: dict[str, Array], visual: Array, run: RunBlock) -> Array:
        """Run the block on the prompts of its layer and the tokens, and drop the prompts."""
        prompts = weights["prompts"].astype(visual.dtype)  # (prompts, D)
        batch = jnp.broadcast_to(prompts, (visual.shape[0], *prompts.shape))  # (B, prompts, D)
        return run(jnp.concatenate([batch, visual], axis=1))[:, prompts.shape[0] :]
