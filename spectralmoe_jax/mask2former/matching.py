"""Bipartite matching of queries with the classes of an image, inside jit.

Every image has one target slot for each class, filled or not. Slots are in an order that starts with the
filled ones, and costs are computed for these alone. Empty slots cost the same with every query, so that the
filled ones are matched as if they were alone.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.mask2former.point_sampling import LabelMap, read_codes, sample_classes, sample_shared
from spectralmoe_jax.parallel import by_rows
from spectralmoe_jax.resampling import corners

BAD_COST = 1e5  # in place of a cost that is not finite: worse than any real one
FEW = 32  # slots that are matched alone where no image fills more
CHUNK = 8  # classes of an image whose costs are computed together


class Slots(NamedTuple):
    """The classes of every image, those that are present first, in an order of their own.

    Attributes:
      classes: (B, C) int32, a permutation of the classes.
      filled: (B,) int32, the number of classes that are present.
    """

    classes: Array
    filled: Array


def slots_of(truth: LabelMap) -> Slots:
    """Order the classes of every image: present ones first, each part in the order of classes."""
    order = by_rows(lambda present: jnp.argsort(~present, axis=-1, stable=True), truth.present)
    return Slots(order.astype(jnp.int32), truth.present.sum(axis=-1, dtype=jnp.int32))


def chunk_of(slots: Array, step: Array, size: int) -> Array:
    """Return slots `step * size` and following of (B, C): (B, size); beyond the end the last is repeated."""
    places = jnp.minimum(step * size + jnp.arange(size), slots.shape[1] - 1)
    return jnp.take(slots, places, axis=1)


def filled_in(slots: Slots, step: Array, size: int) -> Array:
    """Return which slots of a chunk hold a class that is present: (B, size) bool."""
    return step * size + jnp.arange(size) < slots.filled[:, None]


def chunks(slots: Slots, size: int) -> Array:
    """Return the number of chunks that hold all present classes of these images: a scalar."""
    return -(-jnp.max(slots.filled, initial=0) // size)


class MaskSamples(NamedTuple):
    """Mask logits of all queries of one image at P points, as the matching costs need them.

    Attributes:
      inside: (P, 2 Q), cost of a logit inside a target, and its sigmoid.
      outside: (P, Q), cost of a logit outside a target.
      area: (Q,), sum of the sigmoids.
    """

    inside: Array
    outside: Array
    area: Array


def mask_samples(logits: Array) -> MaskSamples:
    """Prepare sampled mask logits (P, Q)."""
    small = jnp.exp(-jnp.abs(logits))
    extra = jnp.log1p(small)
    masks = jnp.where(logits >= 0, 1, small) / (1 + small)  # sigmoid
    inside = jnp.concatenate([jnp.maximum(-logits, 0) + extra, masks], axis=1)
    return MaskSamples(inside, jnp.maximum(logits, 0) + extra, masks.sum(axis=0))


def matching_costs(probability: Array, samples: MaskSamples, targets: Array, config: LossConfig) -> Array:
    """Cost of every query for some classes of one image.

    The mask cost is the mean cross-entropy over points, the dice cost has eps 1.

    Args:
      probability: (G, Q), of the classes.
      samples: mask logits at the matching points.
      targets: (G, P), the masks of the classes, in [0, 1].
      config: weights of the costs.

    Returns:
      (G, Q).
    """
    queries = probability.shape[1]
    inside = _product(targets, samples.inside)
    cross_entropy = (inside[:, :queries] + _product(1 - targets, samples.outside)) / targets.shape[1]
    overlap = 2 * inside[:, queries:] + 1
    area = samples.area + targets.sum(axis=1, keepdims=True) + 1
    return (
        config.class_weight * -probability
        + config.mask_weight * cross_entropy
        + config.dice_weight * (1 - overlap / area)
    )


def present_costs(
    labels: tuple[int, int], config: LossConfig, probability: Array, masks: Array, points: Array,
    codes: Array, slots: Slots,
) -> Array:  # fmt: skip
    """Compute the matching costs of the present classes, chunk by chunk.

    Args:
      labels: (H, W) of the labels.
      config: weights of the costs.
      probability: (B, Q, C + 1).
      masks: (B, Q, h, w).
      points: (B, P, 2).
      codes: (B, cells), label codes.
      slots: the classes of the slots.

    Returns:
      (B, C, Q), zero for classes that are absent.
    """
    points = points.astype(probability.dtype)
    x, y = points[..., 0], points[..., 1]  # (B, P)
    sampled = jax.vmap(sample_shared)(masks.astype(probability.dtype), corners(x, y, *masks.shape[2:]))
    samples = jax.vmap(mask_samples)(sampled)
    where = corners(x, y, *labels)
    read = jax.vmap(read_codes)(codes, where)
    shared_codes, shared_corners = jax.tree.map(
        lambda part: part[:, None], (read, where)
    )  # (B, 1, P): for all classes
    batch, num_classes = slots.classes.shape

    def step(index: Array, costs: Array) -> Array:
        """Fill in the costs of one chunk of classes: loop body."""
        classes = chunk_of(slots.classes, index, CHUNK)  # (B, G)
        targets = sample_classes(shared_codes, shared_corners, classes)  # (B, G, P)
        chosen = jnp.take_along_axis(probability, classes[:, None, :], axis=2).swapaxes(1, 2)  # (B, G, Q)
        part = jax.vmap(functools.partial(matching_costs, config=config))(chosen, samples, targets)
        part = jnp.where(filled_in(slots, index, CHUNK)[..., None], part, 0.0)
        return jax.lax.dynamic_update_slice_in_dim(costs, part, index * CHUNK, axis=1)

    whole = -(-num_classes // CHUNK) * CHUNK
    costs = jnp.zeros((batch, whole, probability.shape[1]), probability.dtype)
    return jax.lax.fori_loop(0, chunks(slots, CHUNK), step, costs)[:, :num_classes]


def match_filled(costs: Array, count: Array) -> tuple[Array, Array]:
    """Match the first slots of many images, each image at its own number of filled slots.

    Args:
      costs: (B, K, C, Q).
      count: (B,), filled slots of each image.

    Returns:
      Query and matched (B, K, C), see `match`.
    """

    def first(slots: int) -> tuple[Array, Array]:
        """Match the first slots alone; the others are empty."""
        filled = jnp.arange(slots) < count[:, None]  # (B, slots)
        query, matched = jax.vmap(jax.vmap(match, in_axes=(0, None)))(costs[:, :, :slots], filled)
        rest = [(0, 0), (0, 0), (0, costs.shape[2] - slots)]
        return jnp.pad(query, rest), jnp.pad(matched, rest)

    slots = costs.shape[2]
    if slots <= FEW:
        return first(slots)
    return jax.lax.cond(jnp.max(count, initial=0) <= FEW, lambda: first(FEW), lambda: first(slots))


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


def _product(targets: Array, values: Array) -> Array:
    """(G, P), (P, Q) -> (G, Q), in full precision: near ties are decided as in a float32 reference."""
    return jnp.matmul(targets, values, precision=jax.lax.Precision.HIGHEST)
