"""LoRA (arXiv 2106.09685): low-rank changes of the query and value projections."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.base import Adapter, Rule, RunBlock, Weights
from spectralmoe_jax.config.adapters import LoRAConfig

QKV = ("attention", "qkv", "kernel")  # of a block: queries, keys and values side by side


class LoRA(Adapter):
    """W <- W + (alpha / r) A B for the query and the value projection (equation 3).

    Attributes:
      lora_a: A of queries and values, (L, 2, D, R).
      lora_b: B of queries and values, (L, 2, R, D), zero at the start.
    """

    Config: ClassVar[type] = LoRAConfig
    optimizer_rules: ClassVar[tuple[Rule, ...]] = ((r"adapter/lora_[ab]$", 1.0, 1.0),)

    def __init__(
        self, config: LoRAConfig, *, layers: int, width: int, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        self.config = config
        rank, bound = config.lora_rank, width**-0.5  # Kaiming uniform with a = sqrt(5)
        self.lora_a = nnx.Param(
            jax.random.uniform(rngs.params(), (layers, 2, width, rank), param_dtype, -bound, bound)
        )
        self.lora_b = nnx.Param(jnp.zeros((layers, 2, rank, width), param_dtype))

    def stacked(self) -> dict[str, Array]:
        """A and B of all layers."""
        return {"a": self.lora_a[...], "b": self.lora_b[...]}

    def block(self, weights: dict[str, Array], visual: Array, run: RunBlock) -> Array:
        """Run the block with the changed projections."""

        def edit(block: Weights) -> Weights:
            """Add the low-rank change to the query and value projections."""
            factor = self.config.lora_alpha / self.config.lora_rank
            query, value = weights["a"] @ weights["b"] * factor  # (D, D) each
            change = jnp.concatenate([query, jnp.zeros_like(query), value], axis=1)  # (D, 3 D)
            return {QKV: block[QKV] + change}

        return run(visual, edit=edit)
