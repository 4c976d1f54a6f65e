"""The layers that only the head has, and the initial values that torch and detectron2 give its weights."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.layers import Initializer, Linear, normalise

EPS = 1e-5  # of every normalisation in the head

xavier_uniform = jax.nn.initializers.xavier_uniform()
xavier_normal = jax.nn.initializers.xavier_normal()
normal = jax.nn.initializers.normal(1.0)
# "c2" style: Kaiming uniform for a linear activation, bound sqrt(3 / fan_in)
c2_uniform = jax.nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
# torch's default for linear layers: bound 1 / sqrt(fan_in)
torch_uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in: int) -> Initializer:
    """torch's default for the bias of a linear layer: uniform within 1 / sqrt(fan_in)."""

    def init(key: Array, shape: tuple[int, ...], dtype) -> Array:
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / jnp.sqrt(fan_in).astype(dtype)

    return init


class GroupNorm(nnx.Module):
    """Group normalisation of (B, H, W, C) over positions and the channels of each group."""

    def __init__(self, width: int, groups: int, *, param_dtype=jnp.float32):
        self.scale = nnx.Param(jnp.ones((width,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((width,), param_dtype))
        self.groups = groups

    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        split = (self.groups, channels // self.groups)
        grouped = x.reshape(batch, height * width, *split)
        scale, bias = self.scale[...].reshape(split), self.bias[...].reshape(split)
        return normalise(grouped, (1, 3), scale, bias, EPS).reshape(x.shape)


class Conv(nnx.Module):
    """3x3 convolution without bias: (B, H, W, in) -> (B, H, W, out), zeros outside."""

    def __init__(self, in_features: int, out_features: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        self.kernel = nnx.Param(c2_uniform(rngs.params(), (3, 3, in_features, out_features), param_dtype))

    def __call__(self, x: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x, self.kernel[...].astype(x.dtype), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class FeedForward(nnx.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, width: int, hidden: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        kwargs = {"init": xavier_normal, "param_dtype": param_dtype, "rngs": rngs}
        self.hidden = Linear(width, hidden, bias_init=torch_bias(width), **kwargs)
        self.output = Linear(hidden, width, bias_init=torch_bias(hidden), **kwargs)

    def __call__(self, x: Array) -> Array:
        return self.output(jax.nn.relu(self.hidden(x)))


def stack_layers(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` modules as one, every weight with a leading axis (count, ...)."""
    return nnx.vmap(make)(nnx.Rngs(jax.random.split(rngs.params(), count)))
