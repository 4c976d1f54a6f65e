"""The Mask2Former loss with deep supervision, from labels to one number, all inside jit.

Layers are walked one at a time and recomputed on the way back, so the point samples of all of them
never exist together.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from spectralmoe_jax.config.schema import LossConfig
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
    """What `mask2former_loss` returns.

    total: scalar, the sum of the terms. terms: name -> scalar, weighted: `loss_cls`, `loss_mask` and
    `loss_dice` of the last layer, `d0.loss_cls` ... of the ones before it, d0 being the prediction
    from the learned queries. assignment: (K, B, Q) int32, class + 1 of each query, 0 for none.
    bad_costs: scalar int32, matching costs that were not finite; anything but 0 means trouble.
    """

    total: Array
    terms: dict[str, Array]
    assignment: Array
    bad_costs: Array


def mask2former_loss(class_logits: Array, mask_logits: Array, labels: Array, *, config: LossConfig,
                     key: Array | None = None, match_points: Array | None = None,
                     loss_points: Array | None = None) -> SegmentationLoss:  # fmt: skip
    """The loss of all K decoder outputs (arXiv 2112.01527, section 3.3).

    Args:
      class_logits: (K, B, Q, C+1), the last class "no object". mask_logits: (K, B, Q, h, w).
      labels: (B, H, W) integers; values outside 0..C-1, such as 255, are ignored. An image without a
        labelled pixel teaches its queries "no object" and nothing else.
      key: draws the points that are not given.
      match_points: (K, B, P, 2), points in [0, 1] (x, y) at which masks are compared for matching.
      loss_points: (K, B, C, P, 2), points of the mask terms, those of class c in slot c; slots of
        classes that are not matched are not read.

    Returns a `SegmentationLoss`, computed in at least float32. Sums and counts run over the whole
    batch: with a batch spread over devices, over the global one.

    Raises ValueError where points are neither given nor to be drawn with `key`.
    """
    if key is None and (match_points is None or loss_points is None):
        raise ValueError("mask2former_loss needs a key, or both match_points and loss_points")
    dtype = jnp.promote_types(jnp.float32, mask_logits.dtype)
    class_logits, num_classes = class_logits.astype(dtype), class_logits.shape[-1] - 1
    truth = label_map(labels, num_classes)
    layers, batch = mask_logits.shape[:2]
    # without a key every point is given, and nothing is drawn from this one
    match_key, draw_key = jax.random.split(jax.random.key(0) if key is None else key)
    if match_points is None:
        match_points = jax.random.uniform(match_key, (layers, batch, config.num_points, 2), dtype)
    draw_keys = jax.random.split(draw_key, layers) if loss_points is None else None
    query, matched, bad_costs = _match_layers(class_logits, mask_logits, truth, match_points, config)
    assignment = _targets_of_queries(query, matched, class_logits.shape[2])

    @jax.checkpoint
    def mask_terms(masks: Array, matched: Array, points: Array) -> tuple[Array, Array]:
        return _mask_terms(masks.astype(dtype), matched, truth, points)

    def one_layer(layer: tuple[Array, ...]) -> Array:
        logits, masks, assigned, query, matched, key, points = layer
        masks = jnp.take_along_axis(masks, query[..., None, None], axis=1)  # (B, C, h, w)
        if points is None:
            points = _draw_points(key, masks.astype(dtype), config)
        mask, dice = mask_terms(masks, matched, points)
        classes = _class_term(logits, assigned, config.no_object_weight)
        return weights * jnp.stack([classes, mask, dice])

    weights = jnp.asarray([config.class_weight, config.mask_weight, config.dice_weight], dtype)
    values = jax.lax.map(
        one_layer, (class_logits, mask_logits, assignment, query, matched, draw_keys, loss_points)
    )  # (K, 3)
    terms = {
        _prefix(layer, layers) + name: values[layer, column]
        for layer in [layers - 1, *range(layers - 1)]
        for column, name in enumerate(("loss_cls", "loss_mask", "loss_dice"))
    }
    return SegmentationLoss(values.sum(), terms, assignment, bad_costs)


def _prefix(layer: int, layers: int) -> str:
    return "" if layer == layers - 1 else f"d{layer}."


def _match_layers(class_logits: Array, mask_logits: Array, truth: LabelMap, points: Array,
                  config: LossConfig) -> tuple[Array, Array, Array]:  # fmt: skip
    """Match every layer and image: query and matched (K, B, C), and the count of costs not finite.

    Costs come layer by layer; the matching, which is many small steps, all at once.
    """
    num_classes = class_logits.shape[-1] - 1

    def image_costs(logits: Array, masks: Array, cells: Array, points: Array) -> Array:
        targets = sample_classes(cells, truth.size, points, num_classes)
        sampled = sample_shared(masks.astype(logits.dtype), points)
        return matching_costs(logits, sampled, targets, config)

    def layer_costs(layer: tuple[Array, ...]) -> Array:
        logits, masks, points = layer
        return jax.vmap(image_costs)(logits, masks, truth.cells, points)

    detached = jax.lax.stop_gradient((class_logits, mask_logits, points))
    costs = jax.lax.map(layer_costs, detached)  # (K, B, C, Q)
    query, matched = by_rows(_match_all, costs.swapaxes(0, 1), truth.present)
    query, matched = query.swapaxes(0, 1), matched.swapaxes(0, 1)
    bad = ~jnp.isfinite(costs) & truth.present[None, :, :, None]
    return query, matched, bad.sum(dtype=jnp.int32)


def _match_all(costs: Array, present: Array) -> tuple[Array, Array]:
    """Costs (B, K, C, Q) and the classes present (B, C) -> query and matched (B, K, C)."""
    return jax.vmap(jax.vmap(match, in_axes=(0, None)))(costs, present)


def _targets_of_queries(query: Array, matched: Array, queries: int) -> Array:
    """(K, B, C) -> (K, B, Q): class + 1 of each query, 0 for none."""
    codes = jnp.where(matched, jnp.arange(1, query.shape[-1] + 1, dtype=jnp.int32), 0)
    owned = query[..., None] == jnp.arange(queries)  # (K, B, C, Q)
    return jnp.sum(jnp.where(owned, codes[..., None], 0), axis=-2)


def _draw_points(key: Array, masks: Array, config: LossConfig) -> Array:
    """Loss points of every mask (B, C, h, w) -> (B, C, P, 2)."""
    keys = jax.random.split(key, masks.shape[0])
    draw = jax.vmap(lambda key, masks: uncertain_points(key, masks, config))
    return by_rows(draw, keys, jax.lax.stop_gradient(masks))


def _class_term(logits: Array, assigned: Array, no_object_weight: float) -> Array:
    """Weighted cross-entropy over all queries, divided by the sum of weights."""
    num_classes = logits.shape[-1] - 1
    target = jnp.where(assigned > 0, assigned - 1, num_classes)
    weight = jnp.where(assigned > 0, 1.0, no_object_weight).astype(logits.dtype)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), target[..., None], axis=-1)[..., 0]
    return -jnp.sum(weight * chosen) / jnp.sum(weight)


def _mask_terms(masks: Array, matched: Array, truth: LabelMap, points: Array) -> tuple[Array, Array]:
    """Cross-entropy and dice of the matched masks (B, C, h, w) at points (B, C, P, 2)."""
    logits = jax.vmap(sample_own)(masks, points)  # (B, C, P)
    target = jax.vmap(lambda cells, points: sample_own_class(cells, truth.size, points))(truth.cells, points)
    target = jax.lax.stop_gradient(target)
    # inner where: a slot nobody reads must not turn an infinite logit into a NaN gradient
    logits = jnp.where(matched[..., None], logits, 0.0)
    count = jnp.maximum(matched.sum(), 1).astype(logits.dtype)
    cross_entropy = jax.nn.softplus(logits) - logits * target
    prediction = jax.nn.sigmoid(logits)
    overlap = 2 * jnp.sum(prediction * target, axis=-1) + 1
    dice = 1 - overlap / (prediction.sum(axis=-1) + target.sum(axis=-1) + 1)
    mask = jnp.where(matched, cross_entropy.mean(axis=-1), 0.0).sum() / count
    return mask, jnp.where(matched, dice, 0.0).sum() / count
