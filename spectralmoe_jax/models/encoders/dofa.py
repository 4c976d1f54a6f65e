"""Patch embeddings generated from wavelengths, after DOFA (Xiong et al. 2024, arXiv 2403.15356).

A small transformer reads one token for each band, which encodes the band's wavelength, and returns the patch
kernel of that band. The kernels depend on the bands alone: they are generated once, not in every step.
"""

from __future__ import annotations

from collections.abc import Sequence

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


class KernelGenerator(nnx.Module):
    """Patch kernels and bias from wavelengths; always frozen."""

    def __init__(self, patch_size: int, width: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        kwargs = {"init": trunc_normal, "kind": Frozen, "param_dtype": param_dtype, "rngs": rngs}
        self.patch_size, self.width = patch_size, width
        self.token_in = Linear(TOKEN_WIDTH, TOKEN_WIDTH, **kwargs)
        self.token_out = Linear(TOKEN_WIDTH, TOKEN_WIDTH, **kwargs)
        tokens = trunc_normal(rngs.params(), (WEIGHT_TOKENS, TOKEN_WIDTH), param_dtype)
        self.weight_tokens = Frozen(tokens)
        self.bias_token = Frozen(trunc_normal(rngs.params(), (1, TOKEN_WIDTH), param_dtype))
        self.layer = GeneratorLayer(param_dtype=param_dtype, rngs=rngs)
        self.to_kernel = Linear(TOKEN_WIDTH, patch_size**2 * width, **kwargs)
        self.to_bias = Linear(TOKEN_WIDTH, width, **kwargs)

    def __call__(self, wavelengths: Sequence[float]) -> tuple[Array, Array]:
        """Generate kernel (p, p, C, D) and bias (D,) for C wavelengths in micrometres."""
        with jax.default_matmul_precision("highest"):
            # 1. one token for each band
            dtype = self.weight_tokens[...].dtype
            tokens = encode(jnp.asarray(wavelengths, dtype) * NANOMETRES)  # (C, 128)
            hidden = jax.nn.relu(self.token_out(jax.nn.relu(self.token_in(tokens))))
            tokens = tokens + hidden
            # 2. transformer over weight tokens, bands and bias token
            everything = jnp.concatenate([self.weight_tokens[...], tokens, self.bias_token[...]])
            out = self.layer(everything)  # (128 + C + 1, 128)
            # 3. kernels of the bands, and the bias
            kernels = self.to_kernel(out[WEIGHT_TOKENS:-1] + tokens)  # (C, p * p * D)
            bias = self.to_bias(out[-1])
        kernels = kernels.reshape(len(tokens), self.patch_size, self.patch_size, self.width)
        return kernels.transpose(1, 2, 0, 3) * SCALE, bias * SCALE


class GeneratorLayer(nnx.Module):
    """Transformer layer normalised after each residual, as torch's TransformerEncoderLayer."""

    def __init__(self, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        kwargs = {"init": trunc_normal, "kind": Frozen, "param_dtype": param_dtype, "rngs": rngs}
        self.qkv = Linear(TOKEN_WIDTH, 3 * TOKEN_WIDTH, **kwargs)
        self.out = Linear(TOKEN_WIDTH, TOKEN_WIDTH, **kwargs)
        self.mlp_in = Linear(TOKEN_WIDTH, HIDDEN, **kwargs)
        self.mlp_out = Linear(HIDDEN, TOKEN_WIDTH, **kwargs)
        self.norm1 = LayerNorm(TOKEN_WIDTH, EPS, kind=Frozen, param_dtype=param_dtype)
        self.norm2 = LayerNorm(TOKEN_WIDTH, EPS, kind=Frozen, param_dtype=param_dtype)

    def __call__(self, x: Array) -> Array:
        """(tokens, 128) -> (tokens, 128)."""
        q, k, v = (part.reshape(len(x), HEADS, -1) for part in jnp.split(self.qkv(x), 3, axis=-1))
        attended = attend(q[None], k[None], v[None])[0].reshape(x.shape)
        x = self.norm1(x + self.out(attended))
        return self.norm2(x + self.mlp_out(jax.nn.gelu(self.mlp_in(x), approximate=False)))


def encode(positions: Array) -> Array:
    """Sine and cosine encoding of scalars: (C,) -> (C, 128)."""
    half = TOKEN_WIDTH // 2
    frequencies = 1 / 10000 ** (jnp.arange(half, dtype=positions.dtype) / half)
    angles = positions[:, None] * frequencies  # (C, 64)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
