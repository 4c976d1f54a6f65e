"""The transformer decoder with masked attention (Mask2Former, arXiv 2112.01527, section 3.2).

  X_l = softmax(M_{l-1} + Q_l K_l^T) V_l + X_{l-1}        (2)

with M_{l-1} = 0 where the query's own mask of the output before is positive, and -infinity elsewhere (3): a
query attends only to its own mask. Equation numbers are those of the publication.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.config.model import LEVELS, Mask2FormerConfig
from spectralmoe_jax.layers import (
    EPS,
    FeedForward,
    LayerNorm,
    Linear,
    attend,
    project,
    stack_layers,
    xavier_normal,
)


class Memory(NamedTuple):
    """Keys and values of one level, N = h * w.

    Attributes:
      value: (B, N, D).
      key: the value with its position encoding.
    """

    value: Array
    key: Array


class MaskDecoder(nnx.Module):
    """All decoder layers and the norm before predictions.

    Attributes:
      layers: stacked on a leading axis.
      post_norm: normalises the queries for predictions and for the masks of the next layer.
    """

    def __init__(
        self,
        config: Mask2FormerConfig,
        *,
        remat: bool = False,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.layers = stack_layers(
            lambda rngs: DecoderLayer(config, param_dtype=param_dtype, rngs=rngs), config.decoder_layers, rngs
        )
        self.post_norm = LayerNorm(config.width, EPS, param_dtype=param_dtype)
        self.count, self.remat = config.decoder_layers, remat

    def __call__(
        self,
        query: Array,
        query_positions: Array,
        memories: Sequence[Memory],
        block: Callable[[Array, int], Array],
    ) -> Array:
        """Refine the queries.

        A scan over rounds of one layer for each level, since levels differ in size and the steps of a scan
        must not: three layers are compiled, however many there are. Layers of an incomplete round follow it.

        Args:
          query: X_0, the query features, (B, Q, D).
          query_positions: position embeddings, (Q, D).
          memories: one for each level; layer i attends to level i modulo the number of levels.
          block: from normalised queries (B, Q, D) and a level to the positions that each query must not
            attend to, (B, Q, N) bool.

        Returns:
          The normalised queries before the first and after each layer, (K, B, Q, D), K = 1 + layers.
        """
        graph, weights = nnx.split(self.layers)
        rounds = self.count // LEVELS

        def layer(query: Array, weights: nnx.State, level: int) -> tuple[Array, Array]:
            """Run one decoder layer on one feature level."""
            normed = self.post_norm(query)
            blocked = block(normed, level)
            return nnx.merge(graph, weights)(query, query_positions, memories[level], blocked), normed

        def visit(query: Array, weights: Sequence[nnx.State]) -> tuple[Array, Array]:
            """Run one decoder layer on each of the first feature levels: scan body."""
            trail = []
            for level, of_layer in enumerate(weights):
                query, normed = layer(query, of_layer, level)
                trail.append(normed)
            return query, jnp.stack(trail)

        trails = []
        # 1. full rounds
        if rounds:
            # weights of each level apart: those that a step slices from others would be kept for its gradient
            leaves, structure = jax.tree.flatten(weights)
            of_levels = [
                jax.tree.unflatten(structure, of_level)
                for of_level in zip(*(_by_level(leaf, rounds) for leaf in leaves), strict=True)
            ]
            step = jax.checkpoint(visit) if self.remat else visit
            query, trail = jax.lax.scan(step, query, of_levels)  # trail (rounds, levels, B, Q, D)
            trails.append(trail.reshape(-1, *trail.shape[2:]))
        # 2. the layers that are left
        if rest := self.count % LEVELS:
            last = [jax.tree.map(lambda w, i=i: w[rounds * LEVELS + i], weights) for i in range(rest)]
            query, trail = visit(query, last)
            trails.append(trail)
        return jnp.concatenate([*trails, self.post_norm(query)[None]])


def _by_level(weights: Array, rounds: int) -> list[Array]:
    """Split the weights of the layers (L, ...) in full rounds by level: (rounds, ...) each."""
    grouped = weights[: rounds * LEVELS].reshape(rounds, LEVELS, *weights.shape[1:])
    return [level.squeeze(1) for level in jnp.split(grouped, LEVELS, axis=1)]


class DecoderLayer(nnx.Module):
    """Masked cross-attention, self-attention, feed-forward, each with its residual, normalised after."""

    def __init__(self, config: Mask2FormerConfig, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        kwargs = {"param_dtype": param_dtype, "rngs": rngs}
        self.cross_attn = Attention(config.width, config.num_heads, **kwargs)
        self.norm_cross = LayerNorm(config.width, EPS, param_dtype=param_dtype)
        self.self_attn = Attention(config.width, config.num_heads, **kwargs)
        self.norm_self = LayerNorm(config.width, EPS, param_dtype=param_dtype)
        self.ffn = FeedForward(config.width, config.decoder_ffn, **kwargs)
        self.norm_ffn = LayerNorm(config.width, EPS, param_dtype=param_dtype)

    def __call__(self, query: Array, query_positions: Array, memory: Memory, blocked: Array) -> Array:
        """Refine queries (B, Q, D) with positions (Q, D); see `Attention` for `blocked`."""
        # eq. 2
        attended = self.cross_attn(query + query_positions, memory.key, memory.value, blocked)
        query = self.norm_cross(query + attended)
        positioned = query + query_positions
        query = self.norm_self(query + self.self_attn(positioned, positioned, query))
        return self.norm_ffn(query + self.ffn(query))


class Attention(nnx.Module):
    """Multi-head attention.

    Attributes:
      in_proj: projections of query, key and value side by side, as in torch.
      out_proj: projection of the joined heads.
    """

    def __init__(self, width: int, heads: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        kwargs = {"init": xavier_normal, "param_dtype": param_dtype, "rngs": rngs}
        self.in_proj = Linear(width, 3 * width, **kwargs)
        self.out_proj = Linear(width, width, **kwargs)
        self.heads = heads

    def __call__(self, query: Array, key: Array, value: Array, blocked: Array | None = None) -> Array:
        """Attend.

        Args:
          query: (B, Q, D).
          key: (B, N, D).
          value: (B, N, D).
          blocked: (B, Q, N) bool, True where a query must not attend.

        Returns:
          (B, Q, D).
        """
        kernels = jnp.split(self.in_proj.kernel[...].astype(query.dtype), 3, axis=1)
        biases = jnp.split(self.in_proj.bias[...].astype(query.dtype), 3)
        q, k, v = (
            (project(x, kernel) + bias).reshape(*x.shape[:2], self.heads, -1)  # (B, Q or N, heads, D / heads)
            for x, kernel, bias in zip((query, key, value), kernels, biases, strict=True)
        )
        return self.out_proj(attend(q, k, v, blocked=blocked).reshape(query.shape))
