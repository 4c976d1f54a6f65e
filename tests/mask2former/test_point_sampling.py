"""Point sampling against torch's grid_sample, and the choice of uncertain points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.mask2former.point_sampling import (
    label_map,
    sample_classes,
    sample_own,
    sample_own_class,
    sample_shared,
    uncertain_points,
)

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


def test_logits_at_points(rng):
    maps = rng.standard_normal((5, 6, 9), np.float32)
    # beyond the border too, where half a pixel still counts
    shared = rng.uniform(-0.2, 1.2, (40, 2)).astype(np.float32)
    own = rng.uniform(-0.2, 1.2, (5, 40, 2)).astype(np.float32)
    want = grid_sample(maps, np.broadcast_to(shared, own.shape).copy())
    np.testing.assert_allclose(sample_shared(maps, shared), want, atol=1e-5)
    np.testing.assert_allclose(sample_own(maps, own), grid_sample(maps, own), atol=1e-5)


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
        got = sample_classes(truth.cells[image], truth.size, own[0], CLASSES)
        np.testing.assert_allclose(got, grid_sample(masks[image], shared), atol=1e-6)
        got = sample_own_class(truth.cells[image], truth.size, own)
        np.testing.assert_allclose(got, grid_sample(masks[image], own), atol=1e-6)


def test_uncertain_points_lie_where_the_mask_changes_sign():
    config = LossConfig(num_points=600, oversample_ratio=4.0, importance_sample_ratio=0.5)
    ramp = jnp.linspace(-1, 1, 64)[None, None, :].repeat(64, axis=1)  # zero at x = 1/2
    points = np.asarray(uncertain_points(jax.random.key(0), ramp, config))
    assert points.shape == (1, 600, 2)
    assert points.min() >= 0
    assert points.max() <= 1
    distance = np.abs(points[0, :, 0] - 0.5)
    # 300 of 2400 uniform draws are kept: those within 1/16 of the edge, give or take the draw; in the
    # first and last row logits fade into the zeros outside and count as less certain than they are
    inner = np.abs(points[0, :300, 1] - 0.5) < 0.5 - 1 / 64
    assert inner.sum() > 250
    assert distance[:300][inner].max() < 1 / 16 + 0.02
    # the rest is uniform: mean distance 1/4
    assert abs(distance[300:].mean() - 0.25) < 0.04


@pytest.mark.parametrize(("share", "count"), [(0.0, 16), (1.0, 16)])
def test_all_or_none_of_the_points_may_be_uncertain(share, count):
    config = LossConfig(num_points=count, importance_sample_ratio=share)
    assert uncertain_points(jax.random.key(1), jnp.ones((2, 4, 4)), config).shape == (2, count, 2)
