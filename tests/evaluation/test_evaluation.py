"""Scores against scikit-learn, and complete reports."""

import json

import numpy as np
import pytest

from spectralmoe_jax.config.schema import EvaluateConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.metrics import ConfusionMatrix, ImageCounts, Tally, held_out_scores
from spectralmoe_jax.evaluation.score_table import print_table, score, write_report

metrics = pytest.importorskip("sklearn.metrics")


@pytest.fixture
def labelled():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 4, (2, 30, 40))
    return np.where(rng.random(truth.shape) < 0.2, 255, truth), prediction


def test_scores_equal_scikit_learn(labelled):
    truth, prediction = labelled
    matrix = ConfusionMatrix(4)
    for rows in (slice(0, 11), slice(11, 30)):  # in two parts
        matrix.add(truth[rows], prediction[rows])
    known = truth != 255
    y, p = truth[known], prediction[known]
    np.testing.assert_array_equal(matrix.counts, metrics.confusion_matrix(y, p))
    np.testing.assert_allclose(matrix.iou, metrics.jaccard_score(y, p, average=None))
    np.testing.assert_allclose(matrix.miou, metrics.jaccard_score(y, p, average="macro"))
    np.testing.assert_allclose(matrix.accuracy, metrics.recall_score(y, p, average=None))
    np.testing.assert_allclose(matrix.overall_accuracy, metrics.accuracy_score(y, p))


def test_absent_classes_are_left_out_of_the_mean():
    matrix = ConfusionMatrix(3)
    matrix.add(np.array([0, 0, 1, 255]), np.array([0, 1, 1, 2]))
    np.testing.assert_array_equal(matrix.iou, [0.5, 0.5, np.nan])
    assert matrix.miou == 0.5
    assert np.isnan(ConfusionMatrix(3).miou)


def test_prediction_outside_the_classes():
    with pytest.raises(ValueError, match=r"0\.\.2"):
        ConfusionMatrix(3).add(np.array([0]), np.array([3]))


def examples():
    rng = np.random.default_rng(1)
    for domain, size in (("a", (20, 33)), ("a", (8, 8)), ("b", (40, 17))):
        label = rng.integers(0, 3, size).astype(np.uint8)
        image = np.repeat(label[..., None], 2, axis=-1)
        if domain == "b":
            label = (label + (label == 2)).astype(np.uint8)  # the prediction will be wrong where 2 became 3
        yield domain, "x", image, label


def predict(tiles):
    return np.eye(4, dtype=np.float32)[tiles[..., 0]]


def test_score_by_domain(tmp_path, capsys):
    report = score(predict, examples(), ["w", "x", "y", "z"], EvaluateConfig(16, 5, 3))
    assert report["images"] == 3
    assert set(report["domains"]) == {"a", "b"}
    a, b = report["domains"]["a"], report["domains"]["b"]
    assert a["miou"] == 1.0
    assert a["overall_accuracy"] == 1.0
    assert b["iou"]["w"] == b["iou"]["x"] == 1.0
    assert b["iou"]["y"] == b["iou"]["z"] == 0.0
    assert report["mean_miou"] == pytest.approx((a["miou"] + b["miou"]) / 2)
    counts = np.array(a["confusion"]) + np.array(b["confusion"])
    np.testing.assert_array_equal(report["all"]["confusion"], counts)

    write_report(report, tmp_path / "report.json")
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["domains"]["a"]["iou"]["z"] is None  # neither in the truth nor predicted
    assert stored["miou"] == report["miou"]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    print_table(report)
    out = capsys.readouterr().out
    assert "100.00" in out
    assert "mIoU" in out
    assert "mean mIoU over 2 domains" in out


def test_table_of_many_domains_is_not_cut_in_a_log(capsys):
    domains = [f"a rather long domain {i}" for i in range(6)]
    shown = [(domain, *rest) for domain, (_, *rest) in zip(domains, [*examples(), *examples()], strict=True)]
    print_table(score(predict, shown, ["w", "x", "y", "z"], EvaluateConfig(16, 5, 3)))
    first = capsys.readouterr().out.splitlines()[0]
    assert all(domain in first for domain in domains)


def test_domain_without_labels_does_not_change_the_mean():
    unlabelled = ("c", "x", np.zeros((6, 6, 2), np.uint8), np.full((6, 6), 255, np.uint8))
    names, settings = ["w", "x", "y", "z"], EvaluateConfig(16, 5, 3)
    report = score(predict, [*examples(), unlabelled], names, settings)
    assert np.isnan(report["domains"]["c"]["miou"])
    assert report["mean_miou"] == score(predict, examples(), names, settings)["mean_miou"]
    assert np.isnan(score(predict, [unlabelled], names, settings)["mean_miou"])


def test_held_out_scores_of_several_streams():
    """By hand: a domain counts once in the mean whatever its size, and one without labels does not."""
    tallies = {name: Tally(["w", "x"]) for name in ("main", "radar")}
    half, right, unknown = (np.array([[5, 5], [0, 0]]), np.diag([90, 90]), np.zeros((2, 2), int))
    tallies["main"].images += [ImageCounts("a", "1", half), ImageCounts("b", "2", right)]
    tallies["radar"].images += [ImageCounts("a", "3", half), ImageCounts("c", "4", unknown)]
    # of `half`: class w has 5 of 10, class x 0 of 5; of main: w 95 of 100, x 90 of 95
    scores = held_out_scores(tallies)
    assert scores == pytest.approx(
        {
            "miou": (0.95 + 90 / 95) / 2,
            "overall_accuracy": 185 / 190,
            "miou_radar": 0.25,
            "mean_miou": (0.25 + 1.0 + 0.25) / 3,
        }
    )
    tallies["main"].images.pop()
    assert held_out_scores({"main": tallies["main"]}).keys() == {"miou", "overall_accuracy"}


def test_nothing_to_score(tmp_path):
    with pytest.raises(UserError, match="split to evaluate is empty"):
        score(predict, [], ["a"], EvaluateConfig(4, 0))
    with pytest.raises(UserError, match="cannot be written"):
        write_report({}, tmp_path / "missing" / "report.json")
