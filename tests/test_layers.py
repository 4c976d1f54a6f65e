"""Layers and their gradients against torch and the library's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectralmoe_jax.layers import (
    attend,
    convolve,
    gelu,
    has_fused_attention,
    normalise,
    project,
    relu,
    softmax,
)
from spectralmoe_jax.models.encoders.encoder import quick_gelu


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


@pytest.mark.parametrize("kind", ["plain", "bias", "blocked", "scale"])
def test_gradients_of_attention_equal_automatic_differentiation(kind):
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((2, n, 3, 8)).astype(np.float32) for n in (7, 11, 11))
    bias = rng.standard_normal((2, 3, 7, 11)).astype(np.float32) if kind == "bias" else None
    blocked = rng.uniform(size=(2, 7, 11)) < 0.4 if kind == "blocked" else None
    scale = 0.3 if kind == "scale" else None
    slope = rng.standard_normal((2, 7, 3, 8)).astype(np.float32)

    def library(q, k, v, bias):
        mask = None if blocked is None else jnp.asarray(~blocked)[:, None]
        return jax.nn.dot_product_attention(q, k, v, bias, mask, scale=scale, implementation="xla")

    got, pull = jax.vjp(lambda *inputs: attend(*inputs, blocked=blocked, scale=scale), q, k, v, bias)
    want, pull_library = jax.vjp(library, q, k, v, bias)
    np.testing.assert_allclose(got, want, atol=2e-6)
    pairs = zip(jax.tree.leaves(pull(slope)), jax.tree.leaves(pull_library(slope)), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_attention_keeps_no_weights():
    q = jax.ShapeDtypeStruct((1, 50, 2, 4), jnp.float32)
    pull = jax.eval_shape(lambda q: jax.vjp(lambda q: attend(q, q, q), q)[1], q)
    assert all(leaf.size < 50 * 50 for leaf in jax.tree.leaves(pull))


@pytest.mark.skipif(not has_fused_attention(jnp.bfloat16, 64), reason="needs a GPU on which cuDNN attends")
def test_fused_attention_equals_ours():
    rng = np.random.default_rng(3)
    q, k, v, slope = (jnp.asarray(rng.standard_normal((2, 261, 4, 64)), jnp.bfloat16) for _ in range(4))
    got, pull = jax.vjp(attend, q, k, v)  # fused
    want, pull_ours = jax.vjp(lambda *inputs: attend(*inputs, scale=64**-0.5), q, k, v)
    for ours, theirs in zip((got, *pull(slope)), (want, *pull_ours(slope)), strict=True):
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs.astype(jnp.float32), atol=4e-2)


def test_fused_attention_that_does_not_compile_is_not_used(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    q = jnp.ones((1, 3, 2, 24), jnp.bfloat16)  # a width of its own: answers are kept
    want = attend(q, q, q, scale=24**-0.5)
    np.testing.assert_array_equal(attend(q, q, q), want)
    assert not has_fused_attention(jnp.dtype(jnp.bfloat16), 24)


@pytest.mark.parametrize(
    ("shape", "axes", "weights"), [((3, 5, 8), (-1,), (8,)), ((2, 6, 2, 4), (1, 3), (2, 4))]
)
def test_normalisation_equals_torch(shape, axes, weights):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    x, slope = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    scale, bias = (rng.standard_normal(weights).astype(np.float32) for _ in range(2))
    theirs = [torch.tensor(value, requires_grad=True) for value in (x, scale, bias)]
    if len(weights) == 1:
        want = torch.nn.functional.layer_norm(theirs[0], weights, *theirs[1:], eps=1e-5)
    else:  # groups: torch has channels in front of positions
        channels = theirs[0].flatten(2).movedim(1, 2)
        normed = torch.nn.functional.group_norm(
            channels, 2, theirs[1].flatten(), theirs[2].flatten(), eps=1e-5
        )
        want = normed.movedim(2, 1).reshape(shape)
    want.backward(torch.tensor(slope))
    got, pull = jax.vjp(lambda x, scale, bias: normalise(x, axes, scale, bias, 1e-5), x, scale, bias)
    np.testing.assert_allclose(got, want.detach(), atol=1e-5)
    for ours, leaf in zip(pull(slope), theirs, strict=True):
        np.testing.assert_allclose(ours, leaf.grad, atol=2e-5)


@pytest.mark.parametrize("name", ["gelu", "relu", "quick_gelu", "softmax"])
def test_activations_equal_torch(name):
    torch = pytest.importorskip("torch")
    ours = {"gelu": gelu, "relu": relu, "quick_gelu": quick_gelu, "softmax": softmax}[name]
    theirs = {"quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "softmax": lambda x: torch.softmax(x, -1)}
    rng = np.random.default_rng(5)
    x, slope = (3 * rng.standard_normal((6, 9)).astype(np.float32) for _ in range(2))
    leaf = torch.tensor(x, requires_grad=True)
    want = theirs.get(name, getattr(torch.nn.functional, name, None))(leaf)
    want.backward(torch.tensor(slope))
    got, pull = jax.vjp(ours, x)
    np.testing.assert_allclose(got, want.detach(), atol=1e-6)
    np.testing.assert_allclose(pull(slope)[0], leaf.grad, atol=3e-6)


def test_a_linear_layer_keeps_its_input_alone():
    x, kernel = np.ones((2, 3, 4), np.float32), np.ones((4, 5), np.float32)
    pull = jax.eval_shape(lambda x, kernel: jax.vjp(project, x, kernel)[1], x, kernel)
    assert sorted(leaf.size for leaf in jax.tree.leaves(pull)) == [kernel.size, x.size]
    of_frozen = jax.eval_shape(lambda x: jax.vjp(lambda x: project(x, kernel), x)[1], x)
    assert all(leaf.size != x.size for leaf in jax.tree.leaves(of_frozen))
