"""The generated benchmark: reproducible, balanced, shifted between sensors, readable by other software."""

import os
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
from sklearn.metrics import jaccard_score
from sklearn.tree import DecisionTreeClassifier

from data_pipelines.readers.image_files import ImageFolder
from data_pipelines.records import Window, examples
from data_pipelines.synthetic import (
    BANDS,
    CLASSES,
    PALETTE,
    SyntheticDataset,
    SyntheticScenes,
)
from data_pipelines.synthetic.source import open_synthetic
from data_pipelines.tiles.tile_index import TileIndex
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError


@pytest.fixture(scope="module")
def benchmark() -> SyntheticDataset:
    return SyntheticDataset(seed=0, scenes_source=10, scenes_target=6)


def stacked(benchmark, split):
    _, images, labels = zip(*benchmark.examples(split), strict=True)
    return np.stack(images), np.stack(labels)


def test_scenes_differ_by_seed_domain_and_number():
    scenes = SyntheticScenes({"sensor_a": 2, "sensor_b": 1}, 7, 96)
    first, *others = (scenes.read_image(record) for record in scenes.records)
    reseeded = SyntheticScenes({"sensor_a": 1}, 8, 96)
    for other in (*others, reseeded.read_image(reseeded.records[0])):
        assert (other != first).mean() > 0.9


def test_a_scene_is_the_same_in_another_process():
    scenes = SyntheticScenes({"sensor_b": 1, "sensor_a": 3}, 7, 96)
    here = [zlib.crc32(scenes.scene(record).image) for record in scenes.records]
    code = (
        "import zlib; from data_pipelines.synthetic import SyntheticScenes; "
        "s = SyntheticScenes({'sensor_a': 5}, 7, 96); print(zlib.crc32(s.scene(s.records[2]).image))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONHASHSEED": "5"},
    )  # fmt: skip
    assert int(there.stdout) == here[3]


def test_splits_are_disjoint_and_complete(benchmark):
    assert len(benchmark.train) == 8
    assert len(benchmark.holdout) == 2
    assert {*benchmark.train, *benchmark.holdout} == set(benchmark.source.records)
    assert {r.domain for r in benchmark.target.records} == {"sensor_b"}
    assert [n for n, _, _ in benchmark.examples("target")] == [r.name for r in benchmark.target.records]


def test_types_and_ranges(benchmark):
    for split in ("source", "target"):
        images, labels = stacked(benchmark, split)
        assert images.dtype == np.uint16
        assert images.shape[1:] == (256, 256, 4)
        assert labels.dtype == np.uint8
        assert labels.max() == len(CLASSES) - 1
        assert images.max() < 15_000
        assert len(np.unique(images[..., 0])) > 1000


def test_class_shares_are_balanced(benchmark):
    for split in ("source", "target"):
        shares = np.bincount(stacked(benchmark, split)[1].ravel(), minlength=6) / (256 * 256)
        shares /= shares.sum()
        assert shares.max() < 0.45, dict(zip(CLASSES, shares, strict=True))
        assert shares.min() > 0.02, dict(zip(CLASSES, shares, strict=True))


def test_vegetation_index_of_the_classes_on_both_sensors(benchmark):
    for split in ("source", "target"):
        images, labels = stacked(benchmark, split)
        red, nir = images[..., 2].astype(float), images[..., 3].astype(float)
        ndvi = (nir - red) / (nir + red)
        middle = {name: np.median(ndvi[labels == i]) for i, name in enumerate(CLASSES)}
        assert min(middle["field"], middle["woodland"]) > middle["bare soil"] + 0.1
        assert middle["bare soil"] > middle["water"] + 0.1


def test_buildings_and_trees_stand_above_the_ground(benchmark):
    scene = benchmark.source.scene(benchmark.source.records[0])
    ground = np.median(scene.height[(scene.label == 3) | (scene.label == 0)])
    assert np.median(scene.height[scene.label == 4]) > ground + 2.5
    assert np.median(scene.height[scene.label == 1]) > ground + 2.5
    assert scene.height.min() == 0


def test_the_target_is_harder_than_the_source_but_learnable(benchmark):
    """A pixelwise classifier loses a tenth of IoU or more, and still triples the best constant prediction."""
    images, labels = stacked(benchmark, "train")
    rng = np.random.default_rng(0)
    chosen = rng.choice(labels.size, 20_000, replace=False)
    model = DecisionTreeClassifier(max_depth=10, random_state=0)
    model.fit(images.reshape(-1, 4)[chosen], labels.ravel()[chosen])
    score, constant = {}, {}
    for split in ("holdout", "target"):
        images, labels = stacked(benchmark, split)
        some = rng.choice(labels.size, 20_000, replace=False)
        truth = labels.ravel()[some]
        score[split] = jaccard_score(truth, model.predict(images.reshape(-1, 4)[some]), average="macro")
        constant[split] = np.bincount(truth).max() / truth.size / len(CLASSES)
    assert score["target"] < score["holdout"] - 0.1
    assert score["target"] > 3 * constant["target"]


def test_it_is_a_source_for_the_loader(benchmark):
    source = benchmark.source
    record, image, label = next(iter(examples(source)))
    assert image.shape == (record.height, record.width, len(BANDS))
    assert image.dtype == np.float32
    window = Window(30, 50, 20, 10)
    np.testing.assert_array_equal(source.read_image(record, window), image[30:50, 50:60])
    np.testing.assert_array_equal(source.read_label(record, window), label[30:50, 50:60])
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.read_image(record), image)
    assert len(TileIndex(source, 128, benchmark.train)) == 4 * len(benchmark.train)
    for array in (image, label):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_files_are_georeferenced_and_tagged(benchmark, tmp_path):
    paths = benchmark.write(tmp_path, "holdout")
    assert len(paths) == len(benchmark.holdout)
    corners = set()
    for path, (name, image, label) in zip(paths, benchmark.examples("holdout"), strict=True):
        assert path.stem == name.rpartition("/")[2]
        with rasterio.open(path) as file:
            assert file.crs.to_epsg() == 32632
            assert file.res == (1.0, 1.0)
            assert 166_000 < file.bounds.left < 834_000  # a UTM zone's width
            corners.add((file.bounds.left, file.bounds.top))
            assert file.descriptions == BANDS
            assert file.scales == (1e-4,) * 4
            assert float(file.tags(1, ns="IMAGERY")["CENTRAL_WAVELENGTH_UM"]) == pytest.approx(0.492)
            np.testing.assert_array_equal(np.moveaxis(file.read(), 0, -1), image)
            georeference = file.crs, file.transform
        with rasterio.open(tmp_path / "sensor_a" / "masks" / path.name) as file:
            assert (file.crs, file.transform) == georeference
            assert [file.colormap(1)[i][:3] for i in range(6)] == list(PALETTE)
            assert [file.tags(1)[f"CLASS_{i}"] for i in range(6)] == list(CLASSES)
            np.testing.assert_array_equal(file.read(1), label)
        with rasterio.open(tmp_path / "sensor_a" / "heights" / path.name) as file:
            assert (file.crs, file.transform) == georeference
            assert 5 < file.read(1).max() < 60
    assert len(corners) == len(paths)


def test_written_folder_reads_back_through_the_folder_source(tmp_path):
    benchmark = SyntheticDataset(3, 2, 1, size=96, holdout=0.5)
    paths = benchmark.write(tmp_path)
    assert len(paths) == 3
    folder = ImageFolder(
        tmp_path, palette=PALETTE, bands=BANDS, image_glob="*/images/*.tif",
        mask_template="{domain}/masks/{stem}.tif",
    )  # fmt: skip
    known = {name: (i, lab) for split in ("source", "target") for name, i, lab in benchmark.examples(split)}
    for record, image, label in examples(folder):
        expected = known.pop(record.name.replace("/images/", "/"))
        np.testing.assert_array_equal(image, expected[0])
        np.testing.assert_array_equal(label, expected[1])
    assert not known
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".tif"]


def test_unwritable_folder_is_named(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("mine")
    with pytest.raises(UserError, match="file/sensor_a/masks"):
        SyntheticDataset(0, 2, 1, size=64).write(blocker)
    assert blocker.read_text() == "mine"


def config(**data) -> RunConfig:
    known = {"scenes_source": 5, "scenes_target": 2}
    return load_config("quickstart").replaced({f"data.{k}": v for k, v in {**known, **data}.items()})


def test_opens_from_a_configuration():
    settings = config(scene_size=80, scene_seed=4)
    source = open_synthetic(settings, ("sensor_a",))
    target = open_synthetic(settings, ("sensor_b",))
    assert (len(source.records), len(target.records)) == (5, 2)
    assert source.read_image(source.records[0]).shape == (80, 80, 4)
    known = SyntheticScenes({"sensor_b": 1}, 4, 80)
    np.testing.assert_array_equal(target.read_label(target.records[0]), known.read_label(known.records[0]))


def test_bad_settings_name_the_key():
    with pytest.raises(UserError, match=r"'mars'.*sensor_a, sensor_b"):
        open_synthetic(config(), ("mars",))
    with pytest.raises(UserError, match=r"config.data.scenes_source = 0: must be between 1 and 100000"):
        open_synthetic(config(scenes_source=0), ("sensor_a",))
    with pytest.raises(UserError, match="at least 64"):
        open_synthetic(config(scene_size=10), ("sensor_a",))
    wrong = config().replaced({"bands": ("red", "green", "blue")})
    with pytest.raises(UserError, match=r"^bands .*'nir'"):
        open_synthetic(wrong, ("sensor_a",))
