"""LoRA (arXiv 2106.09685): low-rank changes of the query and value projections."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.base import Rule, RunBlock, Weights
from spectralmoe_jax.adapters.baselines import NoAdapter
from spectralmoe_jax.config.adapters import LoRAConfig

QKV = ("attention", "qkv", "kernel")


class LoRA(NoAdapter):
    """W <- W + (alpha / r) A B on the query and the value projection (arXiv 2106.09685).

    Attributes: lora_a (L, 2, D, r) and lora_b (L, 2, r, D), zero at the start, of queries and values.
    """

    Config: ClassVar[type] = LoRAConfig
    optimizer_rules: ClassVar[tuple[Rule, ...]] = ((r"adapter/lora_[ab]$", 1.0, 1.0),)

    def __init__(self, config: Any, *, layers: int, width: int, param_dtype=jnp.float32, rngs: nnx.Rngs):
        self.config: Any = config
        rank, bound = config.lora_rank, width**-0.5  # Kaiming uniform with a = sqrt(5)
        self.lora_a = nnx.Param(
            jax.random.uniform(rngs.params(), (layers, 2, width, rank), param_dtype, -bound, bound)
        )
        self.lora_b = nnx.Param(jnp.zeros((layers, 2, rank, width), param_dtype))

    def stacked(self) -> dict[str, Array]:
        return {"a": self.lora_a[...], "b": self.lora_b[...]}

    def block(self, weights: dict[str, Array], visual: Array, run: RunBlock) -> Array:
        def edit(block: Weights) -> Weights:
            of_q, of_v = weights["a"] @ weights["b"] * (self.config.lora_alpha / self.config.lora_rank)
            return {QKV: block[QKV] + jnp.concatenate([of_q, jnp.zeros_like(of_q), of_v], axis=1)}

        return run(visual, edit=edit)
