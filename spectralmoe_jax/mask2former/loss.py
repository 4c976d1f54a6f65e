"""The Mask2Former loss with deep supervision (arXiv 2112.01527, section 3.3), all inside jit.

  loss = sum over outputs k of  w_class L_class + w_mask L_mask + w_dice L_dice

after queries are matched with the classes of each image. L_class is the cross-entropy over all queries,
L_mask and L_dice compare the matched masks with the labels at sampled points. Outputs are processed one at a
time, so that the point samples of all of them never exist together.

Every image has one target slot for each class. Slots are in an order that starts with the classes that the
image has, and work is done for these alone (`mask_terms.Slots`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.layers import wide_type
from spectralmoe_jax.mask2former.mask_terms import Size, Slots, chunk_of, chunks, mask_terms, slots_of
from spectralmoe_jax.mask2former.matching import mask_samples, match_filled, matching_costs
from spectralmoe_jax.mask2former.point_sampling import (
    LabelMap,
    label_map,
    read_codes,
    sample_classes,
    sample_shared,
)
from spectralmoe_jax.parallel import by_rows
from spectralmoe_jax.resampling import corners

CHUNK = 8  # classes of an image whose costs are computed together


class SegmentationLoss(NamedTuple):
    """The loss with its parts.

    Attributes:
      total: scalar, the sum of the terms; it alone has a gradient.
      terms: weighted scalars by name: `loss_cls`, `loss_mask` and `loss_dice` of the last output,
        `d0.loss_cls` and so on of those before it, d0 being the prediction from the query features alone.
      assignment: (K, B, Q) int32, class + 1 of each query, 0 for none.
      bad_costs: scalar int32, the number of matching costs that are not finite; anything but 0 is a fault.
    """

    total: Array
    terms: dict[str, Array]
    assignment: Array
    bad_costs: Array


def mask2former_loss(
    class_logits: Array,
    mask_logits: Array,
    labels: Array,
    *,
    config: LossConfig,
    key: Array | None = None,
    match_points: Array | None = None,
    loss_points: Array | None = None,
) -> SegmentationLoss:
    """Compute the loss of all K decoder outputs.

    Sums and counts run over the whole batch: with a batch that is sharded over devices, over the global one.

    Args:
      class_logits: (K, B, Q, C + 1), the last class "no object".
      mask_logits: (K, B, Q, h, w).
      labels: (B, H, W) integers; values outside 0..C-1, such as 255, are ignored. An image without a labelled
        pixel teaches its queries "no object" and nothing else.
      config: weights, and numbers of points.
      key: draws the points that are not given.
      match_points: (K, B, P, 2), points (x, y) in [0, 1] at which masks are compared for matching.
      loss_points: (K, B, C, P, 2), points of the mask terms, those of class c in slot c; slots of classes
        that are not matched are not read.

    Returns:
      The loss, computed in at least float32.

    Raises:
      ValueError: points are neither given nor to be drawn with `key`.
    """
    if key is None and (match_points is None or loss_points is None):
        raise ValueError("mask2former_loss needs a key, or both match_points and loss_points")
    dtype = wide_type(mask_logits.dtype)
    class_logits, num_classes = class_logits.astype(dtype), class_logits.shape[-1] - 1
    truth = label_map(labels, num_classes)
    slots = slots_of(truth)
    layers, batch = mask_logits.shape[:2]
    # 1. points; without a key all are given, and nothing is drawn from the one made here
    match_key, draw_key = jax.random.split(jax.random.key(0) if key is None else key)
    if match_points is None:
        match_points = jax.random.uniform(match_key, (layers, batch, config.num_points, 2), dtype)
    if loss_points is None:
        draw_keys = jax.random.split(draw_key, layers)  # of each output, then of each image
        loss_points = jax.vmap(lambda key: jax.random.split(key, batch))(draw_keys)
    # 2. matching: query and matched (K, B, C), in the order of slots; assignment (K, B, Q)
    query, matched, bad_costs = _match_layers(class_logits, mask_logits, truth, slots, match_points, config)
    assignment = _targets_of_queries(query, matched, slots.classes, class_logits.shape[2])
    size = Size(truth.size, config)

    # 3. terms of one output
    def one_layer(layer: tuple[Array, ...]) -> tuple[Array, Array]:
        """Compute the weighted total and the three weighted terms of one decoder output."""
        logits, masks, assigned, query, matched, points = layer
        sums = mask_terms(size, masks, query, matched, slots, truth.codes, points)
        count = jnp.maximum(matched.sum(), 1).astype(dtype)
        classes = config.class_weight * _class_term(logits, assigned, config.no_object_weight)
        mask, dice = config.mask_weight * sums.mask.sum(), config.dice_weight * sums.dice.sum()
        return classes + sums.total.sum() / count, jnp.stack([classes, mask / count, dice / count])

    # 4. all outputs, one at a time
    totals, values = jax.lax.map(
        one_layer, (class_logits, mask_logits, assignment, query, matched, loss_points)
    )  # (K,), (K, 3)
    values = jax.lax.stop_gradient(values)
    # values of the last output come first, as the names do
    terms = dict(zip(term_names(layers), jnp.roll(values, 1, axis=0).ravel(), strict=True))
    return SegmentationLoss(totals.sum(), terms, assignment, bad_costs)


def term_names(outputs: int) -> list[str]:
    """Return the names of the loss terms of a number of decoder outputs, those of the last output first."""
    prefixes = ["", *(f"d{output}." for output in range(outputs - 1))]
    return [prefix + name for prefix in prefixes for name in ("loss_cls", "loss_mask", "loss_dice")]


def _match_layers(
    class_logits: Array, mask_logits: Array, truth: LabelMap, slots: Slots, points: Array, config: LossConfig
) -> tuple[Array, Array, Array]:
    """Match every output and image.

    Costs are computed one output at a time; the matching, which is many small steps, for all at once.

    Returns:
      The query of each slot (K, B, C), whether it is matched (K, B, C), and the number of costs that are not
      finite.
    """

    def layer_costs(layer: tuple[Array, ...]) -> Array:
        """Compute the matching costs of one decoder output: (B, C, Q)."""
        logits, masks, points = layer
        operands = (jax.nn.softmax(logits, axis=-1), masks, points, truth.codes, slots)
        return by_rows(lambda *operands: _costs(truth.size, config, *operands), *operands)

    detached = jax.lax.stop_gradient((class_logits, mask_logits, points))
    costs = jax.lax.map(layer_costs, detached)  # (K, B, C, Q), zero for absent classes
    query, matched = by_rows(match_filled, costs.swapaxes(0, 1), slots.count)
    query, matched = query.swapaxes(0, 1), matched.swapaxes(0, 1)
    return query, matched, jnp.sum(~jnp.isfinite(costs), dtype=jnp.int32)


def _costs(
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
    shared = jax.tree.map(lambda part: part[:, None], (read, where))  # (B, 1, P): for all classes
    batch, num_classes = slots.classes.shape

    def step(index: Array, costs: Array) -> Array:
        """Fill in the costs of one chunk of classes: loop body."""
        classes = chunk_of(slots.classes, index, CHUNK)  # (B, G)
        targets = sample_classes(*shared, classes)  # (B, G, P)
        chosen = jnp.take_along_axis(probability, classes[:, None, :], axis=2).swapaxes(1, 2)  # (B, G, Q)
        part = jax.vmap(lambda *x: matching_costs(*x, config))(chosen, samples, targets)
        filled = index * CHUNK + jnp.arange(CHUNK) < slots.count[:, None]  # (B, G)
        part = jnp.where(filled[..., None], part, 0.0)
        return jax.lax.dynamic_update_slice_in_dim(costs, part, index * CHUNK, axis=1)

    whole = -(-num_classes // CHUNK) * CHUNK
    costs = jnp.zeros((batch, whole, probability.shape[1]), probability.dtype)
    return jax.lax.fori_loop(0, chunks(slots, CHUNK), step, costs)[:, :num_classes]


def _targets_of_queries(query: Array, matched: Array, classes: Array, queries: int) -> Array:
    """Class + 1 of each query, 0 for none: (K, B, C) -> (K, B, Q)."""
    codes = jnp.where(matched, classes + 1, 0)
    owned = query[..., None] == jnp.arange(queries)  # (K, B, C, Q)
    return jnp.sum(jnp.where(owned, codes[..., None], 0), axis=-2)


def _class_term(logits: Array, assigned: Array, no_object_weight: float) -> Array:
    """L_class: weighted cross-entropy over all queries (B, Q, C + 1), divided by the sum of weights."""
    num_classes = logits.shape[-1] - 1
    target = jnp.where(assigned > 0, assigned - 1, num_classes)
    weight = jnp.where(assigned > 0, 1.0, no_object_weight).astype(logits.dtype)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), target[..., None], axis=-1)[..., 0]
    return -jnp.sum(weight * chosen) / jnp.sum(weight)
