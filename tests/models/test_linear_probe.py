"""The fit of a linear head against scikit-learn, and against the condition of a minimum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectralmoe_jax.config.model import LinearHeadConfig
from spectralmoe_jax.evaluation.metrics import patch_classes
from spectralmoe_jax.models.linear_head import labels_to_learn, pixel_cross_entropy
from spectralmoe_jax.models.linear_probe import TOLERANCE, fit_linear

CLASSES, PENALTY = 3, 0.02


def draw(side, seed=0):
    """Features of very different scales and offsets, one of them constant, and labels that follow some."""
    rng = np.random.default_rng(seed)
    plain = rng.normal(size=(2, 6, 6, 5))
    features = (plain * [1e-2, 1, 30, 5, 0] + [0, 3, -100, 0, 7]).astype(np.float32)
    scores = plain @ rng.normal(size=(5, CLASSES)) + rng.gumbel(size=(2, 6, 6, CLASSES))
    labels = scores.argmax(-1).repeat(side // 6, 1).repeat(side // 6, 2).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = 255
    return features, labels


def test_equals_logistic_regression():
    linear_model = pytest.importorskip("sklearn.linear_model")
    special = pytest.importorskip("scipy.special")
    features, labels = draw(side=6)
    fit = fit_linear([(jnp.asarray(features), jnp.asarray(labels))], CLASSES, PENALTY)
    tokens, known = features.reshape(-1, 5).astype(np.float64), labels.ravel() != 255
    standard = (tokens - tokens.mean(0)) / np.where(tokens.std(0) > 0, tokens.std(0), 1)
    reference = linear_model.LogisticRegression(C=1 / (PENALTY * known.sum()), tol=1e-10, max_iter=1000)
    reference.fit(standard[known], labels.ravel()[known])
    logits = tokens @ np.asarray(fit.kernel, np.float64) + np.asarray(fit.bias, np.float64)
    theirs = reference.predict_log_proba(standard)
    np.testing.assert_allclose(special.log_softmax(logits, axis=1), theirs, atol=1e-4)
    chosen = np.take_along_axis(theirs[known], labels.ravel()[known, None].astype(int), axis=1)
    np.testing.assert_allclose(fit.loss, -chosen.mean(), rtol=1e-4)
    assert 1 < int(fit.iterations) < 100


def test_several_batches_reach_the_minimum_of_the_training_loss():
    """The gradient of the loss with resized logits vanishes, by the weights for standardised features."""
    examples = [tuple(map(jnp.asarray, draw(side=24, seed=seed))) for seed in (1, 2)]
    fit = fit_linear(examples, CLASSES, PENALTY)
    tokens = jnp.concatenate([features.reshape(-1, 5) for features, _ in examples])
    mean, deviation = tokens.mean(0), jnp.where(tokens.std(0) > 0, tokens.std(0), 1)

    def objective(weights, bias):
        losses = [pixel_cross_entropy((x - mean) / deviation @ weights + bias, y) for x, y in examples]
        return sum(losses) / 2 + PENALTY / 2 * jnp.sum(weights**2)

    at = fit.kernel * deviation[:, None], fit.bias + mean @ fit.kernel
    for gradient in jax.grad(objective, argnums=(0, 1))(*at):
        assert jnp.abs(gradient).max() < 10 * TOLERANCE
    assert fit.loss < jnp.log(CLASSES)


def test_the_same_bits_again():
    example = tuple(map(jnp.asarray, draw(side=12)))
    first, second = (fit_linear([example], CLASSES, PENALTY) for _ in range(2))
    assert np.asarray(first.kernel).tobytes() == np.asarray(second.kernel).tobytes()


@pytest.mark.parametrize("side", [3, 6])
def test_labels_of_patches_as_in_the_probe(side):
    """Against the histogram of every patch in NumPy, which `spectralmoe probe` fits to."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, CLASSES, (4, 12, 12)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.6] = 255
    labels[0, :4, :4] = 255  # a patch without any label
    found = labels_to_learn(
        jnp.asarray(labels), (side, side), LinearHeadConfig(num_classes=CLASSES, labels="patches")
    )
    wanted = patch_classes(labels, side, CLASSES)
    assert len(np.unique(wanted)) == CLASSES + 1  # every class, and -1 without a label
    np.testing.assert_array_equal(found, np.where(wanted < 0, CLASSES, wanted))


def test_labels_of_pixels_stay_as_they_are():
    labels = jnp.asarray(np.random.default_rng(3).integers(0, CLASSES, (1, 8, 8)))
    found = labels_to_learn(labels, (2, 2), LinearHeadConfig(num_classes=CLASSES))
    np.testing.assert_array_equal(found, labels)
