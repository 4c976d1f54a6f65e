"""Calibration error and Brier score against closed forms and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, cohen_kappa_score, f1_score

from spectralmoe_jax.evaluation.metrics import ConfusionMatrix
from spectralmoe_jax.evaluation.reliability import Reliability
from spectralmoe_jax.inference.calibration import entropy_of, probabilities_of


def drawn(pixels=4000, classes=5, seed=0):
    """Scores, and classes that are drawn with their shares as probabilities."""
    rng = np.random.default_rng(seed)
    scores = rng.gamma(0.5, size=(pixels, classes)).astype(np.float32)
    shares = scores / scores.sum(-1, keepdims=True)
    truth = (rng.random((pixels, 1)) > np.cumsum(shares, axis=-1)).sum(-1).clip(max=classes - 1)
    return truth, scores


def counted(truth, scores, temperature=1.0):
    found = Reliability(temperature)
    for half in (slice(0, 1000), slice(1000, None)):  # parts add up
        found.add(truth[half], scores[half])
    return found


def test_the_brier_score_is_that_of_scikit_learn():
    truth, scores = drawn()
    wanted = brier_score_loss(truth, probabilities_of(scores), labels=range(5), scale_by_half=False)
    assert counted(truth, scores).brier == pytest.approx(wanted, rel=1e-5)


def test_two_bins_by_hand():
    """Confidence 0.9 with 3 of 4 right, 0.6 with 1 of 2: (4 |0.75 - 0.9| + 2 |0.5 - 0.6|) / 6."""
    scores = np.array([[9, 1]] * 4 + [[3, 2]] * 2, np.float32) * 7.0
    truth = np.array([0, 0, 0, 1, 0, 1])
    found = Reliability()
    found.add(truth, scores)
    assert found.expected_error == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)
    report = found.report()
    assert sum(report["pixels"]) == 6
    assert [value for value in report["accuracy"] if value is not None] == [0.5, 0.75]


def test_probabilities_that_mean_what_they_say_have_no_error():
    found = counted(*drawn(200_000))
    assert found.expected_error < 0.005
    sharper = counted(*drawn(200_000), temperature=0.5)
    assert sharper.expected_error > 0.05


def test_unlabelled_pixels_count_nowhere():
    truth, scores = drawn()
    with_more = np.concatenate([truth, np.full(10, 255)]), np.concatenate([scores, scores[:10]])
    assert counted(*with_more).report() == counted(truth, scores).report()
    empty = Reliability()
    assert np.isnan(empty.expected_error)
    assert np.isnan(empty.brier)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_probabilities_are_a_softmax_of_logarithms(temperature):
    from scipy.special import softmax

    _, scores = drawn()
    found = probabilities_of(scores, temperature)
    np.testing.assert_allclose(
        found, softmax(np.log(scores.astype(np.float64)) / temperature, axis=-1), atol=2e-6
    )
    np.testing.assert_allclose(probabilities_of(scores * 13, temperature), found, atol=2e-6)
    np.testing.assert_array_equal(found.argmax(-1), scores.argmax(-1))


def test_probabilities_without_any_score():
    np.testing.assert_allclose(probabilities_of(np.zeros((2, 4))), 0.25)
    np.testing.assert_allclose(probabilities_of(np.array([[0, 0, 5.0]]), 2.0), [[0, 0, 1]], atol=1e-12)


def test_entropy_is_that_of_scipy():
    from scipy.stats import entropy

    _, scores = drawn()
    shares = probabilities_of(scores)
    np.testing.assert_allclose(entropy_of(shares), entropy(shares, axis=-1) / np.log(5), atol=1e-5)
    assert entropy_of(np.full((1, 7), 1 / 7)) == pytest.approx(1)
    assert entropy_of(np.eye(3, dtype=np.float32)[:1]) == pytest.approx(0)


def test_kappa_and_f1_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 3000)
    prediction = np.where(rng.random(3000) < 0.6, truth, rng.integers(0, 4, 3000))
    matrix = ConfusionMatrix(4)
    matrix.add(truth, prediction)
    assert matrix.kappa == pytest.approx(cohen_kappa_score(truth, prediction))
    np.testing.assert_allclose(matrix.f1, f1_score(truth, prediction, average=None))
    assert np.isnan(ConfusionMatrix(3).kappa)
