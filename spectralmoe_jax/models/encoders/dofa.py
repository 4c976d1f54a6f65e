"""Patch embeddings generated from wavelengths, after DOFA (Xiong et al. 2024, arXiv 2403.15356).

A small transformer reads one token for each band, which encodes the band's wavelength, and returns the patch
kernel of that band. The kernels depend on the bands alone: they are generated once, not in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.layers import Frozen, LayerNorm, Linear, attend, trunc_normal

TOKEN_WIDTH = 128
WEIGHT_TOKENS = 128
HEADS = 4
HIDDEN = 2048
EPS = 1e-5  # of the generator's own norms
SCALE = 0.01  # of the generated kernels and bias
NANOMETRES = 1000.0  # in a micrometre: wavelengths are encoded in nanometres


class Generated(NamedTuple):
    """Output of a generator for some bands, with the steps before it; W is the width of the generator.

    Attributes:
      bands: one token for each band, (C, W).
      tokens: weight tokens, bands and bias token after the transformer, (128 + C + 1, W).
      kernel: (p, p, C, D).
      bias: (D,).
    """

    bands: Array
    tokens: Array
    kernel: Array
    bias: Array


class KernelGenerator(nnx.Module):
    """Patch kernels and bias from wavelengths; always frozen."""

    def __init__(
        self,
        patch_size: int,
        width: int,
        *,
        token_width: int = TOKEN_WIDTH,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        kwargs = {"init": trunc_normal, "kind": Frozen, "param_dtype": param_dtype, "rngs": rngs}
        self.patch_size, self.width, self.token_width = patch_size, width, token_width
        self.token_in = Linear(token_width, token_width, **kwargs)
        self.token_out = Linear(token_width, token_width, **kwargs)
        tokens = trunc_normal(rngs.params(), (WEIGHT_TOKENS, token_width), param_dtype)
        self.weight_tokens = Frozen(tokens)
        self.bias_token = Frozen(trunc_normal(rngs.params(), (1, token_width), param_dtype))
        self.layer = GeneratorLayer(token_width, param_dtype=param_dtype, rngs=rngs)
        self.to_kernel = Linear(token_width, patch_size**2 * width, **kwargs)
        self.to_bias = Linear(token_width, width, **kwargs)

    def __call__(self, wavelengths: Sequence[float], bandwidths: Sequence[float] = ()) -> tuple[Array, Array]:
        """Generate kernel (p, p, C, D) and bias (D,) for C wavelengths in micrometres.

        DOFA does not know bandwidths.
        """
        dtype = self.weight_tokens[...].dtype
        made = self.generate(encode(jnp.asarray(wavelengths, dtype) * NANOMETRES, self.token_width))
        return made.kernel, made.bias

    def generate(self, codes: Array) -> Generated:
        """Generate kernels and bias from a code (C, W) of each band."""
        with jax.default_matmul_precision("highest"):
            # 1. one token for each band
            hidden = jax.nn.relu(self.token_out(jax.nn.relu(self.token_in(codes))))
            bands = codes + hidden  # (C, W)
            # 2. transformer over weight tokens, bands and bias token
            everything = jnp.concatenate([self.weight_tokens[...], bands, self.bias_token[...]])
            out = self.layer(everything)  # (128 + C + 1, W)
            # 3. kernels of the bands, and the bias
            kernels = self.to_kernel(out[WEIGHT_TOKENS:-1] + bands)  # (C, p * p * D)
            bias = self.to_bias(out[-1])
        kernels = kernels.reshape(len(bands), self.patch_size, self.patch_size, self.width)
        return Generated(bands, out, kernels.transpose(1, 2, 0, 3) * SCALE, bias * SCALE)


class GeneratorLayer(nnx.Module):
    """Transformer layer normalised after each residual, as torch's TransformerEncoderLayer."""

    def __init__(self, width: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        kwargs = {"init": trunc_normal, "kind": Frozen, "param_dtype": param_dtype, "rngs": rngs}
        self.qkv = Linear(width, 3 * width, **kwargs)
        self.out = Linear(width, width, **kwargs)
        self.mlp_in = Linear(width, HIDDEN, **kwargs)
        self.mlp_out = Linear(HIDDEN, width, **kwargs)
        self.norm1 = LayerNorm(width, EPS, kind=Frozen, param_dtype=param_dtype)
        self.norm2 = LayerNorm(width, EPS, kind=Frozen, param_dtype=param_dtype)

    def __call__(self, x: Array) -> Array:
        """(tokens, W) -> (tokens, W)."""
        q, k, v = (part.reshape(len(x), HEADS, -1) for part in jnp.split(self.qkv(x), 3, axis=-1))
        attended = attend(q[None], k[None], v[None])[0].reshape(x.shape)
        x = self.norm1(x + self.out(attended))
        return self.norm2(x + self.mlp_out(jax.nn.gelu(self.mlp_in(x), approximate=False)))


def encode(positions: Array, width: int = TOKEN_WIDTH) -> Array:
    """Sine and cosine encoding of scalars: (C,) -> (C, W)."""
    half = width // 2
    frequencies = 1 / 10000 ** (jnp.arange(half, dtype=positions.dtype) / half)
    angles = positions[:, None] * frequencies  # (C, W / 2)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
