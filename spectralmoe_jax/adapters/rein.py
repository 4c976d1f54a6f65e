"""Rein (arXiv 2312.04265): tokens of low rank in every layer refine the features that look like them.

`TokenBranch` is its change of features; DepthForge, SET and FADA are built from it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.base import Grid, LayerOutput, Projection, QueryLink
from spectralmoe_jax.adapters.baselines import passed_on
from spectralmoe_jax.config.adapters import ReinConfig

PATCH = 16  # side of the patches that the published initial bound of the tokens is for
NORM_EPS = 1e-5


class TokenBranch(nnx.Module):
    """Change of features by tokens T = A B of every layer (section 3.2):

      S = softmax(f T^T / sqrt(d)), u = S[:, 1:] (T[1:] W_T + b_T), change = (u + f) W_f + b_f

    Attributes (L layers, M tokens, R rank, D width): tokens_a (L, M, R), tokens_b (L, R, D),
    token_to_feature: W_T, delta_to_feature: W_f, both shared by all layers.
    """

    def __init__(self, config: ReinConfig, *, layers: int, width: int, normalise: str = "",
                 param_dtype=jnp.float32, rngs: nnx.Rngs):  # fmt: skip
        """normalise: instance norm of the `logits` or of the `similarity` S; "" for none."""
        m, r = config.num_tokens, config.rank
        bound = (6 / (3 * PATCH**2 + (width * r) ** 0.5)) ** 0.5
        kwargs: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.normalise = normalise
        self.tokens_a = nnx.Param(_uniform(rngs.params(), (layers, m, r), bound, param_dtype))
        self.tokens_b = nnx.Param(_uniform(rngs.params(), (layers, r, width), bound, param_dtype))
        self.token_to_feature = Projection(width, width, **kwargs)
        self.delta_to_feature = Projection(width, width, **kwargs)

    def stacked(self) -> dict[str, Array]:
        return {"a": self.tokens_a[...], "b": self.tokens_b[...]}

    def tokens(self) -> Array:
        """T of all layers, (L, M, D)."""
        return self.tokens_a[...] @ self.tokens_b[...]

    def change(self, weights: dict[str, Array], features: Array, depth: Array | None = None) -> Array:
        """The change of features (B, N, D) in at least float32; depth, likewise, adds to the logits."""
        dtype = features.dtype
        wide = jnp.promote_types(jnp.float32, dtype)
        tokens = weights["a"] @ weights["b"]  # (M, D)
        asking = features if depth is None else features + depth
        logits = jnp.einsum("bnd,md->bnm", asking, tokens.astype(dtype), preferred_element_type=wide)
        if self.normalise == "logits":
            logits = instance_norm(logits)
        similarity = jax.nn.softmax(logits * features.shape[-1] ** -0.5, axis=-1)
        if self.normalise == "similarity":
            similarity = instance_norm(similarity)
        values = self.token_to_feature(tokens[1:]).astype(dtype)
        update = jnp.einsum(
            "bnm,md->bnd", similarity[..., 1:].astype(dtype), values, preferred_element_type=wide
        )
        return self.delta_to_feature((update + features).astype(dtype))


def instance_norm(x: Array) -> Array:
    """Mean 0 and variance 1 over the positions of each image and token: x (B, N, M)."""
    centred = x - jnp.mean(x, axis=1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=1, keepdims=True) + NORM_EPS)


class Rein(nnx.Module):
    """One branch of tokens, f <- f + alpha change(f), and the query link. `scale` is alpha."""

    Config: ClassVar[type] = ReinConfig

    def __init__(self, config: ReinConfig, *, layers: int, width: int, param_dtype=jnp.float32,
                 rngs: nnx.Rngs):  # fmt: skip
        kwargs: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.config: Any = config
        self.branch = TokenBranch(config, layers=layers, width=width, **kwargs)
        self.scale = nnx.Param(jnp.asarray(config.scale_init, param_dtype))
        self.link = QueryLink(width, config.query_dim, **kwargs)
        self.to_features = query_feature_map(config, **kwargs)

    def stacked(self) -> dict[str, Array]:
        return self.branch.stacked()

    def layer(self, weights: dict[str, Array], visual: Array, depth: Array | None, noise: Array | None,
              grid: Grid) -> LayerOutput:  # fmt: skip
        return added(visual, self.scale[...], self.branch.change(weights, visual, depth))

    def queries(self) -> Array:
        return self.link(self.branch.tokens())

    def query_features(self, queries: Array) -> Array | None:
        return None if self.to_features is None else self.to_features(queries)


def added(visual: Array, scale: Array, change: Array) -> LayerOutput:
    """visual + scale * change, in the dtype of visual."""
    return passed_on(visual + (scale * change).astype(visual.dtype))


def query_feature_map(config: ReinConfig, *, param_dtype, rngs: nnx.Rngs) -> Projection | None:
    """The map from queries to query features, where the settings ask for one."""
    if not config.link_query_features:
        return None
    return Projection(config.query_dim, config.query_dim, param_dtype=param_dtype, rngs=rngs)


def _uniform(key: Array, shape: tuple[int, ...], bound: float, dtype) -> Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class TwoBranches(nnx.Module):
    """What SET and FADA share: `content` and `style`, two branches of tokens, alpha, and the query link,
    which reads the tokens of content. The layer itself is `change`."""

    normalise = ""

    def __init__(self, config: ReinConfig, *, layers: int, width: int, param_dtype=jnp.float32,
                 rngs: nnx.Rngs):  # fmt: skip
        kwargs: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        self.content = TokenBranch(config, layers=layers, width=width, **kwargs)
        self.style = TokenBranch(config, layers=layers, width=width, normalise=self.normalise, **kwargs)
        self.scale = nnx.Param(jnp.asarray(config.scale_init, param_dtype))
        self.link = QueryLink(width, config.query_dim, **kwargs)
        self.to_features = query_feature_map(config, **kwargs)

    def stacked(self) -> dict[str, dict[str, Array]]:
        return {"content": self.content.stacked(), "style": self.style.stacked()}

    def layer(self, weights: dict[str, Any], visual: Array, depth: Array | None, noise: Array | None,
              grid: Grid) -> LayerOutput:  # fmt: skip
        return added(visual, self.scale[...], self.change(weights, visual, grid))

    def change(self, weights: dict[str, Any], visual: Array, grid: Grid) -> Array:
        raise NotImplementedError

    def queries(self) -> Array:
        return self.link(self.content.tokens())

    def query_features(self, queries: Array) -> Array | None:
        return None if self.to_features is None else self.to_features(queries)
