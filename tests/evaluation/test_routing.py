"""Counts of experts and classes by token, and their mutual information against scikit-learn."""

import json

import numpy as np
import pytest

from spectralmoe_jax.config.schema import EvaluateConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.metrics import (
    ImageCounts,
    RoutedPredict,
    RoutingCounts,
    Tally,
    mutual_information,
    patch_classes,
    read_images,
    write_images,
)
from spectralmoe_jax.evaluation.score_table import make_report, print_table, write_report

metrics = pytest.importorskip("sklearn.metrics")

CLASSES, EXPERTS = 4, 5


def majority(patch):
    """The class of one patch by hand: the most frequent label below 255, the smallest of equals."""
    values = [value for value in patch.reshape(-1).tolist() if value != 255]
    return max(sorted(set(values)), key=values.count) if values else -1


@pytest.fixture
def tiles():
    """Labels (B, T, T) in blobs, a patch of them unlabelled, and experts that follow them in part."""
    rng = np.random.default_rng(3)
    labels = np.kron(rng.integers(0, CLASSES, (3, 6, 6)), np.ones((1, 4, 4), int)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = 255
    labels[0, :3, :3] = 255
    experts = rng.integers(0, EXPERTS, (2, 2, 3, 64))
    truth = np.array([[majority(tile[r : r + 3, c : c + 3]) for r in range(0, 24, 3) for c in range(0, 24, 3)]
                      for tile in labels])  # fmt: skip
    follows = rng.random(truth.shape) < 0.6
    experts[1, 0] = np.where(follows & (truth >= 0), truth, experts[1, 0])
    return labels, experts, truth


def test_class_of_a_patch(tiles):
    labels, _, truth = tiles
    np.testing.assert_array_equal(patch_classes(labels, 8, CLASSES).reshape(3, 64), truth)
    assert truth[0, 0] == -1


def test_mutual_information_equals_scikit_learn(tiles):
    labels, experts, truth = tiles
    counts = RoutingCounts(EXPERTS, CLASSES)
    for tile in range(3):
        counts.add(experts[:, :, tile : tile + 1], labels[tile : tile + 1])
    known = truth >= 0
    scores = {}
    for layer, modality in np.ndindex(2, 2):
        chosen = experts[layer, modality][known]
        expected = metrics.normalized_mutual_info_score(truth[known], chosen)
        scores[layer, modality] = mutual_information(counts.counts[layer, modality])
        assert scores[layer, modality] == pytest.approx(expected, rel=1e-12)
        contingency = metrics.cluster.contingency_matrix(chosen, truth[known])
        np.testing.assert_array_equal(counts.counts[layer, modality], contingency)
    assert scores[1, 0] > 2 * scores[0, 0]  # the one that follows the classes


def test_extreme_cases():
    assert mutual_information(np.diag([3, 9, 1])) == pytest.approx(1)
    assert mutual_information(np.array([[5, 3, 2]])) == 0  # one expert tells nothing
    assert mutual_information(np.array([[5], [3]])) == 0
    assert mutual_information(np.outer([1, 2, 3], [4, 5])) == pytest.approx(0, abs=1e-12)
    assert np.isnan(mutual_information(np.zeros((2, 2), int)))


def routed(tiles):
    """The class is the first band, the expert is the class of a patch's first pixel, one more in layer 2."""
    experts = tiles[:, ::4, ::4, 0].reshape(len(tiles), -1).astype(np.int32)
    return np.eye(4, dtype=np.float32)[tiles[..., 0]], np.stack([experts, (experts + 1) % 4])[:, None]


def test_windows_count_the_tokens_inside_the_image(tmp_path, capsys):
    """Of images of several sizes, the last batch filled up and windows beyond the edge mirrored."""
    rng = np.random.default_rng(1)
    shapes = [(16, 16), (20, 33), (7, 5)]
    blocks = [np.kron(rng.integers(0, 4, (9, 9)), np.ones((4, 4), int)).astype(np.uint8) for _ in shapes]
    labels = [block[:h, :w] for block, (h, w) in zip(blocks, shapes, strict=True)]
    examples = [("a", f"image {i}", label[..., None], label) for i, label in enumerate(labels)]
    tally = Tally(list("wxyz"), 4)
    tally.count_images(RoutedPredict(routed), examples, EvaluateConfig(16, 4, 4))
    report = make_report(tally)
    # windows of 4 x 4 patches: one; two by three, at 0, 4 and 0, 12, 17; one of which 2 x 2 are in the image
    first, second = (np.array(entry["counts"]) for entry in report["routing"])
    assert first.sum() == 16 + 6 * 16 + 4
    np.testing.assert_array_equal(second, np.roll(first, 1, axis=0))
    assert report["miou"] == 1
    # in windows that start at 17 most of a patch is still of its first pixel's block
    assert [entry["nmi"] for entry in report["routing"]] == pytest.approx([1, 1])

    print_table(report)
    assert "expert and class by layer, visual: 1.00 1.00" in capsys.readouterr().out
    write_report(report, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["routing"] == report["routing"]

    write_images(tally.images, tmp_path / "images.npz")
    stored = read_images(tmp_path / "images.npz")
    assert [(image.domain, image.name) for image in stored] == [("a", f"image {i}") for i in range(3)]
    np.testing.assert_array_equal(sum(image.counts for image in stored), report["all"]["confusion"])
    assert {path.name for path in tmp_path.iterdir()} == {"images.npz", "report.json"}


def test_no_routing_without_experts():
    def without(tiles):
        scores, experts = routed(tiles)
        return scores, experts[:, :0]

    tally = Tally(list("wxyz"), 4)
    image = np.zeros((16, 16, 1), np.uint8)
    tally.count_images(RoutedPredict(without), [("a", "x", image, image[..., 0])], EvaluateConfig(16, 4, 4))
    assert "routing" not in make_report(tally)


def test_bad_files(tmp_path):
    (tmp_path / "images.npz").write_text("no")
    with pytest.raises(UserError, match="not a readable file of counts by image"):
        read_images(tmp_path / "images.npz")
    with pytest.raises(UserError, match="choose another --images"):
        write_images([ImageCounts("a", "x", np.eye(2))], tmp_path / "missing" / "images.npz")
