"""Convolution and attention against torch and the library's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectralmoe_jax.layers import attend, convolve


def test_convolution_equals_torch():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 7, 5, 8), np.float32), rng.standard_normal((3, 3, 8, 6), np.float32)
    cotangent = rng.standard_normal((2, 7, 5, 6), np.float32)
    theirs = [torch.tensor(x.transpose(0, 3, 1, 2)), torch.tensor(kernel.transpose(3, 2, 0, 1))]
    for leaf in theirs:
        leaf.requires_grad_()
    want = torch.nn.functional.conv2d(*theirs, padding=1)
    want.backward(torch.tensor(cotangent.transpose(0, 3, 1, 2)))
    got, pull = jax.vjp(jax.jit(convolve), x, kernel)
    np.testing.assert_allclose(got, want.detach().numpy().transpose(0, 2, 3, 1), atol=1e-4)
    of_x, of_kernel = pull(jnp.asarray(cotangent))
    np.testing.assert_allclose(of_x, theirs[0].grad.numpy().transpose(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(of_kernel, theirs[1].grad.numpy().transpose(2, 3, 1, 0), atol=1e-4)


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_attention_equals_the_library(dtype, bound, with_bias):
    rng = np.random.default_rng(1)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 11, 3, 8)), dtype) for _ in range(3))
    bias = jnp.asarray(rng.standard_normal((2, 3, 11, 11)), jnp.float32) if with_bias else None
    want = jax.nn.dot_product_attention(q, k, v, None if bias is None else bias.astype(dtype))
    got = attend(q, k, v, bias)
    assert got.dtype == dtype
    np.testing.assert_allclose(got.astype(jnp.float32), want.astype(jnp.float32), atol=bound)
