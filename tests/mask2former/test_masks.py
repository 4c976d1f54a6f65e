"""Masks as products: their logits, and the loss that reads few of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.mask2former.loss import mask2former_loss
from spectralmoe_jax.mask2former.masks import Masks


def random_masks(queries=7):
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((3, 2, queries, 4)).astype(np.float32)
    return Masks(embedding, rng.standard_normal((2, 6, 5, 4)).astype(np.float32))


def test_logits_are_products_of_embeddings_and_features():
    masks = random_masks()
    want = np.einsum("kbqd,bhwd->kbqhw", *(part.astype(np.float64) for part in masks))
    np.testing.assert_allclose(masks.logits(), want, atol=1e-5)
    query = np.random.default_rng(1).integers(0, 7, (3, 2, 4))
    chosen = np.take_along_axis(want, query[..., None, None], axis=2)
    np.testing.assert_allclose(masks.of_queries(jnp.asarray(query)), chosen, atol=1e-5)


@pytest.mark.parametrize("classes", [4, 9])  # fewer and more than there are queries
def test_the_loss_of_masks_equals_that_of_their_logits(classes):
    masks, config = random_masks(), LossConfig(num_points=32)
    rng = np.random.default_rng(2)
    class_logits = rng.standard_normal((3, 2, 7, classes + 1)).astype(np.float32)
    labels = rng.integers(0, 3, (2, 12, 10)).astype(np.uint8)

    def total(embedding, features, multiply_out):
        given = Masks(embedding, features)
        given = given.logits() if multiply_out else given
        return mask2former_loss(class_logits, given, labels, config=config, key=jax.random.key(3)).total

    of_masks, of_logits = (
        jax.jit(jax.value_and_grad(total, argnums=(0, 1)), static_argnums=2)(*masks, multiply_out)
        for multiply_out in (False, True)
    )
    for ours, theirs in zip(jax.tree.leaves(of_masks), jax.tree.leaves(of_logits), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
