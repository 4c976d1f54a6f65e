"""The mask decoder: queries that look only where their own mask of the layer before is positive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.config.model import LEVELS, Mask2FormerConfig
from spectralmoe_jax.layers import EPS, FeedForward, LayerNorm, Linear, stack_layers, wide_type, xavier_normal


class Memory(NamedTuple):
    """What the queries attend to on one level: value (B, N, W), and key, the value with its position
    encoding."""

    value: Array
    key: Array


class Attention(nnx.Module):
    """Multi-head attention; `in_proj` holds query, key and value side by side, as torch does."""

    def __init__(self, width: int, heads: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        kwargs = {"init": xavier_normal, "param_dtype": param_dtype, "rngs": rngs}
        self.in_proj = Linear(width, 3 * width, **kwargs)
        self.out_proj = Linear(width, width, **kwargs)
        self.heads = heads

    def __call__(self, query: Array, key: Array, value: Array, blocked: Array | None = None) -> Array:
        """query (B, Q, W); key, value (B, N, W); blocked (B, Q, N), True where a query must not look."""
        kernels = jnp.split(self.in_proj.kernel[...].astype(query.dtype), 3, axis=1)
        biases = jnp.split(self.in_proj.bias[...].astype(query.dtype), 3)
        q, k, v = (
            (x @ kernel + bias).reshape(*x.shape[:2], self.heads, -1)
            for x, kernel, bias in zip((query, key, value), kernels, biases, strict=True)
        )
        logits = jnp.einsum("bqhd,bnhd->bhqn", q, k, preferred_element_type=wide_type(q.dtype))
        logits = logits * q.shape[-1] ** -0.5
        if blocked is not None:
            logits = jnp.where(blocked[:, None], jnp.finfo(logits.dtype).min, logits)
        weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
        return self.out_proj(jnp.einsum("bhqn,bnhd->bqhd", weights, v).reshape(query.shape))


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
        looked = self.cross_attn(query + query_positions, memory.key, memory.value, blocked)
        query = self.norm_cross(query + looked)
        placed = query + query_positions
        query = self.norm_self(query + self.self_attn(placed, placed, query))
        return self.norm_ffn(query + self.ffn(query))


class MaskDecoder(nnx.Module):
    """All decoder layers, their weights stacked on a leading axis, and the norm before predictions."""

    def __init__(
        self, config: Mask2FormerConfig, *, remat: bool = False, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        self.layers = stack_layers(
            lambda rngs: DecoderLayer(config, param_dtype=param_dtype, rngs=rngs), config.decoder_layers, rngs
        )
        self.post_norm = LayerNorm(config.width, EPS, param_dtype=param_dtype)
        self.count, self.remat = config.decoder_layers, remat

    def __call__(self, query: Array, query_positions: Array, memories: Sequence[Memory],
                 block: Callable[[Array, int], Array]) -> Array:  # fmt: skip
        """Refine the queries.

        Args:
          query: (B, Q, W), the learned features. query_positions: (Q, W), the linked queries.
          memories: one a level. Layer i looks at level i modulo the number of levels.
          block: from normalised queries and a level, the (B, Q, N) positions to hide.

        Returns: (1 + layers, B, Q, W), the normalised queries before the first and after each layer.

        A scan over rounds of one layer a level, since levels differ in size and a scan's steps must
        not: three layers are compiled however many run. Layers of an incomplete round follow it.
        """
        graph, weights = nnx.split(self.layers)
        rounds = self.count // LEVELS

        def layer(query: Array, weights: nnx.State, level: int) -> tuple[Array, Array]:
            normed = self.post_norm(query)
            blocked = block(normed, level)
            return nnx.merge(graph, weights)(query, query_positions, memories[level], blocked), normed

        def visit(query: Array, weights: nnx.State, levels: range) -> tuple[Array, Array]:
            trail = []
            for level in levels:
                query, normed = layer(query, jax.tree.map(lambda w, i=level: w[i], weights), level)
                trail.append(normed)
            return query, jnp.stack(trail)

        def full_round(query: Array, weights: nnx.State) -> tuple[Array, Array]:
            return visit(query, weights, range(LEVELS))

        trails = []
        if rounds:
            grouped = jax.tree.map(
                lambda w: w[: rounds * LEVELS].reshape(rounds, LEVELS, *w.shape[1:]), weights
            )
            step = jax.checkpoint(full_round) if self.remat else full_round
            query, trail = jax.lax.scan(step, query, grouped)
            trails.append(trail.reshape(-1, *trail.shape[2:]))
        if rest := self.count % LEVELS:
            query, trail = visit(query, jax.tree.map(lambda w: w[rounds * LEVELS :], weights), range(rest))
            trails.append(trail)
        return jnp.concatenate([*trails, self.post_norm(query)[None]])
