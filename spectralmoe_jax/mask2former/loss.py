"""The Mask2Former loss with deep supervision (arXiv 2112.01527, section 3.3), all inside jit.

  loss = sum over outputs k of  w_class L_class + w_mask L_mask + w_dice L_dice

after queries are matched with the classes of each image. L_class is the cross-entropy over all queries,
L_mask and L_dice compare the matched masks with the labels at sampled points. Outputs are processed one at a
time, so that the point samples of all of them never exist together.

Every image has one target slot for each class. Slots are in an order that starts with the classes that the
image has, and work is done for these alone (`matching.Slots`).

Pixels without a label are examples of no class, as in the released code, or with `config.unlabelled` =
"excluded" take part in nothing: points are drawn where labels are, a point between labelled and unlabelled
pixels counts by the share of the labelled ones, and an image without any label is left out. What the labels
say of classes that they do not show: those are not at the labelled pixels (`matching.Slots`).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.layers import wide_type
from spectralmoe_jax.mask2former.masks import Masks, mask_logits
from spectralmoe_jax.mask2former.matching import (
    Slots,
    chunk_of,
    chunks,
    filled_in,
    mask_weights,
    match_filled,
    present_costs,
    slots_of,
)
from spectralmoe_jax.mask2former.point_sampling import (
    LabelledPixels,
    LabelMap,
    candidate_points,
    label_map,
    labelled_pixels,
    labelled_share,
    onto_labels,
    point_weights,
    read_codes,
    sample_classes,
    sample_own,
)
from spectralmoe_jax.parallel import by_rows
from spectralmoe_jax.resampling import corners

CHUNK = 2  # classes of an image whose masks are compared together: at most one is computed in vain


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
    masks: Masks | Array,
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
      masks: masks of the queries, or their logits (K, B, Q, h, w).
      labels: (B, H, W) integers; values outside 0..C-1, such as 255, are no label. An image without a label
        teaches its queries "no object" and nothing else, or nothing at all if unlabelled pixels are excluded.
      config: weights, with those of classes as numbers, numbers of points, and the meaning of unlabelled
        pixels.
      key: draws the points that are not given.
      match_points: (K, B, P, 2), points (x, y) in [0, 1] at which masks are compared for matching.
      loss_points: (K, B, C, P, 2), points of the mask terms, those of class c in slot c; slots of classes
        that are not matched are not read.

    Returns:
      The loss, computed in at least float32.

    Raises:
      ValueError: points are neither given nor to be drawn with `key`; or weights of classes are yet to be
        balanced.
    """
    if key is None and (match_points is None or loss_points is None):
        raise ValueError("mask2former_loss needs a key, or both match_points and loss_points")
    dtype = wide_type(jax.tree.leaves(masks)[0].dtype)
    class_logits, num_classes = class_logits.astype(dtype), class_logits.shape[-1] - 1
    truth = label_map(labels, num_classes)
    pixels = labelled_pixels(labels, num_classes) if config.excludes_unlabelled else None
    layers, batch, queries, _ = class_logits.shape
    slots = slots_of(truth, pixels, queries)
    of_masks = mask_weights(slots, config, dtype)
    # 1. points; without a key all are given, and nothing is drawn from the one made here
    match_key, draw_key = jax.random.split(jax.random.key(0) if key is None else key)
    if match_points is None:
        match_points = jax.random.uniform(match_key, (layers, batch, config.num_points, 2), dtype)
        if pixels is not None:
            x, y = jnp.moveaxis(match_points, -1, 0).swapaxes(1, 2)  # (B, K, P) each
            match_points = jnp.stack(by_rows(onto_labels, x, y, pixels), axis=-1).swapaxes(0, 1)
    if loss_points is None:
        draw_keys = jax.random.split(draw_key, layers)  # of each output, then of each image
        loss_points = jax.vmap(lambda key: jax.random.split(key, batch))(draw_keys)
    # 2. matching: query and matched (K, B, C), in the order of slots; assignment (K, B, Q)
    query, matched, bad_costs = _match_layers(class_logits, masks, truth, slots, match_points, config)
    assignment = _targets_of_queries(query, matched & slots.is_present, slots.classes, queries)
    unseen = None
    if pixels is not None:
        unseen = _targets_of_queries(query, matched & ~slots.is_present, slots.classes, queries) > 0
    size, given = Size(truth.size, config), Pixels(truth.codes, pixels, of_masks)
    # 3. the masks that the terms compare: of the slots alone, where these are fewer than the queries
    if isinstance(masks, Masks) and num_classes < queries:
        compared = masks.of_queries(query)  # (K, B, C, h, w)
        query = jnp.broadcast_to(jnp.arange(num_classes), query.shape)
    else:
        compared = masks.logits() if isinstance(masks, Masks) else masks  # (K, B, Q, h, w)

    # 4. terms of one output
    def one_layer(layer: tuple[Array, ...]) -> tuple[Array, Array]:
        """Compute the weighted total and the three weighted terms of one decoder output."""
        logits, compared, assigned, unseen, query, matched, points = layer
        sums = mask_terms(size, compared, query, matched, slots, given, points)
        total = jnp.sum(jnp.where(matched, of_masks, 0))  # the number of masks, if each weighs 1
        count = jnp.where(total > 0, total, 1)
        classes = config.class_weight * _class_term(logits, assigned, unseen, slots, config)
        mask, dice = config.mask_weight * sums.mask.sum(), config.dice_weight * sums.dice.sum()
        return classes + sums.total.sum() / count, jnp.stack([classes, mask / count, dice / count])

    # 5. all outputs, one at a time
    totals, values = jax.lax.map(
        one_layer, (class_logits, compared, assignment, unseen, query, matched, loss_points)
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
    class_logits: Array,
    masks: Masks | Array,
    truth: LabelMap,
    slots: Slots,
    points: Array,
    config: LossConfig,
) -> tuple[Array, Array, Array]:
    """Match every output and image.

    Costs are computed one output at a time; the matching, which is many small steps, for all at once.

    Returns:
      The query of each slot (K, B, C), whether it is matched (K, B, C), and the number of costs that are not
      finite.
    """

    def layer_costs(layer: tuple[Array, ...]) -> Array:
        """Compute the matching costs of one decoder output: (B, C, Q)."""
        logits, of_output, points = layer
        if features is not None:
            of_output = mask_logits(of_output, features)
        operands = (jax.nn.softmax(logits, axis=-1), of_output, points, truth.codes, slots)
        return by_rows(lambda *operands: present_costs(truth.size, config, *operands), *operands)

    class_logits, masks, points = jax.lax.stop_gradient((class_logits, masks, points))
    of_outputs, features = masks if isinstance(masks, Masks) else (masks, None)
    costs = jax.lax.map(
        layer_costs, (class_logits, of_outputs, points)
    )  # (K, B, C, Q), zero for absent classes
    query, matched = by_rows(match_filled, costs.swapaxes(0, 1), slots.filled)
    query, matched = query.swapaxes(0, 1), matched.swapaxes(0, 1)
    return query, matched, jnp.sum(~jnp.isfinite(costs), dtype=jnp.int32)


def _targets_of_queries(query: Array, matched: Array, classes: Array, queries: int) -> Array:
    """Class + 1 of each query, 0 for none: (K, B, C) -> (K, B, Q)."""
    codes = jnp.where(matched, classes + 1, 0)
    owned = query[..., None] == jnp.arange(queries)  # (K, B, C, Q)
    return jnp.sum(jnp.where(owned, codes[..., None], 0), axis=-2)


def _class_term(
    logits: Array, assigned: Array, unseen: Array | None, slots: Slots, config: LossConfig
) -> Array:
    """L_class: weighted cross-entropy over all queries (B, Q, C + 1), divided by the sum of weights.

    A query weighs as much as its class, one without a target `no_object_weight`. Where unlabelled pixels are
    excluded, that of a class without a label weighs the less the less is labelled, and nothing is known of
    the queries of an image without any label.

    Args:
      logits: class logits.
      assigned: class + 1 of each query, (B, Q), 0 for none.
      unseen: whether it is that of a class without a label, (B, Q); None where unlabelled ones are negative.
      slots: the classes of the slots.
      config: weights of classes and of no object.
    """
    num_classes, of_classes = logits.shape[-1] - 1, config.weight_of_each_class
    target = jnp.where(assigned > 0, assigned - 1, num_classes)
    if of_classes is None:
        weight = jnp.where(assigned > 0, 1.0, config.no_object_weight).astype(logits.dtype)
    else:
        weight = jnp.asarray([*of_classes, config.no_object_weight], logits.dtype)[target]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), target[..., None], axis=-1)[..., 0]
    if unseen is None or slots.unlabelled is None:
        return -jnp.sum(weight * chosen) / jnp.sum(weight)
    weight = jnp.where(unseen, weight * (1 - slots.unlabelled[:, None]).astype(logits.dtype), weight)
    weight = jnp.where(slots.present[:, None] > 0, weight, 0)
    total = jnp.sum(weight)
    return -jnp.sum(weight * chosen) / jnp.where(total > 0, total, 1)


# The mask and dice terms. A loop walks the classes that are present, a few at a time, as many of them as the
# image with the most has. Reverse-mode differentiation cannot follow a loop of unknown length, so the
# gradient is computed along with the terms.


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


class Pixels(NamedTuple):
    """What the labels tell the walk.

    Attributes:
      codes: label codes, `LabelMap.codes`.
      labelled: where to draw points; None for everywhere.
      weights: (B, C), of the mask of every slot.
    """

    codes: Array
    labelled: LabelledPixels | None
    weights: Array


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
    size: Size, masks: Array, query: Array, matched: Array, slots: Slots, pixels: Pixels, points: Array
) -> Terms:
    """Compare the matched masks of one decoder output with the labels, at sampled points.

    Args:
      size: sizes and settings.
      masks: mask logits (B, Q, h, w), of the queries or of others that `query` counts.
      query: (B, C), the query of every slot.
      matched: (B, C) bool, whether the slot has one.
      slots: the classes of the slots.
      pixels: the labels.
      points: (B, C, P, 2), points of every class, in the order of classes; or (B,) random keys to draw them.
    """
    operands = (masks, query, matched, slots, pixels, points)
    return by_rows(lambda *operands: _walk(size, *operands, differentiate=False)[0], *operands)


def _forward(size: Size, *operands) -> tuple[Terms, Array]:
    return by_rows(lambda *operands: _walk(size, *operands, differentiate=True), *operands)


def _backward(size: Size, gradient: Array, cotangent: Terms) -> tuple:
    scaled = gradient * cotangent.total[:, None, None, None].astype(gradient.dtype)
    return scaled, None, None, None, None, None


mask_terms.defvjp(_forward, _backward)


def _walk(
    size: Size, masks: Array, query: Array, matched: Array, slots: Slots, pixels: Pixels, points: Array,
    *, differentiate: bool,
) -> tuple[Terms, Array]:  # fmt: skip
    """Sum the terms over all chunks; with `differentiate` also their gradient (B, Q, h, w), else zero."""
    config, dtype = size.config, wide_type(masks.dtype)
    num_classes = slots.classes.shape[1]
    add_rows = jax.vmap(lambda gradient, query, part: gradient.at[query].add(part))

    def step(state: tuple[Array, Terms, Array]) -> tuple[Array, Terms, Array]:
        """Add the terms of one chunk of classes: loop body."""
        index, sums, gradient = state
        chosen, classes = (chunk_of(x, index, CHUNK) for x in (query, slots.classes))  # (B, G)
        valid = chunk_of(matched, index, CHUNK) & filled_in(slots, index, CHUNK)
        # 1. points and the logits there
        x, y, drawn = _points(points, classes, num_classes, config, dtype, pixels.labelled)  # (B, G, n)
        where = corners(x, y, *masks.shape[2:])
        read = jnp.take_along_axis(masks, chosen[..., None, None], axis=1).astype(dtype)  # (B, G, h, w)
        logits, pull = jax.vjp(lambda read: sample_own(read, where), read)
        weights = point_weights(logits, config) if drawn else jnp.ones_like(logits)
        # 2. labels at the points
        where = corners(x, y, *size.labels)
        codes = jax.vmap(read_codes)(pixels.codes, where)
        target = sample_classes(codes, where, classes)
        if config.excludes_unlabelled:
            share = labelled_share(codes, where, num_classes)
            target, weights = target / jnp.maximum(share, jnp.finfo(dtype).tiny), weights * share
        # 3. terms, and their gradient at the points and in the masks
        factor = chunk_of(pixels.weights, index, CHUNK)  # (B, G)
        given = (logits, target, weights, valid, factor, config)
        (_, terms), slope = jax.value_and_grad(_terms, has_aux=True)(*given)
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
    points: Array, classes: Array, num_classes: int, config: LossConfig, dtype, pixels: LabelledPixels | None
) -> tuple[Array, Array, bool]:
    """Return x and y of the points of some classes, (B, G, n) each, and whether they are drawn here."""
    if jnp.issubdtype(points.dtype, jax.dtypes.prng_key):
        return *candidate_points(points, classes, num_classes, config, dtype, pixels), True
    given = jnp.take_along_axis(points, classes[..., None, None], axis=1).astype(dtype)
    return given[..., 0], given[..., 1], False


def _terms(
    logits: Array, target: Array, weights: Array, valid: Array, factor: Array, config: LossConfig
) -> tuple[Array, Terms]:
    """Compute both terms of some masks: (B, G, n) -> the sum of the totals, and sums for every image.

    Args:
      logits: at the points, (B, G, n).
      target: likewise, in [0, 1].
      weights: of the points, likewise.
      valid: (B, G) bool, masks that count.
      factor: weight of each mask, (B, G).
      config: weights of the terms.
    """
    # inner where: an infinite logit in a slot that is not read must not become a NaN gradient
    logits = jnp.where(valid[..., None], logits, 0.0)
    cross_entropy = jax.nn.softplus(logits) - logits * target
    prediction = jax.nn.sigmoid(logits) * weights
    points = jnp.sum(weights, axis=-1)
    points = jnp.where(points > 0, points, 1)  # 0 without any label
    overlap = 2 * jnp.sum(prediction * target, axis=-1) + 1
    dice = 1 - overlap / (prediction.sum(axis=-1) + jnp.sum(target * weights, axis=-1) + 1)
    mask = factor * jnp.sum(cross_entropy * weights, axis=-1) / points
    mask = jnp.sum(jnp.where(valid, mask, 0.0), axis=-1)
    dice = jnp.sum(jnp.where(valid, dice * factor, 0.0), axis=-1)
    total = config.mask_weight * mask + config.dice_weight * dice
    return total.sum(), Terms(total, mask, dice)
