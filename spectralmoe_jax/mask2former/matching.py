"""Bipartite matching of queries with the classes of an image, inside jit.

Every image has one target slot for each class, slot c for class c, filled or not. Empty slots cost the same
with every query, so that the filled ones are matched as if they were alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax import Array

from spectralmoe_jax.config.schema import LossConfig

BAD_COST = 1e5  # in place of a cost that is not finite: worse than any real one


def matching_costs(class_logits: Array, mask_logits: Array, targets: Array, config: LossConfig) -> Array:
    """Cost of every query for every class of one image.

    The mask cost is the mean cross-entropy over points, the dice cost has eps 1.

    Args:
      class_logits: (Q, C + 1).
      mask_logits: (Q, P), at the matching points.
      targets: (C, P), in [0, 1].
      config: weights of the costs.

    Returns:
      (C, Q).
    """
    probability = jax.nn.softmax(class_logits, axis=-1)[:, :-1]
    positive, negative = jax.nn.softplus(-mask_logits), jax.nn.softplus(mask_logits)
    cross_entropy = (_product(positive, targets) + _product(negative, 1 - targets)) / mask_logits.shape[-1]
    masks = jax.nn.sigmoid(mask_logits)
    overlap = 2 * _product(masks, targets) + 1
    area = masks.sum(axis=-1)[:, None] + targets.sum(axis=-1)[None, :] + 1
    cost = (
        config.class_weight * -probability
        + config.mask_weight * cross_entropy
        + config.dice_weight * (1 - overlap / area)
    )
    return cost.T


def match(costs: Array, present: Array) -> tuple[Array, Array]:
    """Match the classes present in one image with queries at the least total cost.

    Args:
      costs: (C, Q); costs that are not finite count as `BAD_COST`.
      present: (C,) bool. Where more classes are present than there are queries, as many are matched as there
        are queries.

    Returns:
      The query of each class, (C,) int32, 0 for a class that is not matched; and a mask of the matched
      classes, (C,) bool.
    """
    classes, queries = costs.shape
    costs = jnp.where(jnp.isfinite(costs), costs, BAD_COST)
    # With a query for every slot an empty slot takes none away from the filled ones: its cost may be zero.
    # Otherwise it must cost more than any exchange among the filled ones saves.
    largest = jnp.max(jnp.where(present[:, None], jnp.abs(costs), 0))
    empty = 0.0 if classes <= queries else 2 * (queries + 1) * (1 + largest)
    costs = jnp.where(present[:, None], costs, empty)
    slots, chosen = optax.assignment.hungarian_algorithm(costs)
    query = jnp.zeros(classes, jnp.int32).at[slots].set(chosen.astype(jnp.int32))
    matched = jnp.zeros(classes, bool).at[slots].set(True) & present
    return jnp.where(matched, query, 0), matched


def _product(queries: Array, targets: Array) -> Array:
    """(Q, P), (C, P) -> (Q, C), in full precision: near ties are decided as in a float32 reference."""
    return jnp.matmul(queries, targets.T, precision=jax.lax.Precision.HIGHEST)
