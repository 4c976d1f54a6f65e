"""Deep visual prompt tuning (VPT-deep, arXiv 2203.12119): learned tokens in every block."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.base import RunBlock
from spectralmoe_jax.adapters.baselines import NoAdapter
from spectralmoe_jax.adapters.rein import PATCH
from spectralmoe_jax.config.adapters import VPTConfig


class VisualPrompts(NoAdapter):
    """Learned tokens that every block sees and that are dropped after it (VPT-deep, arXiv 2203.12119).

    They stand before all others, which for attention is the same as between class and patch tokens.
    Attributes: prompts (L, P, D), not decayed.
    """

    Config: ClassVar[type] = VPTConfig
    adds_tokens: ClassVar[bool] = True

    def __init__(self, config: Any, *, layers: int, width: int, param_dtype=jnp.float32, rngs: nnx.Rngs):
        self.config: Any = config
        bound = (6 / (3 * PATCH**2 + width)) ** 0.5
        shape = (layers, config.num_prompts, width)
        self.prompts = nnx.Param(jax.random.uniform(rngs.params(), shape, param_dtype, -bound, bound))

    def stacked(self) -> dict[str, Array]:
        return {"prompts": self.prompts[...]}

    def block(self, weights: dict[str, Array], visual: Array, run: RunBlock) -> Array:
        prompts = weights["prompts"].astype(visual.dtype)
        seen = jnp.broadcast_to(prompts, (visual.shape[0], *prompts.shape))
        return run(jnp.concatenate([seen, visual], axis=1))[:, prompts.shape[0] :]
