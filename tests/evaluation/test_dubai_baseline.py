"""The pixel classifiers of the Dubai baseline script, on small images with the layout of the real ones."""

import numpy as np
import pytest
import rasterio

from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.stored import save_config

metrics = pytest.importorskip("sklearn.metrics")
ndimage = pytest.importorskip("scipy.ndimage")
baseline = pytest.importorskip("benchmarks.dubai_baseline")

SIZE = (40, 56)

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def config():
    return load_config("configs/dubai.py")


def write_picture(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"height": pixels.shape[0], "width": pixels.shape[1], "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="PNG", **profile) as sink:
        sink.write(np.moveaxis(pixels, -1, 0))


@pytest.fixture(scope="module")
def splits(tmp_path_factory, config):
    """Six tiles of two images: brightness follows the class, with noise; a tenth is unlabelled."""
    root = tmp_path_factory.mktemp("dubai")
    rng = np.random.default_rng(0)
    palette = np.array([*config.classes.palette, (155, 155, 155)], np.uint8)
    for tile in range(1, 7):
        for image in range(2):
            label = rng.integers(0, 5, (5, 7)).repeat(8, 0).repeat(8, 1)
            pixels = 40 * label[..., None] + rng.integers(0, 90, (*SIZE, 3))
            label[rng.random(SIZE) < 0.1] = 5
            write_picture(root / f"tile_{tile}" / "images" / f"{image}.png", pixels.astype(np.uint8))
            write_picture(root / f"tile_{tile}" / "masks" / f"{image}.png", palette[label])
    given = {"data.root": str(root), "data.image_glob": "*/images/*.png"}
    return baseline.open_splits(config.replaced(given))


def test_features_against_scipy():
    image = np.random.default_rng(1).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    means = [ndimage.uniform_filter(image.astype(np.float64), (side, side, 1)) for side in (1, 3, 9)]
    np.testing.assert_allclose(baseline.pixel_features(image), np.concatenate(means, -1), atol=1e-3)


def test_sample_is_of_distinct_training_pixels_with_their_labels(splits):
    features, labels = baseline.sample_pixels(splits, 10**9, seed=0)
    parts = [(baseline.pixel_features(image)[label != 255], label[label != 255])
             for _, _, image, label in splits.examples("train")]  # fmt: skip
    everything = np.concatenate([part[0] for part in parts])
    np.testing.assert_array_equal(features, everything)
    np.testing.assert_array_equal(labels, np.concatenate([part[1] for part in parts]))

    pairs = {(*row, label) for row, label in zip(everything.tolist(), labels.tolist(), strict=True)}
    drawn = baseline.sample_pixels(splits, 500, seed=0)
    found = {(*row, label) for row, label in zip(drawn[0].tolist(), drawn[1].tolist(), strict=True)}
    assert len(found) == 500
    assert found <= pairs
    assert not np.array_equal(baseline.sample_pixels(splits, 500, seed=1)[0], drawn[0])


def test_scores_of_the_target_against_scikit_learn(splits):
    classify = baseline.boosted(splits, pixels=4000, seed=0, class_weight="balanced")
    scores = baseline.score_target(classify, splits, 5)
    assert set(scores) == {"tile_5", "tile_6"}
    shown = [(label[label != 255], classify(image)[label != 255])
             for _, _, image, label in splits.examples("target")]  # fmt: skip
    truth, prediction = (np.concatenate(part) for part in zip(*shown, strict=True))
    expected = metrics.jaccard_score(truth, prediction, average="macro")
    assert baseline.total(scores).miou == pytest.approx(expected)
    assert expected > 0.3  # brightness tells the classes apart, so one that learned nothing is noticed


def test_every_seed_is_trained(config, tmp_path, monkeypatch):
    from spectralmoe_jax.training import train as run

    trained = []
    monkeypatch.setattr(run, "train", lambda config, workdir: trained.append((config.seed, workdir.name)))
    assert baseline.train_seeds(config, tmp_path, 3) == [tmp_path / f"dubai_{seed}" for seed in range(3)]
    assert trained == [(0, "dubai_0"), (1, "dubai_1"), (2, "dubai_2")]


def test_verdicts_compare_means_and_extremes():
    miou = {"SpectralMoE": [0.40, 0.44], "boosting": [0.38, 0.39], "boosting, balanced": [0.41, 0.42]}
    plain, balanced = baseline.verdicts(miou)
    assert plain == "SpectralMoE 42.00, boosting 38.50: above it; worst run 40.00, its best 39.00: above"
    assert balanced.endswith("41.50: above it; worst run 40.00, its best 42.00: NOT above")
    assert "NOT above it" in baseline.verdicts(miou | {"SpectralMoE": [0.3]})[0]
    assert baseline.verdicts({"boosting": [0.3], "boosting, balanced": [0.3]}) == []


def test_runs_of_another_benchmark_are_rejected(tmp_path, capsys, splits, config):
    root = splits.source.root
    shown = config.replaced({"data.source": ("tile_1", "tile_5")})
    save_config(shown, tmp_path / "config.json")
    with pytest.raises(baseline.UserError, match=r"config\.data\.source"):
        baseline.trained(tmp_path, config)
    assert baseline.main(["--root", str(root / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
