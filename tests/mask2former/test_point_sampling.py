"""Point sampling against torch's grid_sample, random numbers against jax.random, selection against a sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.mask2former.point_sampling import (
    candidate_points,
    draw_points,
    label_map,
    least_certain,
    point_weights,
    read_codes,
    sample_classes,
    sample_own,
)
from spectralmoe_jax.resampling import corners, sample, with_border

CLASSES = 4


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


def grid_sample(maps, points):
    """maps (M, h, w) at points (M, P, 2) -> (M, P), by torch."""
    torch = pytest.importorskip("torch")
    grid = torch.tensor(2 * points[:, :, None] - 1)
    sampled = torch.nn.functional.grid_sample(torch.tensor(maps)[:, None], grid, align_corners=False)
    return sampled[:, 0, :, 0].numpy()


def around(points, height, width):
    return corners(points[..., 0], points[..., 1], height, width)


def test_logits_at_points(rng):
    maps = rng.standard_normal((5, 6, 9), np.float32)
    # beyond the border too, where half a pixel still counts
    shared = rng.uniform(-0.2, 1.2, (40, 2)).astype(np.float32)
    own = rng.uniform(-0.2, 1.2, (5, 40, 2)).astype(np.float32)
    want = grid_sample(maps, np.broadcast_to(shared, own.shape).copy())
    np.testing.assert_allclose(
        sample(with_border(maps.transpose(1, 2, 0)), around(shared, 6, 9)).T, want, atol=1e-5
    )
    np.testing.assert_allclose(sample_own(maps, around(own, 6, 9)), grid_sample(maps, own), atol=1e-5)


def test_labels_at_points(rng):
    labels = rng.integers(0, CLASSES + 1, (2, 7, 5)).astype(np.uint8)
    labels[labels == CLASSES] = 255
    labels[1][labels[1] == 2] = 0
    truth = label_map(labels, CLASSES)
    masks = (labels[:, None] == np.arange(CLASSES)[:, None, None]).astype(np.float32)  # (B, C, H, W)
    np.testing.assert_array_equal(truth.present, masks.any(axis=(2, 3)))
    own = rng.uniform(-0.1, 1.1, (CLASSES, 30, 2)).astype(np.float32)
    shared = np.broadcast_to(own[:1], own.shape).copy()
    for image in range(2):
        for points, want in (
            (own[:1], shared),
            (own, own),
        ):  # one set of points for all classes, one for each
            where = around(points, *truth.size)
            got = sample_classes(read_codes(truth.codes[image], where), where, jnp.arange(CLASSES))
            np.testing.assert_allclose(got, grid_sample(masks[image], want), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_points_of_some_slots_are_those_of_all(dtype, impl):
    """They are what the library draws for all slots, whether or not all of them have to be drawn."""
    keys = jax.random.split(jax.random.key(7, impl=impl), 2)
    slots = jnp.array([[3, 0, 3], [1, 4, 2]])
    got = jnp.stack(jax.jit(draw_points, static_argnums=(2, 3, 4))(keys, slots, 5, 11, dtype), axis=-1)
    everything = jax.vmap(lambda key: jax.random.uniform(key, (5, 11, 2), dtype))(keys)
    for image in range(2):
        np.testing.assert_array_equal(got[image], everything[image][slots[image]])


def test_the_least_certain_equal_those_of_a_sort(rng):
    logits = rng.standard_normal((7, 500)).astype(np.float32) * 10.0 ** rng.integers(-30, 30, (7, 1))
    for count in (1, 123, 500):
        wanted = np.argsort(np.abs(logits), axis=1, kind="stable")[:, :count]
        found = np.asarray(jax.jit(least_certain, static_argnums=1)(logits, count))
        assert (found.sum(axis=1) == count).all()
        assert (np.take_along_axis(found, wanted, axis=1) == 1).all()


def test_ties_share_the_last_places():
    logits = jnp.array([[0.5, -1.0, 1.0, 2.0, 1.0, -0.25], [0.0] * 6])
    np.testing.assert_allclose(
        least_certain(logits, 4), [[1, 2 / 3, 2 / 3, 0, 2 / 3, 1], [4 / 6] * 6], rtol=1e-6
    )


def test_uncertain_points_lie_where_the_mask_changes_sign():
    config = LossConfig(num_points=600, oversample_ratio=4.0, importance_sample_ratio=0.5)
    ramp = jnp.linspace(-1, 1, 64)[None, None, None, :].repeat(64, axis=2)  # zero at x = 1/2
    x, y = candidate_points(
        jax.random.split(jax.random.key(0), 1), jnp.zeros((1, 1), int), 1, config, jnp.float32
    )
    weights = np.asarray(point_weights(sample_own(ramp, corners(x, y, 64, 64)), config))
    assert weights.shape == (1, 1, 2400 + 300)
    assert weights.sum() == 600
    assert min(x.min(), y.min()) >= 0
    assert max(x.max(), y.max()) <= 1
    distance = np.abs(np.asarray(x) - 0.5)
    # 300 of 2400 uniform draws are kept: those within 1/16 of the edge, give or take the draw; in the
    # first and last row logits fade into the zeros outside and count as less certain than they are
    kept = weights[0, 0, :2400] > 0
    inner = kept & (np.abs(np.asarray(y)[0, 0, :2400] - 0.5) < 0.5 - 1 / 64)
    assert inner.sum() > 250
    assert distance[0, 0, :2400][inner].max() < 1 / 16 + 0.02
    # the rest is uniform: mean distance 1/4
    assert (weights[0, 0, 2400:] == 1).all()
    assert abs(distance[0, 0, 2400:].mean() - 0.25) < 0.04


@pytest.mark.parametrize(("share", "candidates"), [(0.0, 0), (1.0, 48)])
def test_all_or_none_of_the_points_may_be_uncertain(share, candidates):
    config = LossConfig(num_points=16, importance_sample_ratio=share)
    keys = jax.random.split(jax.random.key(1), 2)
    x, _ = candidate_points(keys, jnp.zeros((2, 3), int), 4, config, jnp.float32)
    assert x.shape == (2, 3, candidates or 16)
    np.testing.assert_allclose(point_weights(jnp.ones(x.shape), config).sum(axis=-1), 16, rtol=1e-6)
