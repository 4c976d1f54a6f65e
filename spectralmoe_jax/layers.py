"""Layers of encoders and heads, and the initial values that torch and detectron2 give their weights.

Weights are float32 or float64; each layer computes in the dtype of its input, statistics in at least float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


class Frozen(nnx.Variable):
    """A weight that is never trained: it has no gradient and no optimizer state."""


class Statistic(nnx.Param):
    """A value that training carries along, such as a running mean: each step replaces it, no gradient does.

    It is stored and sharded like a parameter. A loss must not depend on it.
    """


VariableType = type[nnx.Variable]
Initializer = Callable[..., Array]  # (key, shape, dtype) -> weights

EPS = 1e-5  # of every normalisation in the head

zeros = jax.nn.initializers.zeros
normal = jax.nn.initializers.normal(1.0)
trunc_normal = jax.nn.initializers.truncated_normal(stddev=0.02)
xavier_uniform = jax.nn.initializers.xavier_uniform()
xavier_normal = jax.nn.initializers.xavier_normal()
# detectron2's "c2" style: Kaiming uniform for a linear activation, bound sqrt(3 / fan_in)
c2_uniform = jax.nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
# torch's default for linear layers: bound 1 / sqrt(fan_in)
torch_uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in: int) -> Initializer:
    """Torch's default for the bias of a linear layer: uniform within 1 / sqrt(fan_in)."""

    def init(key: Array, shape: tuple[int, ...], dtype) -> Array:
        return jax.random.uniform(key, shape, dtype, -1.0, 1.0) / jnp.sqrt(fan_in).astype(dtype)

    return init


def wide_type(dtype) -> jnp.dtype:
    """Return the dtype of statistics: float32, or float64 for float64."""
    return jnp.promote_types(jnp.float32, dtype)


def full_precision(dtype) -> jax.lax.Precision | None:
    """Return the precision of products of float32 or float64, which accelerators round by default.

    Backward passes that are written out need it: a default that is set around the forward pass does not reach
    them.
    """
    return None if jnp.finfo(dtype).bits < 32 else jax.lax.Precision.HIGHEST


def contract(axes: str, left: Array, right: Array, dtype=None) -> Array:
    """Multiply two arrays as `jnp.einsum` does, in `full_precision`, with sums and result of a dtype."""
    precision = full_precision(left.dtype)
    return jnp.einsum(axes, left, right, precision=precision, preferred_element_type=dtype)


# Derivatives of the functions below are written out because they keep less for the backward pass than
# automatic differentiation does: a scan writes whatever is kept into arrays of all its layers.


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 4))
def normalise(x: Array, axes: tuple[int, ...], scale: Array, bias: Array, eps: float) -> Array:
    """Normalise x to mean 0 and variance 1 over `axes`, then apply `scale` and `bias`; in the dtype of x.

    `scale` and `bias` have the shape of the last axes of x.
    """
    return _normalise(x, axes, scale, bias, eps)[0]


def _normalise(x: Array, axes: tuple[int, ...], scale: Array, bias: Array, eps: float) -> tuple[Array, Any]:
    wide = x.astype(wide_type(x.dtype))
    mean = jnp.mean(wide, axis=axes, keepdims=True)
    centred = wide - mean
    inverse = jax.lax.rsqrt(jnp.mean(centred**2, axis=axes, keepdims=True) + eps)
    return (centred * inverse * scale + bias).astype(x.dtype), (x, mean, inverse, scale)


def _normalise_backward(axes: tuple[int, ...], eps: float, kept: Any, slope: Array) -> tuple[Array, ...]:
    x, mean, inverse, scale = kept
    wide = slope.astype(mean.dtype)
    normed = (x.astype(mean.dtype) - mean) * inverse
    inner = wide * scale
    projected = jnp.mean(inner * normed, axis=axes, keepdims=True)
    of_x = inverse * (inner - jnp.mean(inner, axis=axes, keepdims=True) - normed * projected)
    shared = tuple(range(x.ndim - scale.ndim))
    of_scale, of_bias = jnp.sum(wide * normed, axis=shared), jnp.sum(wide, axis=shared)
    return of_x.astype(x.dtype), of_scale.astype(scale.dtype), of_bias.astype(scale.dtype)


normalise.defvjp(_normalise, _normalise_backward)


@jax.custom_vjp
def softmax(logits: Array) -> Array:
    """Softmax over the last axis; keeps only its result for the backward pass."""
    return jax.nn.softmax(logits, axis=-1)


def _softmax_backward(weights: Array, slope: Array) -> tuple[Array]:
    return (weights * (slope - jnp.sum(weights * slope, axis=-1, keepdims=True)),)


softmax.defvjp(lambda logits: (softmax(logits),) * 2, _softmax_backward)


@jax.custom_vjp
def relu(x: Array) -> Array:
    """Return max(x, 0); keeps only its result, which the linear layer after it keeps anyway."""
    return jnp.maximum(x, 0)


relu.defvjp(lambda x: (relu(x),) * 2, lambda y, slope: (jnp.where(y > 0, slope, 0),))


def keep_slope(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Wrap an elementwise function so that its derivative alone is kept for the backward pass."""
    wrapped = jax.custom_vjp(function)

    def forward(x: Array) -> tuple[Array, Array]:
        return jax.jvp(function, (x,), (jnp.ones_like(x),))

    wrapped.defvjp(forward, lambda derivative, slope: (derivative * slope,))
    return functools.wraps(function)(wrapped)


@keep_slope
def gelu(x: Array) -> Array:
    """GELU by the error function, which compilers evaluate faster than its complement."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def attend(
    q: Array,
    k: Array,
    v: Array,
    bias: Array | None = None,
    blocked: Array | None = None,
    scale: float | None = None,
) -> Array:
    """Attend, with softmax in at least float32.

    The backward pass computes the weights again from the logarithms of their sums, so that no array of
    T x S numbers is kept. With heads in front of tokens all products are batched products of matrices. On a
    GPU, half precision without bias, mask and scale goes to cuDNN, which never forms that array.

    Args:
      q: (B, T, heads, C).
      k: (B, S, heads, C).
      v: (B, S, heads, C).
      bias: (B, heads, T, S), added to the scaled logits.
      blocked: (B, T, S) bool, True where a query must not attend.
      scale: of the logits; by default 1 / sqrt(C).

    Returns:
      (B, T, heads, C), in the dtype of v.
    """
    if bias is None and blocked is None and scale is None and has_fused_attention(q.dtype, q.shape[-1]):
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # (B, heads, T or S, C)
    return _attend(q, k, v, bias, blocked, scale).swapaxes(1, 2)


@functools.cache
def has_fused_attention(dtype, width: int) -> bool:
    """Return whether cuDNN attends here, with gradients: asked by compiling a small case.

    Args:
      dtype: of queries, keys and values.
      width: features of a head.
    """
    if jax.default_backend() != "gpu" or dtype not in (jnp.bfloat16, jnp.float16):
        return False

    def total(x: Array) -> Array:
        return jax.nn.dot_product_attention(x, x, x, implementation="cudnn").sum()

    try:
        jax.jit(jax.grad(total)).lower(jax.ShapeDtypeStruct((1, 65, 1, width), dtype)).compile()
    except Exception:  # libraries and devices refuse with errors of many types
        return False
    return True


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(q: Array, k: Array, v: Array, bias: Array | None, blocked: Array | None, scale: float) -> Array:
    weights = jax.nn.softmax(_attention_logits(q, k, bias, blocked, scale), axis=-1)
    return contract("bhts,bhsc->bhtc", weights.astype(v.dtype), v)


def _attention_logits(q: Array, k: Array, bias: Array | None, blocked: Array | None, scale: float) -> Array:
    logits = contract("bhtc,bhsc->bhts", q * scale, k, wide_type(q.dtype))
    if bias is not None:
        logits = logits + bias
    return logits if blocked is None else jnp.where(blocked[:, None], jnp.finfo(logits.dtype).min, logits)


def _attend_forward(q, k, v, bias, blocked, scale) -> tuple[Array, tuple]:
    logits = _attention_logits(q, k, bias, blocked, scale)
    log_sum = jax.nn.logsumexp(logits, axis=-1, keepdims=True)  # (B, heads, T, 1)
    weights = jnp.exp(logits - log_sum)
    return contract("bhts,bhsc->bhtc", weights.astype(v.dtype), v), (q, k, v, bias, blocked, log_sum)


def _attend_backward(scale: float, kept: tuple, slope: Array) -> tuple:
    q, k, v, bias, blocked, log_sum = kept
    weights = jnp.exp(_attention_logits(q, k, bias, blocked, scale) - log_sum)
    of_v = contract("bhts,bhtc->bhsc", weights.astype(slope.dtype), slope)
    of_weights = contract("bhtc,bhsc->bhts", slope, v, weights.dtype)
    of_logits = weights * (of_weights - jnp.sum(weights * of_weights, axis=-1, keepdims=True))
    of_bias = None if bias is None else of_logits.astype(bias.dtype)
    of_logits = of_logits.astype(q.dtype)
    of_q = contract("bhts,bhsc->bhtc", of_logits, k) * scale
    of_k = contract("bhts,bhtc->bhsc", of_logits, q * scale)
    return of_q, of_k, of_v, of_bias, None


_attend.defvjp(_attend_forward, _attend_backward)


def project(x: Array, kernel: Array, out_dtype=None, precision: jax.lax.Precision | None = None) -> Array:
    """Multiply the last axis of x with a matrix: (..., in), (in, out) -> (..., out).

    The other axes are joined: the gradient of the kernel is then one product of matrices, before which
    compilers need not transpose its operands. What is kept for it is x, not x with joined axes beside it.

    Args:
      x: (B, ..., in).
      kernel: in any dtype; the product takes it in that of x.
      out_dtype: of the sums and of the result; by default the dtype of x.
      precision: of the product; by default as elsewhere.
    """

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def product(x: Array, kernel: Array) -> Array:
        joined, kernel = x.reshape(-1, x.shape[-1]), kernel.astype(x.dtype)
        return jnp.matmul(joined, kernel, precision=precision, preferred_element_type=out_dtype or x.dtype)

    return product(x, kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class Linear(nnx.Module):
    """Linear map of the last axis; of channels, it is a 1x1 convolution.

    Attributes:
      kernel: (in, out).
      bias: (out,), unless `bias_init` is None.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        init: Initializer,
        bias_init: Initializer | None = zeros,
        kind: VariableType = nnx.Param,
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.kernel = kind(init(rngs.params(), (in_features, out_features), param_dtype))
        if bias_init is not None:
            self.bias = kind(bias_init(rngs.params(), (out_features,), param_dtype))
        self.has_bias = bias_init is not None

    def __call__(self, x: Array, out_dtype=None) -> Array:
        """(..., in) -> (..., out), accumulated in and returned as `out_dtype`, by default the dtype of x."""
        out_dtype = out_dtype or x.dtype
        y = project(x, self.kernel[...], out_dtype)
        return y + self.bias[...].astype(out_dtype) if self.has_bias else y


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis."""

    def __init__(self, width: int, eps: float, *, kind: VariableType = nnx.Param, param_dtype=jnp.float32):
        self.scale = kind(jnp.ones((width,), param_dtype))
        self.bias = kind(jnp.zeros((width,), param_dtype))
        self.eps = eps

    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., D)."""
        return normalise(x, (-1,), self.scale[...], self.bias[...], self.eps)


class GroupNorm(nnx.Module):
    """Group normalisation over positions and the channels of each group."""

    def __init__(self, width: int, groups: int, *, param_dtype=jnp.float32):
        self.scale = nnx.Param(jnp.ones((width,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((width,), param_dtype))
        self.groups = groups

    def __call__(self, x: Array) -> Array:
        """(B, h, w, D) -> (B, h, w, D)."""
        batch, height, width, channels = x.shape
        split = (self.groups, channels // self.groups)
        grouped = x.reshape(batch, height * width, *split)
        scale, bias = self.scale[...].reshape(split), self.bias[...].reshape(split)
        return normalise(grouped, (1, 3), scale, bias, EPS).reshape(x.shape)


class Conv(nnx.Module):
    """3x3 convolution without bias, zeros outside."""

    def __init__(self, in_features: int, out_features: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        self.kernel = nnx.Param(c2_uniform(rngs.params(), (3, 3, in_features, out_features), param_dtype))

    def __call__(self, x: Array) -> Array:
        """(B, h, w, in) -> (B, h, w, out)."""
        return convolve(x, self.kernel[...].astype(x.dtype))


@jax.custom_vjp
def convolve(x: Array, kernel: Array) -> Array:
    """Convolve (B, h, w, in) with (3, 3, in, out), zeros outside: (B, h, w, out)."""
    return _convolution(x, kernel)


def _convolution(x: Array, kernel: Array) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    precision = full_precision(x.dtype)
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=layout, precision=precision
    )


def _convolve_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolution(x, kernel), (x, kernel)


def _convolve_backward(operands: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = operands
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    of_kernel = jax.lax.platform_dependent(x, cotangent, cpu=_kernel_gradient, default=_library_gradient)
    return _convolution(cotangent, turned), of_kernel


convolve.defvjp(_convolve_forward, _convolve_backward)


def _library_gradient(x: Array, cotangent: Array) -> Array:
    """Gradient of the kernel as the library differentiates the convolution."""
    kernel = jnp.zeros((3, 3, x.shape[-1], cotangent.shape[-1]), x.dtype)
    return jax.vjp(lambda kernel: _convolution(x, kernel), kernel)[1](cotangent)[0]


def _kernel_gradient(x: Array, cotangent: Array) -> Array:
    """Gradient of the kernel by three products of matrices, one for each of its rows.

    On a CPU a third of the time of the library's (2 x 64 x 64 x 256: 78 and 206 ms).
    """
    width, features = x.shape[2] + 2, x.shape[3]
    # with a border of zeros and joined rows, a step in the kernel is a fixed shift
    pixels = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]).reshape(-1, features)  # (B * (h + 2) * (w + 2), in)
    slopes = jnp.pad(cotangent, [(0, 0), (0, 2), (0, 2), (0, 0)]).reshape(-1, cotangent.shape[3])
    count = slopes.shape[0] - 2 * width  # the last rows are border, and so are the last pixels of each
    shifted = [jnp.pad(slopes[: count - 2], [(column, 2 - column), (0, 0)]) for column in range(3)]
    columns = jnp.concatenate(shifted, axis=-1)  # (count, 3 * out)
    rows = [pixels[row * width :][:count] for row in range(3)]  # (count, in) each
    products = [
        jnp.matmul(row.T, columns, precision=full_precision(x.dtype)) for row in rows
    ]  # (in, 3 * out)
    return jnp.stack(products).reshape(3, features, 3, -1).swapaxes(1, 2)


class FeedForward(nnx.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, width: int, hidden: int, *, param_dtype=jnp.float32, rngs: nnx.Rngs):
        kwargs = {"init": xavier_normal, "param_dtype": param_dtype, "rngs": rngs}
        self.hidden = Linear(width, hidden, bias_init=torch_bias(width), **kwargs)
        self.output = Linear(hidden, width, bias_init=torch_bias(hidden), **kwargs)

    def __call__(self, x: Array) -> Array:
        """(..., D) -> (..., D)."""
        return self.output(relu(self.hidden(x)))


def stack_layers(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """Make `count` modules as one, every weight with a leading axis of `count`."""
    return nnx.vmap(make)(nnx.Rngs(jax.random.split(rngs.params(), count)))
