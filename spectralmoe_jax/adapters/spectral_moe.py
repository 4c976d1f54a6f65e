"""The dual-gated mixture of low-rank token experts (arXiv 2603.13352, section 3).

Parameters of all layers are stacked on a leading axis, so that the encoder's scan slices them with
its own blocks. One layer is `SpectralMoE.layer`, a pure function of its slice.
"""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters import experts, gating
from spectralmoe_jax.adapters.fusion import fuse
from spectralmoe_jax.adapters.link import Projection, merged
from spectralmoe_jax.adapters.protocol import Grid, LayerOutput
from spectralmoe_jax.adapters.settings import AdapterConfig


class SpectralMoE(nnx.Module):
    """The adapter of all layers.

    Attributes (L layers, E experts, M tokens an expert, R the largest rank, J routers, D width):
      experts_a: (L, E, M, R); experts_b: (L, E, R, D). An expert of smaller rank is zero beyond its
        rank on both sides, where the gradient of a product of zeros keeps it.
      w_gate, w_noise: (L, J, D, E), zero at the start.
      token_to_feature: W_t. delta_to_feature: W_d. scale: alpha. transform: W_q. merge: W_m.
    """

    Config: ClassVar[type] = AdapterConfig

    def __init__(self, config: AdapterConfig, *, layers: int, width: int,
                 param_dtype=jnp.float32, rngs: nnx.Rngs):  # fmt: skip
        e, r = config.num_experts, max(config.ranks)
        self.config = config
        self.experts_a = nnx.Param(_initial_a(rngs.params(), config, layers, param_dtype))
        self.experts_b = nnx.Param(jnp.zeros((layers, e, r, width), param_dtype))
        routers = (layers, config.num_routers, width, e)
        self.w_gate = nnx.Param(jnp.zeros(routers, param_dtype))
        self.w_noise = nnx.Param(jnp.zeros(routers, param_dtype))
        self.token_to_feature = Projection(width, width, param_dtype=param_dtype, rngs=rngs)
        self.delta_to_feature = Projection(width, width, param_dtype=param_dtype, rngs=rngs)
        self.transform = Projection(width, config.query_dim, param_dtype=param_dtype, rngs=rngs)
        self.merge = Projection(3 * config.query_dim, config.query_dim, param_dtype=param_dtype, rngs=rngs)
        self.scale = nnx.Param(jnp.asarray(config.scale_init, param_dtype))

    def stacked(self) -> dict[str, Array]:
        """What a scan over layers slices: every leaf has the layer axis first."""
        return {
            "a": self.experts_a[...],
            "b": self.experts_b[...],
            "w_gate": self.w_gate[...],
            "w_noise": self.w_noise[...],
        }

    def draw_noise(self, key: Array, batch: int, tokens: int) -> Array:
        """Standard normal draws for one layer's routers: (J, B, N, E), visual first."""
        shape = (self.config.num_modalities, batch, tokens, self.config.num_experts)
        return jax.random.normal(key, shape, jnp.promote_types(jnp.float32, self.w_gate.dtype))

    def layer(self, weights: dict[str, Array], visual: Array, depth: Array | None,
              noise: Array | None = None, grid: Grid | None = None) -> LayerOutput:  # fmt: skip
        """Refine the patch tokens of one layer.

        Args:
          weights: one layer's slice of `stacked()`.
          visual, depth: patch tokens (B, N, D); depth is None without the depth modality.
          noise: in training (J, B, N, E) standard normal draws, or a key for them; None in evaluation.
          grid: not used.
        """
        if noise is not None and jnp.issubdtype(noise.dtype, jax.dtypes.prng_key):
            noise = self.draw_noise(noise, visual.shape[0], visual.shape[1])
        config, dtype = self.config, visual.dtype
        wide = jnp.promote_types(jnp.float32, dtype)
        a, b = weights["a"], weights["b"]
        modalities = [visual]
        if config.use_depth:
            assert depth is not None
            modalities.append(depth)
        routings = [
            gating.route(
                tokens,
                weights["w_gate"][min(j, config.num_routers - 1)],
                weights["w_noise"][min(j, config.num_routers - 1)],
                config,
                None if noise is None else noise[j],
            )
            for j, tokens in enumerate(modalities)
        ]
        basis = experts.directions(b, self.token_to_feature.kernel[...], self.token_to_feature.bias[...])
        needed = modalities[:1] if config.fusion == "none" else modalities
        updates = [
            experts.combine(tokens, a, b, basis, routing, config)
            for tokens, routing in zip(needed, routings, strict=False)
        ]
        gram = basis @ basis.T if config.in_coordinates else None
        delta = fuse(updates[0], updates[1] if len(updates) > 1 else None, gram, visual.shape[-1], config)

        kernel = self.delta_to_feature.kernel[...]
        way_back = basis @ kernel if config.in_coordinates else kernel
        change = (
            jnp.einsum("bnd,dc->bnc", visual, kernel.astype(dtype), preferred_element_type=wide)
            + jnp.einsum("bnx,xc->bnc", delta.astype(dtype), way_back.astype(dtype),
                         preferred_element_type=wide)
            + self.delta_to_feature.bias[...]
        )  # fmt: skip
        refined = visual + (self.scale[...] * change).astype(dtype)
        strongest = jnp.stack([r.indices[..., 0] for r in routings])
        return LayerOutput(refined, gating.balance_loss(routings, config), strongest)

    def queries(self) -> Array:
        """The query position embedding of the mask decoder: (M, query_dim), at least float32."""
        kernel, bias = self.transform.kernel[...], self.transform.bias[...]
        small = jnp.einsum("lerd,dq->lerq", self.experts_b[...], kernel)
        per_layer = jnp.einsum("lemr,lerq->lmq", self.experts_a[...], small) / self.config.num_experts + bias
        return merged(per_layer, self.merge)


def _initial_a(key: Array, config: AdapterConfig, layers: int, dtype) -> Array:
    """Kaiming uniform with a = sqrt(5): bound 1/sqrt(rank), zero beyond an expert's rank."""
    ranks = jnp.asarray(config.ranks, dtype)[:, None, None]
    shape = (layers, config.num_experts, config.num_tokens, max(config.ranks))
    draws = jax.random.uniform(key, shape, dtype, -1.0, 1.0) / jnp.sqrt(ranks)
    return jnp.where(jnp.arange(shape[-1]) < ranks, draws, 0.0)
