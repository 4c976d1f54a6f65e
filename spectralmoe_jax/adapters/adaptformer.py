"""AdaptFormer (arXiv 2205.13535): a bottleneck branch beside each feed-forward block."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.base import Rule, RunBlock
from spectralmoe_jax.adapters.baselines import NoAdapter
from spectralmoe_jax.config.adapters import AdaptFormerConfig


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
