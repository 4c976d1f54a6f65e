"""AdaptFormer (arXiv 2205.13535): a bottleneck branch beside each feed-forward block."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.base import Adapter, Rule, RunBlock
from spectralmoe_jax.config.adapters import AdaptFormerConfig


class AdaptFormer(Adapter):
    """x <- x + MLP(LN(x)) + s (ReLU(LN(x) W_down + b_down) W_up + b_up) (section 3.2).

    The branch reads the normalised tokens, as in the publication; the authors' code gives it the tokens as
    they are by default. LayerScale, where the encoder has it, is not applied to the branch. The weights are
    not decayed, as published. W_up and b_up are zero at the start.

    Attributes (F is the width of the branch):
      down_kernel, down_bias: (L, D, F), (L, F).
      up_kernel, up_bias: (L, F, D), (L, D).
    """

    Config: ClassVar[type] = AdaptFormerConfig
    optimizer_rules: ClassVar[tuple[Rule, ...]] = ((r"adapter/(down|up)_(kernel|bias)$", 0.0, 1.0),)

    def __init__(
        self, config: AdaptFormerConfig, *, layers: int, width: int, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        self.config = config
        hidden, bound = config.bottleneck, width**-0.5  # Kaiming uniform with a = sqrt(5)
        self.down_kernel = nnx.Param(
            jax.random.uniform(rngs.params(), (layers, width, hidden), param_dtype, -bound, bound)
        )
        self.down_bias = nnx.Param(jnp.zeros((layers, hidden), param_dtype))
        self.up_kernel = nnx.Param(jnp.zeros((layers, hidden, width), param_dtype))
        self.up_bias = nnx.Param(jnp.zeros((layers, width), param_dtype))

    def stacked(self) -> dict[str, Array]:
        """Weights of the branches of all layers."""
        names = ("down_kernel", "down_bias", "up_kernel", "up_bias")
        return {name: getattr(self, name)[...] for name in names}

    def block(self, weights: dict[str, Array], visual: Array, run: RunBlock) -> Array:
        """Run the block with the branch beside its feed-forward part."""
        weights = {name: weight.astype(visual.dtype) for name, weight in weights.items()}

        def beside(normed: Array) -> Array:
            """Compute the branch from the normalised tokens: (B, T, D) -> (B, T, D)."""
            hidden = jax.nn.relu(normed @ weights["down_kernel"] + weights["down_bias"])  # (B, T, F)
            return self.config.branch_scale * (hidden @ weights["up_kernel"] + weights["up_bias"])

        return run(visual, beside=beside)
