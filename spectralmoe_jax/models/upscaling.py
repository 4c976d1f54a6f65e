"""Upscaling of patch tokens for the masks of the plain mask decoder, a factor of two in each stage."""

from __future__ import annotations

import functools
import math
import operator

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array

from spectralmoe_jax.layers import LayerNorm, gelu, project, torch_bias, wide_type

NORM_EPS = 1e-6  # unlike that of every other norm of the decoder


def upscaling_stages(patch_size: int) -> int:
    """Return the number of stages: masks have a quarter of the image's size for patches of 2^n pixels."""
    return max(1, int(math.log2(patch_size)) - 2)


def upscale(x: Array, stages: nnx.Module) -> Array:
    """Run all stages, which are stacked: (B, h, w, D) -> (B, 2^n h, 2^n w, D)."""
    graph, weights = nnx.split(stages)
    for stage in range(jax.tree.leaves(weights)[0].shape[0]):
        x = nnx.merge(graph, jax.tree.map(lambda leaf, stage=stage: leaf[stage], weights))(x)
    return x


class Upscaling(nnx.Module):
    """One stage: transposed 2x2 convolution with stride 2, GELU, depthwise 3x3 convolution, LayerNorm.

    Attributes:
      kernel: (in, 2, 2, out), of the transposed convolution.
      bias: (out,).
      depthwise_kernel: (3, 3, D).
      norm: normalises the channels of every pixel.
    """

    def __init__(self, width: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        # torch's bounds: the fan of a transposed convolution is that of its output
        uniform = torch_bias(4 * width)
        self.kernel = nnx.Param(uniform(rngs.params(), (width, 2, 2, width), param_dtype))
        self.bias = nnx.Param(uniform(rngs.params(), (width,), param_dtype))
        self.depthwise_kernel = nnx.Param(torch_bias(9)(rngs.params(), (3, 3, width), param_dtype))
        self.norm = LayerNorm(width, NORM_EPS, param_dtype=param_dtype)

    def __call__(self, x: Array) -> Array:
        """(B, h, w, D) -> (B, 2 h, 2 w, D)."""
        kernel = self.kernel[...]
        # every pixel becomes four, so that the convolution is a product of matrices
        four = project(x, kernel.reshape(kernel.shape[0], -1))  # (B, h, w, 4 D)
        doubled = rearrange(four, "b h w (i j c) -> b (h i) (w j) c", i=2, j=2)
        doubled = gelu(doubled + self.bias[...].astype(x.dtype))
        return self.norm(depthwise(doubled, self.depthwise_kernel[...]))


@functools.partial(jax.checkpoint, prevent_cse=False)
def depthwise(x: Array, kernel: Array) -> Array:
    """Convolve every channel alone: (B, h, w, D), (3, 3, D) -> (B, h, w, D), zeros outside.

    Nine shifted products, which compilers fuse with one another; sums are at least float32. What is kept for
    the backward pass is x.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(wide_type(x.dtype))
    parts = (
        padded[:, row : row + height, column : column + width] * kernel[row, column]
        for row in range(3)
        for column in range(3)
    )
    return functools.reduce(operator.add, parts).astype(x.dtype)
