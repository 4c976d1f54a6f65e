"""The Mask2Former loss with deep supervision (arXiv 2112.01527, section 3.3), all inside jit.

  loss = sum over outputs k of  w_class L_class + w_mask L_mask + w_dice L_dice

after queries are matched with the classes of each image. L_class is the cross-entropy over all queries,
L_mask and L_dice compare the matched masks with the labels at sampled points. Outputs are processed one at a
time and rematerialised in the backward pass, so that the point samples of all of them never exist together.

Every image has one target slot for each class, slot c for class c, filled or not.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.layers import wide_type
from spectralmoe_jax.mask2former.matching import match, matching_costs
from spectralmoe_jax.mask2former.point_sampling import (
    LabelMap,
    label_map,
    sample_classes,
    sample_own,
    sample_own_class,
    sample_shared,
    uncertain_points,
)
from spectralmoe_jax.parallel import by_rows


class SegmentationLoss(NamedTuple):
    """The loss with its parts.

    Attributes:
      total: scalar, the sum of the terms.
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
    layers, batch = mask_logits.shape[:2]
    # 1. points; without a key all are given, and nothing is drawn from the one made here
    match_key, draw_key = jax.random.split(jax.random.key(0) if key is None else key)
    if match_points is None:
        match_points = jax.random.uniform(match_key, (layers, batch, config.num_points, 2), dtype)
    draw_keys = jax.random.split(draw_key, layers) if loss_points is None else None
    # 2. matching: query and matched (K, B, C), assignment (K, B, Q)
    query, matched, bad_costs = _match_layers(class_logits, mask_logits, truth, match_points, config)
    assignment = _targets_of_queries(query, matched, class_logits.shape[2])

    # 3. terms of one output
    @jax.checkpoint
    def mask_terms(masks: Array, matched: Array, points: Array) -> tuple[Array, Array]:
        """Compute the mask and dice terms of one image."""
        return _mask_terms(masks.astype(dtype), matched, truth, points)

    def one_layer(layer: tuple[Array, ...]) -> Array:
        """Compute the three terms of one decoder output."""
        logits, masks, assigned, query, matched, key, points = layer
        masks = jnp.take_along_axis(masks, query[..., None, None], axis=1)  # (B, C, h, w)
        if points is None:
            points = _draw_points(key, masks.astype(dtype), config)
        mask, dice = mask_terms(masks, matched, points)
        classes = _class_term(logits, assigned, config.no_object_weight)
        return weights * jnp.stack([classes, mask, dice])

    # 4. all outputs, one at a time
    weights = jnp.asarray([config.class_weight, config.mask_weight, config.dice_weight], dtype)
    values = jax.lax.map(
        one_layer, (class_logits, mask_logits, assignment, query, matched, draw_keys, loss_points)
    )  # (K, 3)
    # values of the last output come first, as the names do
    terms = dict(zip(term_names(layers), jnp.roll(values, 1, axis=0).ravel(), strict=True))
    return SegmentationLoss(values.sum(), terms, assignment, bad_costs)


def term_names(outputs: int) -> list[str]:
    """Return the names of the loss terms of a number of decoder outputs, those of the last output first."""
    prefixes = ["", *(f"d{output}." for output in range(outputs - 1))]
    return [prefix + name for prefix in prefixes for name in ("loss_cls", "loss_mask", "loss_dice")]


def _match_layers(
    class_logits: Array, mask_logits: Array, truth: LabelMap, points: Array, config: LossConfig
) -> tuple[Array, Array, Array]:
    """Match every output and image.

    Costs are computed one output at a time; the matching, which is many small steps, for all at once.

    Returns:
      The query of each class (K, B, C), whether it is matched (K, B, C), and the number of costs that are not
      finite.
    """
    num_classes = class_logits.shape[-1] - 1

    def image_costs(logits: Array, masks: Array, cells: Array, points: Array) -> Array:
        """Compute the matching costs of one image: (Q, C)."""
        targets = sample_classes(cells, truth.size, points, num_classes)
        sampled = sample_shared(masks.astype(logits.dtype), points)
        return matching_costs(logits, sampled, targets, config)

    def layer_costs(layer: tuple[Array, ...]) -> Array:
        """Compute the matching costs of one decoder output: (B, Q, C)."""
        logits, masks, points = layer
        return jax.vmap(image_costs)(logits, masks, truth.cells, points)

    detached = jax.lax.stop_gradient((class_logits, mask_logits, points))
    costs = jax.lax.map(layer_costs, detached)  # (K, B, C, Q)
    query, matched = by_rows(_match_all, costs.swapaxes(0, 1), truth.present)
    query, matched = query.swapaxes(0, 1), matched.swapaxes(0, 1)
    bad = ~jnp.isfinite(costs) & truth.present[None, :, :, None]
    return query, matched, bad.sum(dtype=jnp.int32)


def _match_all(costs: Array, present: Array) -> tuple[Array, Array]:
    """Match all: costs (B, K, C, Q) and classes present (B, C) -> query and matched (B, K, C)."""
    return jax.vmap(jax.vmap(match, in_axes=(0, None)))(costs, present)


def _targets_of_queries(query: Array, matched: Array, queries: int) -> Array:
    """Class + 1 of each query, 0 for none: (K, B, C) -> (K, B, Q)."""
    codes = jnp.where(matched, jnp.arange(1, query.shape[-1] + 1, dtype=jnp.int32), 0)
    owned = query[..., None] == jnp.arange(queries)  # (K, B, C, Q)
    return jnp.sum(jnp.where(owned, codes[..., None], 0), axis=-2)


def _draw_points(key: Array, masks: Array, config: LossConfig) -> Array:
    """Draw the loss points of every mask (B, C, h, w): (B, C, P, 2)."""
    keys = jax.random.split(key, masks.shape[0])
    draw = jax.vmap(lambda key, masks: uncertain_points(key, masks, config))
    return by_rows(draw, keys, jax.lax.stop_gradient(masks))


def _class_term(logits: Array, assigned: Array, no_object_weight: float) -> Array:
    """L_class: weighted cross-entropy over all queries (B, Q, C + 1), divided by the sum of weights."""
    num_classes = logits.shape[-1] - 1
    target = jnp.where(assigned > 0, assigned - 1, num_classes)
    weight = jnp.where(assigned > 0, 1.0, no_object_weight).astype(logits.dtype)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), target[..., None], axis=-1)[..., 0]
    return -jnp.sum(weight * chosen) / jnp.sum(weight)


def _mask_terms(masks: Array, matched: Array, truth: LabelMap, points: Array) -> tuple[Array, Array]:
    """L_mask and L_dice of the matched masks (B, C, h, w) at points (B, C, P, 2)."""
    logits = jax.vmap(sample_own)(masks, points)  # (B, C, P)
    target = jax.vmap(lambda cells, points: sample_own_class(cells, truth.size, points))(truth.cells, points)
    target = jax.lax.stop_gradient(target)
    # inner where: an infinite logit in a slot that is not read must not become a NaN gradient
    logits = jnp.where(matched[..., None], logits, 0.0)
    count = jnp.maximum(matched.sum(), 1).astype(logits.dtype)
    cross_entropy = jax.nn.softplus(logits) - logits * target
    prediction = jax.nn.sigmoid(logits)
    overlap = 2 * jnp.sum(prediction * target, axis=-1) + 1
    dice = 1 - overlap / (prediction.sum(axis=-1) + target.sum(axis=-1) + 1)
    mask = jnp.where(matched, cross_entropy.mean(axis=-1), 0.0).sum() / count
    return mask, jnp.where(matched, dice, 0.0).sum() / count
