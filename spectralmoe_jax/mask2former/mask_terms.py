"""The mask and dice terms of the classes that are present, with their gradient.

Classes that an image lacks cost nothing: an image's classes come in an order that starts with those it has
(`Slots`), and a loop walks as many of them as the image with the most has, a few at a time. Reverse-mode
differentiation cannot follow a loop of unknown length, so the gradient is computed along with the terms.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.layers import wide_type
from spectralmoe_jax.mask2former.point_sampling import (
    LabelMap,
    candidate_points,
    point_weights,
    read_codes,
    sample_classes,
    sample_own,
)
from spectralmoe_jax.parallel import by_rows
from spectralmoe_jax.resampling import corners

CHUNK = 2  # classes of an image in one step: at most one is computed in vain


class Slots(NamedTuple):
    """The classes of every image, those that are present first, in an order of their own.

    Attributes:
      classes: (B, C) int32, a permutation of the classes.
      count: (B,) int32, the number of classes that are present.
    """

    classes: Array
    count: Array


def slots_of(truth: LabelMap) -> Slots:
    """Order the classes of every image: present ones first, each part in the order of classes."""
    order = by_rows(lambda present: jnp.argsort(~present, axis=-1, stable=True), truth.present)
    return Slots(order.astype(jnp.int32), truth.present.sum(axis=-1, dtype=jnp.int32))


def chunk_of(slots: Array, step: Array, size: int) -> Array:
    """Return slots `step * size` and following of (B, C): (B, size); beyond the end, the last are repeated."""
    places = jnp.minimum(step * size + jnp.arange(size), slots.shape[1] - 1)
    return jnp.take(slots, places, axis=1)


def chunks(slots: Slots, size: int) -> Array:
    """Return the number of chunks that hold all present classes of these images: a scalar."""
    return -(-jnp.max(slots.count, initial=0) // size)


class Terms(NamedTuple):
    """Sums over the matched masks of every image.

    Attributes:
      total: (B,), both terms with their weights; it alone has a gradient.
      mask: (B,), cross-entropy, averaged over points.
      dice: (B,), dice loss.
    """

    total: Array
    mask: Array
    dice: Array


class Size(NamedTuple):
    """What the walk has to know before it starts.

    Attributes:
      labels: (H, W) of the labels.
      config: numbers of points and weights.
    """

    labels: tuple[int, int]
    config: LossConfig


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def mask_terms(
    size: Size, masks: Array, query: Array, matched: Array, slots: Slots, codes: Array, points: Array
) -> Terms:
    """Compare the matched masks of one decoder output with the labels, at sampled points.

    Args:
      size: sizes and settings.
      masks: mask logits (B, Q, h, w).
      query: (B, C), the query of every slot.
      matched: (B, C) bool, whether the slot has one.
      slots: the classes of the slots.
      codes: label codes, `LabelMap.codes`.
      points: (B, C, P, 2), points of every class, in the order of classes; or (B,) random keys to draw them.
    """
    operands = (masks, query, matched, slots, codes, points)
    return by_rows(lambda *operands: _walk(size, *operands, differentiate=False)[0], *operands)


def _forward(size: Size, *operands) -> tuple[Terms, Array]:
    return by_rows(lambda *operands: _walk(size, *operands, differentiate=True), *operands)


def _backward(size: Size, gradient: Array, cotangent: Terms) -> tuple:
    scaled = gradient * cotangent.total[:, None, None, None].astype(gradient.dtype)
    return scaled, None, None, None, None, None


mask_terms.defvjp(_forward, _backward)


def _walk(
    size: Size, masks: Array, query: Array, matched: Array, slots: Slots, codes: Array, points: Array,
    *, differentiate: bool,
) -> tuple[Terms, Array]:  # fmt: skip
    """Sum the terms over all chunks; with `differentiate` also their gradient (B, Q, h, w), else zero."""
    config, dtype = size.config, wide_type(masks.dtype)
    add_rows = jax.vmap(lambda gradient, query, part: gradient.at[query].add(part))

    def step(state: tuple[Array, Terms, Array]) -> tuple[Array, Terms, Array]:
        """Add the terms of one chunk of classes: loop body."""
        index, sums, gradient = state
        chosen, classes = (chunk_of(x, index, CHUNK) for x in (query, slots.classes))  # (B, G)
        valid = chunk_of(matched, index, CHUNK) & (index * CHUNK + jnp.arange(CHUNK) < matched.shape[1])
        # 1. points and the logits there
        x, y, drawn = _points(points, classes, slots.classes.shape[1], config, dtype)  # (B, G, n)
        where = corners(x, y, *masks.shape[2:])
        read = jnp.take_along_axis(masks, chosen[..., None, None], axis=1).astype(dtype)  # (B, G, h, w)
        logits, pull = jax.vjp(lambda read: sample_own(read, where), read)
        weights = point_weights(logits, config) if drawn else jnp.ones_like(logits)
        # 2. labels at the points
        where = corners(x, y, *size.labels)
        target = sample_classes(jax.vmap(read_codes)(codes, where), where, classes)
        # 3. terms, and their gradient at the points and in the masks
        (_, terms), slope = jax.value_and_grad(_terms, has_aux=True)(logits, target, weights, valid, config)
        if differentiate:
            gradient = add_rows(gradient, chosen, pull(slope)[0].astype(gradient.dtype))
        return index + 1, jax.tree.map(jnp.add, sums, terms), gradient

    zero = jnp.zeros(masks.shape[0], dtype)
    gradient = jnp.zeros_like(masks) if differentiate else jnp.zeros((masks.shape[0],), masks.dtype)
    count = chunks(slots, CHUNK)
    start = (jnp.zeros((), count.dtype), Terms(zero, zero, zero), gradient)
    _, sums, gradient = jax.lax.while_loop(lambda state: state[0] < count, step, start)
    return sums, gradient


def _points(
    points: Array, classes: Array, num_classes: int, config: LossConfig, dtype
) -> tuple[Array, Array, bool]:
    """Return x and y of the points of some classes, (B, G, n) each, and whether they are drawn here."""
    if jnp.issubdtype(points.dtype, jax.dtypes.prng_key):
        return *candidate_points(points, classes, num_classes, config, dtype), True
    given = jnp.take_along_axis(points, classes[..., None, None], axis=1).astype(dtype)
    return given[..., 0], given[..., 1], False


def _terms(
    logits: Array, target: Array, weights: Array, valid: Array, config: LossConfig
) -> tuple[Array, Terms]:
    """Compute both terms of some masks: (B, G, n) -> the sum of the totals, and sums for every image."""
    # inner where: an infinite logit in a slot that is not read must not become a NaN gradient
    logits = jnp.where(valid[..., None], logits, 0.0)
    cross_entropy = jax.nn.softplus(logits) - logits * target
    prediction = jax.nn.sigmoid(logits) * weights
    points = jnp.sum(weights, axis=-1)
    overlap = 2 * jnp.sum(prediction * target, axis=-1) + 1
    dice = 1 - overlap / (prediction.sum(axis=-1) + jnp.sum(target * weights, axis=-1) + 1)
    mask = jnp.sum(jnp.where(valid, jnp.sum(cross_entropy * weights, axis=-1) / points, 0.0), axis=-1)
    dice = jnp.sum(jnp.where(valid, dice, 0.0), axis=-1)
    total = config.mask_weight * mask + config.dice_weight * dice
    return total.sum(), Terms(total, mask, dice)
