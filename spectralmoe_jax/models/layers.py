"""The few layers every encoder shares, with the type of their weights chosen by the caller."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


class Frozen(nnx.Variable):
    """A weight that is read and never trained: it has no gradient and no optimizer state."""


VariableType = type[nnx.Variable]
Initializer = Callable[[Array, tuple[int, ...], jnp.dtype], Array]

trunc_normal = jax.nn.initializers.truncated_normal(stddev=0.02)


class Linear(nnx.Module):
    """x (..., in) -> x @ kernel + bias (..., out), in the dtype of x."""

    def __init__(self, in_features: int, out_features: int, *, kind: VariableType = nnx.Param,
                 init: Initializer = trunc_normal, param_dtype=jnp.float32, rngs: nnx.Rngs):  # fmt: skip
        self.kernel = kind(init(rngs.params(), (in_features, out_features), param_dtype))
        self.bias = kind(jnp.zeros((out_features,), param_dtype))

    def __call__(self, x: Array) -> Array:
        return x @ self.kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis; statistics in at least float32."""

    def __init__(self, width: int, eps: float, *, kind: VariableType = nnx.Param, param_dtype=jnp.float32):
        self.scale = kind(jnp.ones((width,), param_dtype))
        self.bias = kind(jnp.zeros((width,), param_dtype))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        wide = x.astype(jnp.promote_types(jnp.float32, x.dtype))
        mean = jnp.mean(wide, axis=-1, keepdims=True)
        centred = wide - mean
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.eps)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)
