"""Rein (arXiv 2312.04265): low-rank tokens of every layer refine the features that resemble them.

`TokenBranch` computes the change of the features. DepthForge is `Rein` with depth; SET and FADA are made of
two branches, `ContentAndStyle`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.base import Adapter, Grid, LayerOutput, Projection, QueryLink, unchanged
from spectralmoe_jax.config.adapters import ReinConfig
from spectralmoe_jax.layers import wide_type

PATCH = 16  # side in pixels of the patches for which the initial range of the tokens is published
NORM_EPS = 1e-5


class TokenBranch(nnx.Module):
    """Change of the features f by the low-rank tokens T = A B of their layer (section 3.2).

      S = softmax(f T^T / sqrt(D))                  (1)
      u = S[:, 1:] (T[1:] W_T + b_T)                (2)
      change = (u + f) W_f + b_f                    (3)

    Attributes:
      tokens_a: A, (L, M, R).
      tokens_b: B, (L, R, D).
      token_to_feature: W_T and b_T, shared by all layers.
      delta_to_feature: W_f and b_f, shared by all layers.
    """

    def __init__(
        self,
        config: ReinConfig,
        *,
        layers: int,
        width: int,
        normalise: str = "",
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Make the parameters.

        Args:
          config: the settings.
          layers: L.
          width: D.
          normalise: instance norm of the `logits` or of the `similarity` S; "" for none.
          param_dtype: of the parameters.
          rngs: draws the initial values.
        """
        tokens, rank = config.num_tokens, config.rank
        bound = (6 / (3 * PATCH**2 + (width * rank) ** 0.5)) ** 0.5
        kwargs: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.normalise = normalise
        self.tokens_a = nnx.Param(_uniform(rngs.params(), (layers, tokens, rank), bound, param_dtype))
        self.tokens_b = nnx.Param(_uniform(rngs.params(), (layers, rank, width), bound, param_dtype))
        self.token_to_feature = Projection(width, width, **kwargs)
        self.delta_to_feature = Projection(width, width, **kwargs)

    def stacked(self) -> dict[str, Array]:
        """A and B of all layers."""
        return {"a": self.tokens_a[...], "b": self.tokens_b[...]}

    def tokens(self) -> Array:
        """T of all layers, (L, M, D)."""
        return self.tokens_a[...] @ self.tokens_b[...]

    def change(self, weights: dict[str, Array], features: Array, depth: Array | None = None) -> Array:
        """Compute the change of the features of one layer.

        Args:
          weights: one layer's slice of `stacked()`.
          features: (B, N, D).
          depth: (B, N, D), added to the features in equation 1.

        Returns:
          (B, N, D), at least float32.
        """
        dtype = features.dtype
        wide = wide_type(dtype)
        tokens = weights["a"] @ weights["b"]  # (M, D)
        # eq. 1
        asking = features if depth is None else features + depth
        logits = jnp.einsum("bnd,md->bnm", asking, tokens.astype(dtype), preferred_element_type=wide)
        if self.normalise == "logits":
            logits = instance_norm(logits)
        similarity = jax.nn.softmax(logits * features.shape[-1] ** -0.5, axis=-1)  # (B, N, M)
        if self.normalise == "similarity":
            similarity = instance_norm(similarity)
        # eq. 2: the first token is a sink, it takes part in the softmax alone
        values = self.token_to_feature(tokens[1:]).astype(dtype)  # (M - 1, D)
        update = jnp.einsum(
            "bnm,md->bnd", similarity[..., 1:].astype(dtype), values, preferred_element_type=wide
        )
        # eq. 3
        return self.delta_to_feature((update + features).astype(dtype))


def instance_norm(x: Array) -> Array:
    """Normalise x (B, N, M) to mean 0 and variance 1 over the N positions of each image and token."""
    centred = x - jnp.mean(x, axis=1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=1, keepdims=True) + NORM_EPS)


class Rein(Adapter):
    """f <- f + alpha change(f), with one branch of tokens, linked to the queries of the mask decoder.

    Attributes:
      branch: the tokens and their change.
      scale: alpha, ().
      link: from the tokens to the queries.
      to_features: from the queries to query features, None unless the settings ask for it.
    """

    Config: ClassVar[type] = ReinConfig

    def __init__(
        self, config: ReinConfig, *, layers: int, width: int, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        kwargs: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.config: Any = config
        self.branch = TokenBranch(config, layers=layers, width=width, **kwargs)
        self.scale = nnx.Param(jnp.asarray(config.scale_init, param_dtype))
        self.link = QueryLink(width, config.query_dim, **kwargs)
        self.to_features = _query_feature_map(config, **kwargs)

    def stacked(self) -> dict[str, Array]:
        """Tokens of all layers."""
        return self.branch.stacked()

    def layer(
        self, weights: dict[str, Array], visual: Array, depth: Array | None, noise: Array | None, grid: Grid
    ) -> LayerOutput:
        """Add the branch's change to the patch tokens."""
        return _added(visual, self.scale[...], self.branch.change(weights, visual, depth))

    def queries(self) -> Array:
        """Queries linked to the tokens of all layers."""
        return self.link(self.branch.tokens())

    def query_features(self, queries: Array) -> Array | None:
        """Query features from the queries by a linear map, where the settings ask for it."""
        return None if self.to_features is None else self.to_features(queries)


class ContentAndStyle(Adapter):
    """f <- f + alpha change(f), with two branches of tokens: base class of SET and FADA.

    Attributes:
      content: tokens of the content; the queries are linked to them.
      style: tokens of the style.
      scale: alpha, ().
      link: from the tokens of the content to the queries.
      to_features: as in `Rein`.
      normalise: instance norm in the branch of the style, see `TokenBranch`.
    """

    normalise: ClassVar[str] = ""

    def __init__(
        self, config: ReinConfig, *, layers: int, width: int, param_dtype=jnp.float32, rngs: nnx.Rngs
    ):
        kwargs: dict[str, Any] = {"param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        self.content = TokenBranch(config, layers=layers, width=width, **kwargs)
        self.style = TokenBranch(config, layers=layers, width=width, normalise=self.normalise, **kwargs)
        self.scale = nnx.Param(jnp.asarray(config.scale_init, param_dtype))
        self.link = QueryLink(width, config.query_dim, **kwargs)
        self.to_features = _query_feature_map(config, **kwargs)

    def stacked(self) -> dict[str, dict[str, Array]]:
        """Tokens of all layers, by branch."""
        return {"content": self.content.stacked(), "style": self.style.stacked()}

    def layer(
        self, weights: dict[str, Any], visual: Array, depth: Array | None, noise: Array | None, grid: Grid
    ) -> LayerOutput:
        """Add the change of both branches to the patch tokens."""
        return _added(visual, self.scale[...], self.change(weights, visual, grid))

    def change(self, weights: dict[str, Any], visual: Array, grid: Grid) -> Array:
        """Compute the change of the patch tokens (B, N, D) of one layer on a grid of N = h * w."""
        raise NotImplementedError

    def queries(self) -> Array:
        """Queries linked to the content's tokens of all layers."""
        return self.link(self.content.tokens())

    def query_features(self, queries: Array) -> Array | None:
        """Query features from the queries by a linear map, where the settings ask for it."""
        return None if self.to_features is None else self.to_features(queries)


def _added(visual: Array, scale: Array, change: Array) -> LayerOutput:
    """Add scale * change to the tokens, in their dtype."""
    return unchanged(visual + (scale * change).astype(visual.dtype))


def _query_feature_map(config: ReinConfig, *, param_dtype, rngs: nnx.Rngs) -> Projection | None:
    """The map from queries to query features, where the settings ask for it."""
    if not config.link_query_features:
        return None
    return Projection(config.query_dim, config.query_dim, param_dtype=param_dtype, rngs=rngs)


def _uniform(key: Array, shape: tuple[int, ...], bound: float, dtype) -> Array:
    return jax.random.uniform(key, shape, dtype, -bound, bound)
