"""Linear maps of adapters, and the link from learned tokens to the mask decoder's queries (Rein, arXiv
2312.04265, section 3.3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


class Projection(nnx.Module):
    """A linear map whose kernel and bias are also read apart."""

    def __init__(self, in_features: int, out_features: int, *, param_dtype, rngs: nnx.Rngs):
        # Kaiming uniform with a = sqrt(5), torch's default for a linear layer: bound 1/sqrt(fan in)
        bound = in_features**-0.5
        shape = (in_features, out_features)
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), shape, param_dtype, -bound, bound))
        self.bias = nnx.Param(jax.random.uniform(rngs.params(), shape[1:], param_dtype, -bound, bound))

    def __call__(self, x: Array) -> Array:
        """(..., in) -> (..., out), accumulated in at least float32."""
        wide = jnp.promote_types(jnp.float32, x.dtype)
        y = jnp.matmul(x, self.kernel[...].astype(x.dtype), preferred_element_type=wide)
        return y + self.bias[...]


class QueryLink(nnx.Module):
    """Queries from the tokens of all layers. transform: W_q. merge: W_m."""

    def __init__(self, width: int, query_dim: int, *, param_dtype, rngs: nnx.Rngs):
        self.transform = Projection(width, query_dim, param_dtype=param_dtype, rngs=rngs)
        self.merge = Projection(3 * query_dim, query_dim, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, tokens: Array) -> Array:
        """Tokens (L, M, D) -> query position embeddings (M, query_dim)."""
        return merged(self.transform(tokens), self.merge)


def merged(per_layer: Array, merge: Projection) -> Array:
    """The largest, the mean and the last of the queries of all layers (L, M, Q), merged: (M, Q)."""
    # By index, as torch.max: the gradient of jnp.max compares values, and a compiler that computes them
    # twice with different rounding then finds none equal and divides by zero.
    strongest = jax.lax.stop_gradient(jnp.argmax(per_layer, axis=0, keepdims=True))
    largest = jnp.take_along_axis(per_layer, strongest, axis=0)[0]
    together = jnp.stack([largest, per_layer.mean(axis=0), per_layer[-1]], axis=-1)
    # the released layout interleaves the three per feature
    return together.reshape(together.shape[0], -1) @ merge.kernel[...] + merge.bias[...]
