"""Unlabelled pixels that are excluded, and weights of classes, against plain NumPy and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.mask2former.loss import mask2former_loss
from spectralmoe_jax.mask2former.point_sampling import candidate_points, labelled_pixels, onto_labels

LAYERS, BATCH, QUERIES, CLASSES, SIDE, POINTS = 2, 3, 7, 5, 16, 48
EXCLUDED = LossConfig(num_points=POINTS, unlabelled="excluded")
WEIGHTED = LossConfig(num_points=POINTS, unlabelled="excluded", class_weights=(0.5, 2.0, 1.0, 3.0, 0.1))


def random_logits(seed=0, side=SIDE):
    rng = np.random.default_rng(seed)
    class_logits = rng.standard_normal((LAYERS, BATCH, QUERIES, CLASSES + 1)).astype(np.float32)
    return class_logits, 3 * rng.standard_normal((LAYERS, BATCH, QUERIES, side, side)).astype(np.float32)


def random_points(seed=1):
    rng = np.random.default_rng(seed)
    match_points = rng.uniform(size=(LAYERS, BATCH, POINTS, 2)).astype(np.float32)
    return match_points, rng.uniform(size=(LAYERS, BATCH, CLASSES, POINTS, 2)).astype(np.float32)


def sparse_labels():
    """One image with two classes and few labels, one with all classes and half, one full of one class."""
    rng = np.random.default_rng(2)
    labels = np.full((BATCH, SIDE, SIDE), 255, np.uint8)
    labels[0, 2:7, 3:9], labels[0, 10:12, 1:4] = 3, 1
    labels[1] = np.where(rng.random((SIDE, SIDE)) < 0.5, rng.integers(0, CLASSES, (SIDE, SIDE)), 255)
    labels[2] = 4
    return labels


@functools.cache
def compiled(config):
    def objective(logits, labels, match_points, loss_points, key):
        points = {"match_points": match_points, "loss_points": loss_points}
        loss = mask2former_loss(*logits, labels, config=config, key=key, **points)
        return loss.total, loss

    return jax.jit(jax.value_and_grad(objective, has_aux=True))


def at_points(config, logits, labels, points):
    return compiled(config)(logits, labels, *points, None)


def at_drawn_points(config, logits, labels, seed=0):
    return compiled(config)(logits, labels, None, None, jax.random.key(seed))


def bilinear(image, points, outside=0.0):
    """image (h, w) at points (P, 2) in float64, one point at a time."""
    padded = np.pad(image.astype(np.float64), 1, constant_values=outside)
    found = []
    for x, y in points.astype(np.float64) * image.shape[::-1] + 0.5:  # in the padded image
        left, top = int(np.floor(x)), int(np.floor(y))
        right, down = x - left, y - top
        rows = padded[top : top + 2, left : left + 2]
        found.append(rows[0] @ [1 - right, right] * (1 - down) + rows[1] @ [1 - right, right] * down)
    return np.array(found)


def costs_of(class_logits, mask_logits, points, label, config):
    """Matching costs (C, Q) of one image, each class with its weight: 1, or the unlabelled share."""
    known = label < CLASSES
    logits = np.stack([bilinear(mask, points) for mask in mask_logits])
    sigmoid, softplus = 1 / (1 + np.exp(-logits)), np.logaddexp(0, logits)
    weight = bilinear(known, points, outside=1.0)
    probability = scipy.special.softmax(class_logits.astype(float), axis=-1)
    costs = np.zeros((CLASSES, QUERIES))
    for c in range(CLASSES):
        target = bilinear(label == c, points)
        entropy = (softplus @ weight - logits @ target) / weight.sum()
        dice = 1 - (2 * sigmoid @ target + 1) / (sigmoid @ weight + target.sum() + 1)
        factor = 1 if (label == c).any() else 1 - known.mean()
        costs[c] = factor * (-2 * probability[:, c] + 5 * entropy + 5 * dice)
        costs[c, c] -= 100 * (1 - known.mean())
    return costs


def mask_terms_of(mask, points, label, c):
    """Cross-entropy and dice loss of one mask."""
    logit, target = bilinear(mask, points), bilinear(label == c, points)
    weight, sigmoid = bilinear(label < CLASSES, points, outside=1.0), 1 / (1 + np.exp(-logit))
    entropy = (np.logaddexp(0, logit) @ weight - logit @ target) / weight.sum()
    return np.array([entropy, 1 - (2 * sigmoid @ target + 1) / (sigmoid @ weight + target.sum() + 1)])


def reference(class_logits, mask_logits, labels, match_points, loss_points, config):
    """The weighted terms of every output, (K, 3), and the assignment, from the formulas."""
    of_classes = config.class_weights or (1.0,) * CLASSES
    terms, assigned = [], np.zeros((LAYERS, BATCH, QUERIES), int)
    for k in range(LAYERS):
        numerators, divisors = np.zeros(3), np.zeros(3)
        for b, label in enumerate(labels):
            labelled = (label < CLASSES).mean()
            if not labelled:
                continue
            # 1. a query for each class that is there, or may be there
            seen = [c for c in range(CLASSES) if (label == c).any()]
            sought = np.array(seen if labelled == 1 else range(CLASSES))
            costs = costs_of(class_logits[k, b], mask_logits[k, b], match_points[k, b], label, config)[sought]
            rows, queries = scipy.optimize.linear_sum_assignment(costs)
            class_of = dict(zip(queries.tolist(), sought[rows].tolist(), strict=True))
            # 2. classes
            log_probability = scipy.special.log_softmax(class_logits[k, b].astype(float), axis=-1)
            for q in range(QUERIES):
                c = class_of.get(q)
                is_seen = c in seen
                factor = of_classes[c] if is_seen else 0.1 if c is None else 0.1 * labelled
                numerators[0] -= 2 * factor * log_probability[q, c if is_seen else CLASSES]
                divisors[0] += factor
                assigned[k, b, q] = c + 1 if is_seen else 0
            # 3. masks
            for q, c in class_of.items():
                factor = of_classes[c] * (1 if c in seen else 1 - labelled)
                own = mask_terms_of(mask_logits[k, b, q], loss_points[k, b, c], label, c)
                numerators[1:] += 5 * factor * own
                divisors[1:] += factor
        terms.append(numerators / divisors)
    return np.array(terms), assigned


@pytest.mark.parametrize("config", [EXCLUDED, WEIGHTED], ids=["plain", "weighted"])
def test_terms_and_assignment_follow_the_formulas(config):
    logits, points, labels = random_logits(side=8), random_points(), sparse_labels()
    (total, loss), _ = at_points(config, logits, labels, points)
    terms, assigned = reference(*logits, labels, *points, config)
    np.testing.assert_array_equal(loss.assignment, assigned)
    assert [set(row[row > 0]) for row in assigned[0]] == [{2, 4}, {1, 2, 3, 4, 5}, {5}]
    names = ("loss_cls", "loss_mask", "loss_dice")
    found = [[loss.terms[prefix + name] for name in names] for prefix in ("d0.", "")]
    np.testing.assert_allclose(found, terms, rtol=1e-5)
    np.testing.assert_allclose(total, terms.sum(), rtol=1e-5)


def test_both_settings_are_the_same_where_all_is_labelled():
    logits = random_logits(side=8)
    labels = np.random.default_rng(3).integers(0, 2, (BATCH, SIDE, SIDE)).astype(np.uint8)
    negative = LossConfig(num_points=POINTS)
    for run in (at_drawn_points, functools.partial(at_points, points=random_points())):
        (total, loss), gradient = run(EXCLUDED, logits, labels)
        (other, same), wanted = run(negative, logits, labels)
        np.testing.assert_array_equal(loss.assignment, same.assignment)
        np.testing.assert_allclose(total, other, rtol=1e-6)
        for got, want in zip(gradient, wanted, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("drawn", [False, True])
def test_logits_of_unlabelled_pixels_do_not_matter(drawn):
    """At the centres of pixels, none of them; at points within pixels, those that no labelled one touches."""
    labels = sparse_labels()
    centres = (np.random.default_rng(4).integers(0, SIDE, (LAYERS, BATCH, CLASSES, POINTS, 2)) + 0.5) / SIDE
    points = centres[:, :, 0].astype(np.float32), centres.astype(np.float32)
    class_logits, masks = random_logits()
    near = labels < CLASSES
    if drawn:
        grown = [np.roll(near, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        near = np.any(grown, axis=0)
    moved = np.where(near[None, :, None], masks, np.float32(7) - 5 * masks)
    assert (moved != masks).any(axis=(0, 2, 3, 4)).tolist() == [True, not drawn, False]
    run = at_drawn_points if drawn else functools.partial(at_points, points=points)
    (total, loss), (_, gradient) = run(EXCLUDED, (class_logits, masks), labels)
    (other, same), (_, again) = run(EXCLUDED, (class_logits, moved), labels)
    assert total == other
    np.testing.assert_array_equal(loss.assignment, same.assignment)
    np.testing.assert_array_equal(gradient, again)
    assert not (np.asarray(gradient) * ~near[None, :, None]).any()
    assert np.asarray(gradient).any(axis=(0, 2, 3, 4)).all()


def test_an_image_without_labels_counts_for_nothing():
    logits, points, labels = random_logits(side=8), random_points(), sparse_labels()
    labels[1] = 255
    (total, loss), gradient = at_points(EXCLUDED, logits, labels, points)
    others = jax.tree.map(lambda x: x[:, [0, 2]], (*logits, *points))
    (alone, _), _ = at_points(EXCLUDED, others[:2], labels[[0, 2]], others[2:])
    np.testing.assert_allclose(total, alone, rtol=1e-6)
    assert not np.asarray(loss.assignment[:, 1]).any()
    assert not any(np.asarray(part)[:, 1].any() for part in gradient)
    # nor does a batch without any
    for run in (at_drawn_points, functools.partial(at_points, points=points)):
        (total, loss), gradient = run(EXCLUDED, logits, np.full_like(labels, 255))
        assert total == 0
        assert loss.bad_costs == 0
        assert not any(np.asarray(part).any() for part in gradient)


def test_bfloat16_logits_are_computed_in_float32():
    narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), random_logits(side=8))
    (total, _), gradient = at_drawn_points(EXCLUDED, narrow, sparse_labels())
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, at_drawn_points(EXCLUDED, wide, sparse_labels())[0][0], rtol=1e-6)
    assert all(part.dtype == jnp.bfloat16 and np.isfinite(part).all() for part in gradient)


def test_points_are_uniform_over_the_labelled_pixels():
    """Candidates of all slots, in rows with 0 to 20 labels; each quarter of a pixel alike."""
    height, width, slots = 12, 20, 3
    config = LossConfig(num_points=4000, unlabelled="excluded")
    labels = np.where(np.random.default_rng(5).random((2, height, width)) < 0.3, 1, 255)
    labels[0, 4], labels[0, 5] = 255, 0
    pixels = labelled_pixels(jnp.asarray(labels), 2)
    keys = jax.random.split(jax.random.key(6), 2)
    x, y = candidate_points(keys, jnp.tile(jnp.arange(slots), (2, 1)), slots, config, jnp.float32, pixels)
    for image in range(2):
        column = np.floor(np.asarray(x[image]) * 2 * width).astype(int)
        row = np.floor(np.asarray(y[image]) * 2 * height).astype(int)
        counts = np.zeros((2 * height, 2 * width))
        np.add.at(counts, (row, column), 1)
        labelled = (labels[image] < 2).repeat(2, 0).repeat(2, 1)
        assert counts[~labelled].sum() == 0
        assert scipy.stats.chisquare(counts[labelled]).pvalue > 1e-3


def test_points_stay_where_all_pixels_are_labelled():
    labels = np.zeros((2, 6, 9), np.uint8)
    labels[1] = 255
    x, y = np.random.default_rng(7).uniform(size=(2, 2, 5, 30)).astype(np.float32)
    right, down = map(np.asarray, onto_labels(x, y, labelled_pixels(labels, 1)))
    np.testing.assert_array_equal(right[0], x[0])
    np.testing.assert_array_equal(down[0], y[0])
    assert ((right[1] >= 0) & (right[1] <= 1 / 9) & (down[1] >= 0) & (down[1] <= 1 / 6)).all()


def test_weights_of_one_are_no_weights():
    logits, points, labels = random_logits(side=8), random_points(), sparse_labels()
    ones = LossConfig(num_points=POINTS, unlabelled="excluded", class_weights=(1.0,) * CLASSES)
    (total, _), gradient = at_points(ones, logits, labels, points)
    (other, _), wanted = at_points(EXCLUDED, logits, labels, points)
    np.testing.assert_allclose(total, other, rtol=1e-6)
    np.testing.assert_allclose(gradient[1], wanted[1], atol=1e-7)


def test_weights_that_are_not_yet_balanced_are_refused():
    with pytest.raises(ValueError, match="balanced"):
        _ = LossConfig(class_weights="balanced").weight_of_each_class


def test_balanced_weights_are_those_of_scikit_learn():
    weights = pytest.importorskip("sklearn.utils.class_weight")
    pixels = [700, 0, 40, 260]
    found = LossConfig(class_weights="balanced").balanced(pixels).class_weights
    labels = np.repeat(np.arange(4), pixels)
    wanted = weights.compute_class_weight("balanced", classes=np.array([0, 2, 3]), y=labels)
    np.testing.assert_allclose(found, [wanted[0], 1, wanted[1], wanted[2]], rtol=1e-12)


@pytest.mark.parametrize("weights", ["equal", (1.0, 0.0), (1.0, float("inf"))])
def test_bad_weights_name_their_key(weights):
    with pytest.raises(UserError, match=r"config\.loss\.class_weights"):
        LossConfig(class_weights=weights)


def test_as_many_weights_as_classes():
    config = load_config("configs/quickstart.py", ["--config.loss.class_weights=1,2,3,4,5,6"])
    assert config.loss.class_weights == (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    with pytest.raises(UserError, match="one number for each of the 6"):
        config.replaced({"loss.class_weights": (1.0, 2.0)})
