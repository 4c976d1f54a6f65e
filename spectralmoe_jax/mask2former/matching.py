"""Bipartite matching of queries with the classes of an image, inside jit.

Every image has one target slot for each class, filled or not. Slots are in an order that starts with the
filled ones, and costs are computed for these alone. Empty slots cost the same with every query, so that the
filled ones are matched as if they were alone.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.mask2former.point_sampling import (
    LabelledPixels,
    LabelMap,
    labelled_share,
    read_codes,
    sample_classes,
)
from spectralmoe_jax.parallel import by_rows
from spectralmoe_jax.resampling import corners, sample, with_border

TIE = 100.0  # larger than any cost: what an image without labels would save by giving class c query c
BAD_COST = 1e5  # in place of a cost that is not finite: worse than any real one
FEW = 32  # slots that are matched alone where no image fills more
CHUNK = 8  # classes of an image whose costs are computed together
PIECES = 16  # parts of the points whose costs are computed one after the other on a CPU


class Slots(NamedTuple):
    """The classes of every image, those that are present first, in an order of their own.

    Where unlabelled pixels are excluded, a class without a label may be in the image all the same. It gets a
    query, too, which must not cover the labelled pixels; whether it should say "no object" is not known.
    Such a slot weighs as much as the share of pixels that have no label. The costs of an image with few
    labels say little: most show one or two classes, which a mask that covers everything fits as well as the
    right one, so that one query would take all classes. The less is labelled, the more firmly class c is tied
    to query c.

    Attributes:
      classes: (B, C) int32, a permutation of the classes.
      filled: (B,) int32, the number of classes that get a query: those that are present, and in an image with
        unlabelled pixels that are excluded also the others.
      present: (B,) int32, the number of classes that are present: the first slots.
      unlabelled: (B,) the share of pixels without a label; None where these are negative.
    """

    classes: Array
    filled: Array
    present: Array
    unlabelled: Array | None = None

    @property
    def is_present(self) -> Array:
        """True for slots that hold a class that is present: (B, C)."""
        return jnp.arange(self.classes.shape[1]) < self.present[:, None]

    def weights(self, dtype) -> Array:
        """Weight of every slot, (B, C): 1, or the share of pixels without a label for a class without one."""
        if self.unlabelled is None:
            return jnp.ones(self.classes.shape, dtype)
        return jnp.where(self.is_present, 1, self.unlabelled[:, None].astype(dtype))


def slots_of(truth: LabelMap, pixels: LabelledPixels | None = None, queries: int = 0) -> Slots:
    """Order the classes of every image: present ones first, each part in the order of classes.

    Args:
      truth: the labels.
      pixels: the labelled pixels, where unlabelled ones are excluded.
      queries: number of queries; classes without a label get some only if all present ones do.
    """
    order = by_rows(lambda present: jnp.argsort(~present, axis=-1, stable=True), truth.present)
    order, present = order.astype(jnp.int32), truth.present.sum(axis=-1, dtype=jnp.int32)
    if pixels is None:
        return Slots(order, present, present)
    labelled = pixels.counts.sum(axis=-1)
    is_partial = (labelled > 0) & (labelled < pixels.places.shape[-1])
    filled = jnp.where(is_partial, jnp.maximum(present, min(order.shape[1], queries)), present)
    return Slots(order, filled, present, 1 - labelled / pixels.places.shape[-1])


def mask_weights(slots: Slots, config: LossConfig, dtype) -> Array:
    """Weight of the mask of every slot, (B, C): that of the slot times that of its class."""
    weights = slots.weights(dtype)
    of_classes = config.weight_of_each_class
    return weights if of_classes is None else weights * jnp.asarray(of_classes, dtype)[slots.classes]


def chunk_of(slots: Array, step: Array, size: int) -> Array:
    """Return slots `step * size` and following of (B, C): (B, size); beyond the end the last is repeated."""
    places = jnp.minimum(step * size + jnp.arange(size), slots.shape[1] - 1)
    return jnp.take(slots, places, axis=1)


def filled_in(slots: Slots, step: Array, size: int) -> Array:
    """Return which slots of a chunk get a query: (B, size) bool."""
    return step * size + jnp.arange(size) < slots.filled[:, None]


def chunks(slots: Slots, size: int) -> Array:
    """Return the number of chunks that hold all filled slots of these images: a scalar."""
    return -(-jnp.max(slots.filled, initial=0) // size)


class CostSums(NamedTuple):
    """Sums over points for the costs of B images: S slots, of which the first are filled, and Q queries.

    Attributes:
      inside: (B, S, Q), of mask logits times targets.
      overlap: (B, S, Q), of sigmoids times targets.
      target: (B, S), of targets.
      mask: (B, Q), of sigmoids.
      outside: (B, Q), of the cross-entropy with a target of zeros. That with a target t is less by the logit
        times t.
      weight: (B,), of the points themselves.

    Where unlabelled pixels are excluded, a point weighs as much as the share of labels around it: a factor in
    the terms of mask and outside, while a target is the share of its class already.
    """

    inside: Array
    overlap: Array
    target: Array
    mask: Array
    outside: Array
    weight: Array


def present_costs(
    labels: tuple[int, int], config: LossConfig, probability: Array, masks: Array, points: Array,
    codes: Array, slots: Slots,
) -> Array:  # fmt: skip
    """Compute the matching costs of the filled slots, each with its weight.

    The mask cost is the mean cross-entropy over points, the dice cost has eps 1. With unlabelled pixels
    excluded, both are over labelled points alone.

    Args:
      labels: (H, W) of the labels.
      config: weights of the costs.
      probability: (B, Q, C + 1).
      masks: (B, Q, h, w).
      points: (B, P, 2).
      codes: (B, cells), label codes.
      slots: the classes of the slots.

    Returns:
      (B, C, Q), zero for slots that are not filled.
    """
    dtype, num_classes = probability.dtype, slots.classes.shape[1]
    excluded = config.excludes_unlabelled
    sums = _cost_sums(labels, excluded, masks.astype(dtype), points.astype(dtype), codes, slots)
    sums = sums._replace(**{name: getattr(sums, name)[:, :num_classes] for name in CostSums._fields[:3]})
    # 1. costs of all slots
    chosen = jnp.take_along_axis(probability, slots.classes[:, None, :], axis=2).swapaxes(1, 2)  # (B, C, Q)
    area = sums.mask[:, None] + sums.target[..., None] + 1
    weight = jnp.where(sums.weight > 0, sums.weight, 1)[:, None, None]
    count = weight if excluded else points.shape[1]
    costs = (
        config.class_weight * -chosen
        + config.mask_weight * (sums.outside[:, None] - sums.inside) / count
        + config.dice_weight * (1 - (2 * sums.overlap + 1) / area)
    )
    if slots.unlabelled is not None:
        own = slots.classes[..., None] == jnp.arange(costs.shape[-1])  # (B, C, Q)
        tie = TIE * slots.unlabelled.astype(dtype)[:, None, None]
        costs = slots.weights(dtype)[..., None] * costs - jnp.where(own, tie, 0)
    # 2. of the filled ones
    filled = jnp.arange(num_classes) < slots.filled[:, None]
    return jnp.where(filled[..., None], costs, 0.0)


def _cost_sums(
    labels: tuple[int, int], excluded: bool, masks: Array, points: Array, codes: Array, slots: Slots
) -> CostSums:
    """Sum over the points of `present_costs`, on a CPU some at a time: what they need stays in its cache.

    Slots are filled up to a multiple of `CHUNK`.
    """
    (batch, queries), dtype = masks.shape[:2], masks.dtype
    size, num_classes = masks.shape[2:], slots.classes.shape[1]
    cells = with_border(masks.transpose(0, 2, 3, 1))  # (B, cells, Q)

    def add(sums: CostSums, points: Array) -> tuple[CostSums, None]:
        """Add some of the points, (B, n, 2): scan body."""
        x, y = points[..., 0], points[..., 1]
        # 1. mask logits there, their sigmoids, and what they cost outside of all targets, (B, n, Q) each
        logits = jax.vmap(sample)(cells, corners(x, y, *size))
        small = jnp.exp(-jnp.abs(logits))
        sigmoid = jnp.where(logits >= 0, 1, small) / (1 + small)
        outside = jnp.maximum(logits, 0) + jnp.log1p(small)
        # 2. labels there, read once for all classes
        where = corners(x, y, *labels)
        read = jax.vmap(read_codes)(codes, where)
        weight, known = jnp.ones_like(x), sigmoid
        if excluded:
            weight = labelled_share(read, where, num_classes)
            known, outside = sigmoid * weight[..., None], outside * weight[..., None]
        read, where = jax.tree.map(lambda part: part[:, None], (read, where))

        def step(index: Array, sums: CostSums) -> CostSums:
            """Add to the sums of one chunk of classes: loop body."""
            targets = sample_classes(read, where, chunk_of(slots.classes, index, CHUNK))  # (B, G, n)
            return sums._replace(
                inside=_add_to_chunk(sums.inside, index, _product(targets, logits)),
                overlap=_add_to_chunk(sums.overlap, index, _product(targets, sigmoid)),
                target=_add_to_chunk(sums.target, index, targets.sum(axis=-1)),
            )

        sums = sums._replace(
            mask=sums.mask + known.sum(axis=1),
            outside=sums.outside + outside.sum(axis=1),
            weight=sums.weight + weight.sum(axis=1),
        )
        return jax.lax.fori_loop(0, chunks(slots, CHUNK), step, sums), None

    count = -(-num_classes // CHUNK) * CHUNK
    of_slots, of_queries = (batch, count, queries), (batch, queries)
    shapes = (of_slots, of_slots, (batch, count), of_queries, of_queries, (batch,))
    start = CostSums(*(jnp.zeros(shape, dtype) for shape in shapes))
    pieces = math.gcd(points.shape[1], PIECES)
    split = points.reshape(batch, pieces, -1, 2).swapaxes(0, 1)  # (pieces, B, n, 2)
    return jax.lax.platform_dependent(
        cpu=lambda: jax.lax.scan(add, start, split)[0], default=lambda: add(start, points)[0]
    )


def _add_to_chunk(total: Array, index: Array, part: Array) -> Array:
    """Add a part (B, CHUNK, ...) to the slots of one chunk of (B, S, ...)."""
    old = jax.lax.dynamic_slice_in_dim(total, index * CHUNK, CHUNK, axis=1)
    return jax.lax.dynamic_update_slice_in_dim(total, old + part, index * CHUNK, axis=1)


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
    """(B, G, n), (B, n, Q) -> (B, G, Q), in full precision, which decides near ties as a reference does."""
    return jnp.matmul(targets, values, precision=jax.lax.Precision.HIGHEST)
