"""Adapters inside the encoder's blocks: LoRA, AdaptFormer and deep visual prompts. None uses dropout."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.plain import NoAdapter
from spectralmoe_jax.adapters.protocol import Rule, RunBlock, Weights
from spectralmoe_jax.adapters.rein import PATCH
from spectralmoe_jax.configuration import require

QKV = ("attention", "qkv", "kernel")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """lora_rank: r. lora_alpha: the change is scaled by lora_alpha / lora_rank."""

    lora_rank: int = 8
    lora_alpha: float = 8.0

    def __post_init__(self) -> None:
        require(self.lora_rank >= 1, "config.model.adapter.lora_rank", "must be at least 1")


class LoRA(NoAdapter):
    """W <- W + (alpha / r) A B on the query and the value projection (arXiv 2106.09685).

    Attributes: lora_a (L, 2, D, r) and lora_b (L, 2, r, D), zero at the start, of queries and values.
    """

    Config: ClassVar[type] = LoraConfig
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


@dataclasses.dataclass(frozen=True)
class AdaptFormerConfig:
    """bottleneck: width of the branch. branch_scale: s."""

    bottleneck: int = 64
    branch_scale: float = 0.1

    def __post_init__(self) -> None:
        require(self.bottleneck >= 1, "config.model.adapter.bottleneck", "must be at least 1")


class AdaptFormer(NoAdapter):
    """x <- x + MLP(LN(x)) + s (ReLU(LN(x) W_down + b_down) W_up + b_up) (arXiv 2205.13535, section 3.2).

    The branch reads the normalised tokens, as in the publication; the authors' code gives it the tokens as
    they are by default. LayerScale, where the encoder has it, is not applied to the branch. The weights are
    not decayed, as published. The way up is zero at the start.
    """

    Config: ClassVar[type] = AdaptFormerConfig
    optimizer_rules: ClassVar[tuple[Rule, ...]] = ((r"adapter/(down|up)_(kernel|bias)$", 0.0, 1.0),)

    def __init__(self, config: Any, *, layers: int, width: int, param_dtype=jnp.float32, rngs: nnx.Rngs):
        self.config: Any = config
        hidden, bound = config.bottleneck, width**-0.5  # Kaiming uniform with a = sqrt(5)
        self.down_kernel = nnx.Param(
            jax.random.uniform(rngs.params(), (layers, width, hidden), param_dtype, -bound, bound)
        )
        self.down_bias = nnx.Param(jnp.zeros((layers, hidden), param_dtype))
        self.up_kernel = nnx.Param(jnp.zeros((layers, hidden, width), param_dtype))
        self.up_bias = nnx.Param(jnp.zeros((layers, width), param_dtype))

    def stacked(self) -> dict[str, Array]:
        names = ("down_kernel", "down_bias", "up_kernel", "up_bias")
        return {name: getattr(self, name)[...] for name in names}

    def block(self, weights: dict[str, Array], visual: Array, run: RunBlock) -> Array:
        own = {name: weight.astype(visual.dtype) for name, weight in weights.items()}

        def beside(normed: Array) -> Array:
            hidden = jax.nn.relu(normed @ own["down_kernel"] + own["down_bias"])
            return self.config.branch_scale * (hidden @ own["up_kernel"] + own["up_bias"])

        return run(visual, beside=beside)


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """num_prompts: prompt tokens of every layer."""

    num_prompts: int = 150

    def __post_init__(self) -> None:
        require(self.num_prompts >= 1, "config.model.adapter.num_prompts", "must be at least 1")


class VisualPrompts(NoAdapter):
    """Learned tokens that every block sees and that are dropped after it (VPT-deep, arXiv 2203.12119).

    They stand before all others, which for attention is the same as between class and patch tokens.
    Attributes: prompts (L, P, D), not decayed.
    """

    Config: ClassVar[type] = PromptConfig
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
