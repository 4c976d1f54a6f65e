"""Deformable attention and resizing against torch, forward and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectralmoe_jax.mask2former.deformable_attention import deformable_attention
from spectralmoe_jax.mask2former.pixel_decoder import sine_positions
from spectralmoe_jax.resampling import resize_bilinear, resize_by_scale

torch = pytest.importorskip("torch")

SHAPES = [(3, 5), (6, 9), (12, 18)]


def attention(value, locations, weights):
    """Ours, with locations (B, Q, heads, levels, P, 2) and weights (B, Q, heads, levels, P) as in torch."""
    x, y, weights = (
        jnp.transpose(a, (2, 3, 4, 0, 1)) for a in (locations[..., 0], locations[..., 1], weights)
    )
    return deformable_attention(value, SHAPES, x, y, weights)


def leaf(array):
    return torch.tensor(array, requires_grad=True)


def test_deformable_attention_equals_transformers():
    module = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    rng = np.random.default_rng(0)
    batch, heads, dim, queries, points = 2, 4, 8, 17, 3
    tokens = sum(h * w for h, w in SHAPES)
    value = rng.standard_normal((batch, tokens, heads, dim), np.float32)
    locations = rng.uniform(-0.3, 1.3, (batch, queries, heads, len(SHAPES), points, 2)).astype(np.float32)
    weights = rng.uniform(size=locations.shape[:-1]).astype(np.float32)
    cotangent = rng.standard_normal((batch, queries, heads * dim), np.float32)

    inputs = [leaf(x) for x in (value, locations, weights)]
    shapes = torch.tensor(SHAPES)
    want = module.MultiScaleDeformableAttention()(inputs[0], shapes, SHAPES, None, inputs[1], inputs[2], 64)
    want.backward(torch.tensor(cotangent))
    got, pull = jax.vjp(attention, value, locations, weights)
    np.testing.assert_allclose(got, want.detach().numpy(), atol=1e-5)
    for ours, theirs in zip(pull(jnp.asarray(cotangent)), inputs, strict=True):
        scale = float(theirs.grad.abs().max())
        np.testing.assert_allclose(ours / scale, theirs.grad.numpy() / scale, atol=1e-5)


def test_deformable_attention_keeps_the_dtype_of_the_value():
    value = jnp.ones((1, sum(h * w for h, w in SHAPES), 2, 4), jnp.bfloat16)
    locations = jnp.full((1, 3, 2, len(SHAPES), 2, 2), 0.5)
    out = attention(value, locations, jnp.full(locations.shape[:-1], 1 / 6))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), 1, rtol=1e-2)  # ones, weights that sum to one


@pytest.mark.parametrize("size", [(28, 20), (3, 2), (7, 11), (7, 5)])
def test_resize_equals_torch(size):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 7, 5, 3), np.float32)
    cotangent = rng.standard_normal((2, *size, 3), np.float32)
    reference = leaf(x.transpose(0, 3, 1, 2))
    want = torch.nn.functional.interpolate(reference, size=size, mode="bilinear", align_corners=False)
    want.backward(torch.tensor(cotangent.transpose(0, 3, 1, 2)))
    got, pull = jax.vjp(lambda x: resize_bilinear(x, size), x)
    np.testing.assert_allclose(got, want.detach().numpy().transpose(0, 2, 3, 1), atol=1e-6)
    gradient = pull(jnp.asarray(cotangent))[0]
    np.testing.assert_allclose(gradient, reference.grad.numpy().transpose(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 2.0, 4.0, 1.5])
def test_resize_by_a_scale_that_does_not_divide_the_size(scale):
    x = np.random.default_rng(2).standard_normal((1, 7, 9, 2), np.float32)
    reference = torch.tensor(x.transpose(0, 3, 1, 2))
    want = torch.nn.functional.interpolate(reference, scale_factor=scale, mode="bilinear")
    np.testing.assert_allclose(resize_by_scale(x, scale), want.numpy().transpose(0, 2, 3, 1), atol=1e-6)


def test_positions_equal_transformers():
    module = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    reference = module.Mask2FormerSinePositionEmbedding(num_position_features=8, normalize=True)
    want = reference((1, 16, 5, 7), torch.device("cpu"), torch.float32)[0].flatten(1).T
    np.testing.assert_allclose(sine_positions(5, 7, 16), want.numpy(), atol=1e-6)
