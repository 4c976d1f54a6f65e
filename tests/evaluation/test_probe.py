"""The probe: features of whole images, classifiers against scikit-learn, and the command."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from spectralmoe_jax.cli.main import main
from spectralmoe_jax.config.schema import EvaluateConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.features import FeatureExtractor
from spectralmoe_jax.evaluation.logistic_regression import fit_centroids, fit_logistic
from spectralmoe_jax.evaluation.probe import _token_classes, choose_penalties
from spectralmoe_jax.models.build import segmenter_config
from spectralmoe_jax.models.encoders.encoder import all_layers
from tests.models.test_galileo import tiny_galileo
from tests.models.test_segmenter import tiny
from tests.random_weights import random_segmenter


@pytest.fixture(scope="module")
def samples():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    features = rng.normal(size=(600, 5)) * (1, 10, 0.1, 1, 1) + labels[:, None] * (0.5, 3, 0.1, 0, -1) + 4
    return features, labels


@pytest.mark.parametrize("penalty", [0.5, 100.0])
def test_logistic_regression_equals_scikit_learn(samples, penalty):
    features, labels = samples
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    wanted = LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=2000).fit(scaled, labels)
    ours = fit_logistic(features, labels, 3, penalty=penalty)(features)
    np.testing.assert_allclose(
        ours - ours.mean(axis=1, keepdims=True),
        wanted.decision_function(scaled) - wanted.decision_function(scaled).mean(axis=1, keepdims=True),
        atol=5e-3,
    )


def test_sample_weights_equal_scikit_learn(samples):
    features, labels = samples
    weights = np.random.default_rng(1).uniform(0.2, 3, len(labels))
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    theirs = LogisticRegression(tol=1e-8, max_iter=2000).fit(scaled, labels, sample_weight=weights)
    wanted = theirs.predict_proba(scaled)
    logits = fit_logistic(features, labels, 3, weights=weights)(features)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(shares / shares.sum(axis=1, keepdims=True), wanted, atol=2e-3)


def test_centroids_equal_scikit_learn(samples):
    features, labels = samples
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    wanted = NearestCentroid().fit(scaled, labels).predict(scaled)
    assert np.array_equal(fit_centroids(features, labels, 3)(features).argmax(axis=1), wanted)


def test_a_class_without_samples_is_never_chosen(samples):
    features, labels = samples
    for fit in (fit_centroids, fit_logistic):
        assert 3 not in fit(features, labels, 4)(features).argmax(axis=1)


def test_penalties_by_the_one_standard_error_rule():
    # stage 0: the best is 80 +- 1, so 79.5 is as good and 78 is not; stage 1: all the same
    scores = np.array([[[79, 5], [81, 5], [80.5, 5], [79, 5]], [[78, 5], [79, 5], [78.5, 5], [77, 5]]])
    assert choose_penalties(scores) == [2, 3]
    assert choose_penalties(scores[:1]) == [1, 3]  # one seed has no error


def test_classes_of_places():
    label = np.array([[0, 0, 1, 255], [2, 0, 1, 255], [255, 255, 2, 2], [255, 255, 2, 1], [1, 1, 0, 0]])
    assert np.array_equal(_token_classes(label.astype(np.uint8), 2, 3), [[0, 1], [-1, 2], [1, 0]])


def test_features_are_the_mean_over_windows(tmp_path):
    """Each place has the mean over the windows that contain it; a second call reads the same from disk."""
    segmenter = random_segmenter(segmenter_config(tiny()))
    encoder = segmenter.backbone.visual
    settings = EvaluateConfig(window=16, overlap=8, batch_size=2)
    extract = FeatureExtractor(segmenter, settings, tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    found = extract(image)
    assert found.shape == (2, 3, 6, 16)  # places, embedding + 4 blocks + last norm, width

    def alone(left):
        window = segmenter.normalise(jnp.asarray(image[None, :, left : left + 16]))
        last = all_layers(encoder, window)[-1]
        return np.asarray(encoder.norm(last)[0, encoder.config.prefix_tokens :]).reshape(2, 2, 16)

    first, second = alone(0), alone(8)
    wanted = np.stack([first[:, 0], (first[:, 1] + second[:, 0]) / 2, second[:, 1]], axis=1)
    np.testing.assert_allclose(found[:, :, -1], wanted, atol=2e-4)
    again = FeatureExtractor(segmenter, settings, tmp_path)
    assert np.array_equal(again(image), found)
    assert (extract.computed, again.computed) == (1, 0)
    # other pixels, other weights and other windows have other files
    FeatureExtractor(random_segmenter(segmenter_config(tiny()), seed=1), settings, tmp_path)(image)
    FeatureExtractor(segmenter, EvaluateConfig(window=16, overlap=0, batch_size=2), tmp_path)(image)
    extract(image + np.uint8(1))
    assert len(list(tmp_path.glob("*.npy"))) == 4


def test_windows_of_the_encoder(tmp_path):
    """An encoder whose windows overlap is probed with those, whatever the windows of the evaluation."""
    sides = {"model.visual.window_overlap": 2}
    inside = FeatureExtractor(
        random_segmenter(segmenter_config(tiny_galileo(**sides))),
        EvaluateConfig(window=32, overlap=0, batch_size=2),
    )
    outside = FeatureExtractor(
        random_segmenter(segmenter_config(tiny_galileo())),
        EvaluateConfig(window=16, overlap=8, batch_size=2),
    )
    image = np.random.default_rng(0).uniform(0, 0.6, (28, 20, 6)).astype(np.float32)
    np.testing.assert_allclose(inside(image), outside(image), atol=1e-5)


def test_windows_have_whole_patches():
    segmenter = random_segmenter(segmenter_config(tiny()))
    with pytest.raises(UserError, match=r"config\.evaluate\.overlap = 4: must be a multiple of .* = 8"):
        FeatureExtractor(segmenter, EvaluateConfig(window=16, overlap=4, batch_size=2))


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    """A table, a picture and a file; scores repeat, and nothing is computed twice."""
    options = [
        "--config.data.scenes_source=3", "--config.data.scenes_target=1", "--config.data.scene_size=64",
        "--config.evaluate.window=32", "--config.evaluate.overlap=0", "--config.data.holdout=0.3",
    ]  # fmt: skip
    command = ["probe", "configs/quickstart.py", "--workdir", str(tmp_path), "--seeds", "2", *options]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "block 0" in out
    assert "held-out source" in out
    report = json.loads((tmp_path / "probe.json").read_text())
    assert len(report["miou"]["logistic regression"]["target"]) == 2
    assert (tmp_path / "probe.png").stat().st_size > 10_000
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    assert main(command) == 0
    assert json.loads((tmp_path / "probe.json").read_text()) == report
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()} == times


@pytest.mark.parametrize(("option", "value"), [("--seeds", "0"), ("--penalty", "-1")])
def test_numbers_that_cannot_be(tmp_path, capsys, option, value):
    assert main(["probe", "configs/quickstart.py", "--workdir", str(tmp_path), option, value]) == 2
    assert f"error: {option} {value}" in capsys.readouterr().err
