"""The whole loss: recorded numbers, and images and settings that they do not cover."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.mask2former.loss import mask2former_loss
from spectralmoe_jax.parity.segmenter_goldens import class_assignment, released_assignment, slot_points
from spectralmoe_jax.resampling import corners, sample, with_border

CONFIG = LossConfig(num_points=32)
LAYERS, BATCH, QUERIES, CLASSES = 2, 2, 6, 3


@pytest.mark.parametrize("name", ["dinov3_laplace_k1", "dofa_laplace_k1"])
def test_recorded_logits_give_the_recorded_losses(goldens, name):
    arrays = np.load(goldens / "released_tiny" / f"{name}.npz")
    sizes = json.loads((goldens / "released_tiny" / f"{name}.json").read_text())["head"]
    recorded = [arrays[f"loss_points_{i}"] for i in range(len(arrays["class_logits"]))]
    points = slot_points(recorded, arrays["assignment"], arrays["label"], sizes["num_classes"])
    config = LossConfig(num_points=sizes["num_points_loss"])
    inputs = (arrays["class_logits"], arrays["mask_logits"], arrays["label"])
    loss = jax.jit(
        lambda c, m, y, p, q: mask2former_loss(c, m, y, config=config, match_points=p, loss_points=q)
    )(*inputs, arrays["assign_points"], points)
    got = released_assignment(loss.assignment, arrays["label"], sizes["num_classes"])
    np.testing.assert_array_equal(got, arrays["assignment"])
    for term, value in loss.terms.items():
        np.testing.assert_allclose(value, arrays[f"loss/{term}"].item(), rtol=1e-6, err_msg=term)
    assert {f"loss/{term}" for term in loss.terms} == {
        key for key in arrays.files if key.startswith("loss/") and key != "loss/loss_lora"
    }


@pytest.fixture(scope="module")
def drawn():
    """Jitted loss and gradients with drawn points, as training runs it."""

    def objective(logits, labels, key):
        loss = mask2former_loss(*logits, labels, config=CONFIG, key=key)
        return loss.total, loss

    return jax.jit(jax.value_and_grad(objective, has_aux=True))


def random_case(dtype=np.float32):
    rng = np.random.default_rng(0)
    class_logits = rng.standard_normal((LAYERS, BATCH, QUERIES, CLASSES + 1)).astype(dtype)
    mask_logits = 3 * rng.standard_normal((LAYERS, BATCH, QUERIES, 8, 8)).astype(dtype)
    return (class_logits, mask_logits), rng.integers(0, CLASSES, (BATCH, 16, 16)).astype(np.uint8)


def test_an_image_without_labels(drawn):
    logits, labels = random_case()
    labels[1] = 255
    (total, loss), (class_gradient, mask_gradient) = drawn(logits, labels, jax.random.key(0))
    assert np.isfinite(total)
    assert (np.asarray(loss.assignment[:, 1]) == 0).all()
    assert (np.sort(np.asarray(loss.assignment[:, 0]))[:, -CLASSES:] == [1, 2, 3]).all()
    assert not np.asarray(mask_gradient[:, 1]).any()
    assert np.asarray(mask_gradient[:, 0]).any()
    # descending makes "no object" likelier, everything else less likely
    assert (np.asarray(class_gradient[:, 1, :, -1]) < 0).all()
    assert (np.asarray(class_gradient[:, 1, :, :-1]) > 0).all()


def test_a_batch_without_any_label(drawn):
    logits, labels = random_case()
    (total, loss), gradients = drawn(logits, np.full_like(labels, 255), jax.random.key(0))
    no_object = jax.nn.log_softmax(logits[0], axis=-1)[..., -1]
    np.testing.assert_allclose(total, -2 * no_object.mean(axis=(1, 2)).sum(), rtol=1e-5)
    assert loss.terms["loss_mask"] == loss.terms["d0.loss_dice"] == 0
    assert all(np.isfinite(g).all() for g in gradients)
    assert not np.asarray(gradients[1]).any()


def test_a_perfect_prediction_has_no_loss():
    labels = np.zeros((BATCH, 16, 16), np.uint8)
    labels[:, :, 5:] = 1
    labels[:, 9:] = 2
    masks = np.stack([np.where(labels == min(q, 3), 60.0, -60.0) for q in range(QUERIES)], axis=1)
    classes = np.stack([np.where(np.arange(CLASSES + 1) == min(q, 3), 60.0, 0.0) for q in range(QUERIES)])
    class_logits = np.broadcast_to(classes, (LAYERS, BATCH, *classes.shape)).astype(np.float32)
    mask_logits = np.broadcast_to(masks, (LAYERS, *masks.shape)).astype(np.float32)
    # at pixel centres, where neither labels nor logits are interpolated
    centres = (np.random.default_rng(0).integers(0, 16, (LAYERS, BATCH, CLASSES, 64, 2)) + 0.5) / 16
    points = {"match_points": centres[:, :, 0].astype(np.float32), "loss_points": centres.astype(np.float32)}
    loss = jax.jit(lambda c, m, y, p: mask2former_loss(c, m, y, config=CONFIG, **p))(
        class_logits, mask_logits, labels, points
    )
    np.testing.assert_array_equal(loss.assignment, np.broadcast_to([1, 2, 3, 0, 0, 0], loss.assignment.shape))
    assert all(abs(value) < 1e-5 for value in loss.terms.values())


def test_points_follow_the_random_key(drawn):
    logits, labels = random_case()
    first, again, other = (drawn(logits, labels, jax.random.key(seed))[0][0] for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("classes", [5, 70])
def test_drawn_points_are_the_least_certain_of_all_draws(classes):
    """Slots of every class are drawn and sorted here; the loss draws for those that are present alone."""
    config = LossConfig(num_points=40)
    rng = np.random.default_rng(1)
    present = np.sort(rng.permutation(classes)[:3])
    class_logits = rng.standard_normal((LAYERS, BATCH, 8, classes + 1)).astype(np.float32)
    mask_logits = 3 * rng.standard_normal((LAYERS, BATCH, 8, 8, 8)).astype(np.float32)
    labels = present[rng.integers(0, 3, (BATCH, 16, 16))].astype(np.uint8)
    labels[1][labels[1] == present[1]] = present[0]  # the second image has two classes
    key = jax.random.key(3)

    def total(masks, **points):
        return mask2former_loss(class_logits, masks, labels, config=config, key=key, **points).total

    match_key, draw_key = jax.random.split(key)
    match_points = jax.random.uniform(match_key, (LAYERS, BATCH, 40, 2))
    loss = mask2former_loss(class_logits, mask_logits, labels, config=config, key=key)
    points = np.zeros((LAYERS, BATCH, classes, 40, 2), np.float32)
    for layer, layer_key in enumerate(jax.random.split(draw_key, LAYERS)):
        for image, image_key in enumerate(jax.random.split(layer_key, BATCH)):
            draw, fill = jax.random.split(image_key)
            candidates = np.asarray(jax.random.uniform(draw, (classes, 120, 2)))
            rest = np.asarray(jax.random.uniform(fill, (classes, 10, 2)))
            for query, code in enumerate(np.asarray(loss.assignment[layer, image])):
                if code:
                    at = candidates[code - 1]
                    mask = mask_logits[layer, image, query, :, :, None]
                    logits = sample(with_border(mask), corners(at[:, 0], at[:, 1], 8, 8))[:, 0]
                    chosen = at[np.argsort(np.abs(logits), kind="stable")[:30]]
                    points[layer, image, code - 1] = np.concatenate([chosen, rest[code - 1]])
    assert (np.sort(np.asarray(loss.assignment[:, 0]))[:, -3:] == present + 1).all()
    run = jax.jit(jax.value_and_grad(total))
    drawn, given = run(mask_logits), run(mask_logits, match_points=match_points, loss_points=points)
    np.testing.assert_allclose(drawn[0], given[0], rtol=1e-6)
    np.testing.assert_allclose(drawn[1], given[1], atol=1e-7)


def test_bfloat16_logits_are_computed_in_float32(drawn):
    logits, labels = random_case()
    logits = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), logits)
    total = jax.jit(lambda c, m, y, k: mask2former_loss(c, m, y, config=CONFIG, key=k).total)(
        *logits, labels, jax.random.key(0)
    )
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), logits)
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, drawn(wide, labels, jax.random.key(0))[0][0], rtol=1e-6)


def test_costs_that_are_not_finite_are_counted(drawn):
    logits, labels = random_case()
    logits[1][0, 1, 2] = np.nan
    (_, loss), _ = drawn(logits, labels, jax.random.key(0))
    assert loss.bad_costs == CLASSES
    assert (np.sort(np.asarray(loss.assignment))[..., -CLASSES:] == [1, 2, 3]).all()


def test_points_or_a_key_are_required():
    logits, labels = random_case()
    with pytest.raises(ValueError, match="key"):
        mask2former_loss(*logits, labels, config=CONFIG)


def test_released_query_order_round_trip():
    labels = np.array([[[0, 2], [2, 255]], [[1, 2], [0, 0]]], np.uint8)
    classes = np.array([[[3, 0, 1], [0, 2, 3]]])
    ranks = released_assignment(classes, labels, CLASSES)
    np.testing.assert_array_equal(ranks, [[[2, 0, 1], [0, 2, 3]]])
    np.testing.assert_array_equal(class_assignment(ranks, labels, CLASSES), classes)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"num_points": 0}, "config.loss.num_points"),
        ({"oversample_ratio": 0.5}, "config.loss.oversample_ratio"),
        ({"importance_sample_ratio": 1.5}, "config.loss.importance_sample_ratio"),
        ({"dice_weight": -1.0}, "config.loss.dice_weight"),
    ],
)
def test_bad_settings_name_their_key(change, key):
    with pytest.raises(UserError, match=key):
        LossConfig(**change)
