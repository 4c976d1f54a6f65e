"""The choice of labels of the benchmark on sparse labels, against SciPy."""

import numpy as np
import pytest

from data_pipelines.records import IGNORE
from data_pipelines.splits import open_splits
from spectralmoe_jax.config.load import load_config
from tests.benchmarks.scripts import imported

ndimage = pytest.importorskip("scipy.ndimage")
pytest.importorskip("sklearn")

SIDE, CLASSES = 60, 3
EIGHT = np.ones((3, 3))  # neighbours of a pixel


@pytest.fixture(scope="module")
def script():
    with imported("sparse_labels") as module:
        yield module


@pytest.fixture(scope="module")
def labels():
    blobs = ndimage.gaussian_filter(np.random.default_rng(0).standard_normal((2, SIDE, SIDE)), (0, 2, 2))
    return list(np.digitize(blobs, [-0.1, 0.1]).astype(np.uint8))


@pytest.mark.parametrize("lattice", [None, 7])
def test_components_are_those_of_scipy(script, labels, lattice):
    for label in labels:
        step = lattice or SIDE
        found, count = script.components(label == 1, lattice), 0
        for top in range(0, SIDE, step):
            for left in range(0, SIDE, step):
                cell = np.s_[top : top + step, left : left + step]
                wanted, own = ndimage.label(label[cell] == 1, EIGHT)
                pairs = set(zip(found[cell].ravel().tolist(), wanted.ravel().tolist(), strict=True))
                assert len(pairs) == own + (wanted == 0).any()  # one to one
                count += own
        assert found.max() == count


def test_whole_components_up_to_the_share(script, labels):
    kept = script.kept_components(labels, CLASSES, 0.1, seed=0)
    for wanted in range(CLASSES):
        pixels = sum((label == wanted).sum() for label in labels)
        share = sum((label[mask] == wanted).sum() for label, mask in zip(labels, kept, strict=True))
        assert 0.05 * pixels < share <= 0.1 * pixels
    for label, mask in zip(labels, kept, strict=True):
        for wanted in range(CLASSES):
            numbers, count = ndimage.label(label == wanted, EIGHT)
            for number in range(1, count + 1):
                assert mask[numbers == number].all() or not mask[numbers == number].any()
    other = script.kept_components(labels, CLASSES, 0.1, seed=1)
    assert any((a != b).any() for a, b in zip(kept, other, strict=True))


def test_a_class_of_large_components_keeps_its_smallest(script):
    label = np.zeros((10, 10), np.uint8)
    label[0, :6], label[5, :5] = 1, 1
    (kept,) = script.kept_components([label], 2, 0.1, seed=0)
    assert kept[5, :5].all()
    assert not kept[0, :6].any()


def test_training_images_alone_lose_labels(script):
    sizes = ["data.scenes_source=4", "data.scenes_target=1", "data.scene_size=64", "data.holdout=0.25"]
    config = load_config("configs/quickstart.py", [f"--config.{size}" for size in sizes])
    dense, few = open_splits(config), open_splits(script.sparse(config, "generated", 0))
    for split in ("train", "holdout", "target"):
        for (*_, all_), (*_, some) in zip(dense.examples(split), few.examples(split), strict=True):
            np.testing.assert_array_equal(some[some != IGNORE], all_[some != IGNORE])
            assert ((some != IGNORE).mean() < 0.1) == (split == "train")
    labelled = [label[label != IGNORE] for *_, label in few.examples("source")]
    assert few.source.class_pixels.sum() == sum(map(len, labelled))


def test_the_frozen_encoder_needs_weights(script, tmp_path, capsys):
    command = ["--workdir", str(tmp_path), "--seeds", "1"]
    assert script.main([*command, "--methods", "frozen, dense"]) == 2
    assert "--methods: the frozen encoder needs --weights" in capsys.readouterr().err


def test_the_configurations_of_both_encoders(script, tmp_path):
    configs = script.open_configs(str(tmp_path), str(tmp_path / "galileo"))
    assert set(configs) == {(name, frozen) for name in ("generated", "sentinel2") for frozen in (True, False)}
    for (_, frozen), config in configs.items():
        assert (config.model.head.kind == "linear") == frozen
    assert set(script.open_configs(None, None)) == {("generated", False)}
