"""The paired bootstrap against scipy's, and mIoU of many matrices against the one that evaluation uses."""

import numpy as np
import pytest

from spectralmoe_jax.ablation.results import mean_iou, paired_interval
from spectralmoe_jax.evaluation.metrics import ConfusionMatrix

stats = pytest.importorskip("scipy.stats")
IMAGES, CLASSES = 25, 4


@pytest.fixture
def runs():
    """Two seeds of two variants: counts of every image, the second variant a little worse."""
    rng = np.random.default_rng(5)
    truth = rng.dirichlet(np.ones(CLASSES), IMAGES) * 1000

    def run(skill):
        shares = np.eye(CLASSES) * skill + rng.dirichlet(np.ones(CLASSES), (IMAGES, CLASSES)) * (1 - skill)
        return rng.poisson(truth[..., None] * shares)

    return [run(0.55), run(0.6)], [run(0.5), run(0.52)]


def test_miou_of_many_matrices(runs):
    counts = np.concatenate([runs[0][0], np.zeros((1, CLASSES, CLASSES), int), np.diag([3, 0, 0, 2])[None]])
    expected = []
    for one in counts:
        matrix = ConfusionMatrix(CLASSES)
        matrix.counts += one
        expected.append(matrix.miou)
    np.testing.assert_allclose(mean_iou(counts), expected, rtol=1e-12)


@pytest.mark.parametrize("seeds", [1, 2])
def test_interval_equals_scipy(runs, seeds):
    """Images and seeds are drawn independently of each other; both variants see the same draw."""
    ours, theirs = runs[0][:seeds], runs[1][:seeds]

    def statistic(images, drawn):
        return np.mean([mean_iou(ours[s][images].sum(0)) - mean_iou(theirs[s][images].sum(0))
                        for s in drawn])  # fmt: skip

    def of_images(images):
        return statistic(images, [0])

    options = {"n_resamples": 4000, "vectorized": False, "method": "percentile", "random_state": 1}
    samples = (np.arange(IMAGES), np.arange(seeds))
    expected = (
        stats.bootstrap(samples[:1], of_images, **options)  # scipy takes no sample of one
        if seeds == 1
        else stats.bootstrap(samples, statistic, **options)
    ).confidence_interval
    low, high = paired_interval(ours, theirs, resamples=4000)
    width = expected.high - expected.low
    # of 4000 draws the ends of the interval are known to some 3 % of its width
    assert [low, high] == pytest.approx([expected.low, expected.high], abs=0.1 * width)
    assert low < statistic(*samples) < high


def test_a_run_does_not_differ_from_itself(runs):
    assert paired_interval(runs[0], runs[0]) == (0.0, 0.0)


def test_paired_interval_is_narrower_than_an_unpaired_one(runs):
    """Where images differ much and variants little, pairing is what makes the difference visible."""
    ours, theirs = [runs[0][0]], [runs[0][0] + np.eye(CLASSES, dtype=int) * 2]
    low, high = paired_interval(theirs, ours)
    assert 0 < low < high
    shuffled = [theirs[0][np.random.default_rng(0).permutation(IMAGES)]]
    assert np.ptp(paired_interval(shuffled, ours)) > 3 * (high - low)


def test_interval_depends_on_counts_only(runs):
    assert paired_interval(*runs) == paired_interval(*runs)
    assert paired_interval([runs[0][0][:1]], [runs[1][0][:1]]) is None
