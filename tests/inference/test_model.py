"""`spectralmoe_jax.load`: arrays in, arrays out, compared with the segmenter called directly."""

import doctest
import importlib
import io
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rasterio
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import spectralmoe_jax
from data_pipelines.synthetic import SyntheticDataset
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.training.train import train
from tests.tiny_run import SIZES

TINY = [
    *(size for size in SIZES if not size.startswith("model.head")), "model.head.kind=linear",
    "model.visual.patch_size=4", "train.steps=2", "train.evaluate_every=2", "train.checkpoint_every=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the run `runs/quickstart` and its scenes, as the quickstart leaves them."""
    root = tmp_path_factory.mktemp("model")
    config = load_config("configs/quickstart.py", [f"--config.{value}" for value in TINY])
    train(config, root / "runs" / "quickstart")
    SyntheticDataset(0, 2, 1, 64).write(root / "runs" / "quickstart", "target")
    return root


@pytest.fixture(scope="module")
def scene(folder):
    return folder / "runs" / "quickstart" / "sensor_b" / "images" / "scene_000.tif"


@pytest.fixture(scope="module")
def model(folder):
    return spectralmoe_jax.load(folder / "runs" / "quickstart")


def image_of(height, width, seed=0):
    return np.random.default_rng(seed).uniform(0, 3000, (height, width, 4)).astype(np.float32)


def test_what_a_model_knows(model):
    assert model.bands == ("blue", "green", "red", "nir")
    assert model.classes[:2] == ("field", "woodland")
    assert len(model.palette) == len(model.classes)
    np.testing.assert_array_equal(model.pixel_mean, np.float32(model.config.model.pixel_mean))
    np.testing.assert_array_equal(model.pixel_std, np.float32(model.config.model.pixel_std))
    assert "quickstart" in repr(model)


def test_a_window_is_the_segmenter(model):
    """An image of one window: the segmenter's own scores, without blending."""
    image = image_of(32, 32)
    wanted = np.asarray(jax.jit(model.segmenter.scores)(jnp.asarray(image[None])))[0]
    np.testing.assert_allclose(model.scores(image), wanted, atol=1e-6)
    np.testing.assert_array_equal(model.predict(image), wanted.argmax(-1))
    shares = wanted / wanted.sum(-1, keepdims=True)
    np.testing.assert_allclose(model.probabilities(image), shares, atol=1e-6)


def test_features_of_a_window(model):
    image = image_of(32, 32)
    normalised = model.segmenter.normalise(jnp.asarray(image[None]))
    wanted = np.asarray(jax.jit(model.segmenter.features)(normalised).maps[-1])[0]  # (8, 8, D)
    np.testing.assert_allclose(model.features(image), wanted, atol=1e-5)


def test_a_larger_image_is_blended(model):
    """Two windows that overlap by 8 pixels: outside the overlap each is what it is alone."""
    image = image_of(32, 56)
    scores = model.scores(image)
    np.testing.assert_allclose(scores[:, :24], model.scores(image[:, :32])[:, :24], atol=1e-5)
    np.testing.assert_allclose(scores[:, 32:], model.scores(image[:, 24:])[:, 8:], atol=1e-5)
    left, right = model.scores(image[:, :32])[:, 24:], model.scores(image[:, 24:])[:, :8]
    assert (scores[:, 24:32] >= np.minimum(left, right) - 1e-5).all()
    assert (scores[:, 24:32] <= np.maximum(left, right) + 1e-5).all()


@pytest.mark.parametrize("shape", [(1, 1), (5, 70), (33, 32), (64, 64)])
def test_any_size(model, shape):
    image = image_of(*shape)
    assert model.predict(image).shape == shape
    patches = tuple(-(-side // 4) for side in shape)
    assert model.features(image).shape == (*patches, 16)


def test_several_images(model):
    images = np.stack([image_of(40, 50, seed) for seed in range(3)])
    for method in (model.scores, model.features):
        alone = np.stack([method(image) for image in images])
        np.testing.assert_allclose(method(images), alone, atol=1e-5)


def test_bands_by_name(model):
    """Other order, further bands, and other names of the same bands."""
    image = image_of(32, 32)
    more = np.stack([image[..., 3], np.full((32, 32), 7.0), *np.moveaxis(image[..., :3], -1, 0)], axis=-1)
    found = model.scores(more, bands=("NIR", "coastal", "Blue", "green", "red"))
    np.testing.assert_array_equal(found, model.scores(image))


@pytest.mark.parametrize(
    ("image", "bands", "message"),
    [
        (np.zeros((8, 8)), None, r"has shape \(8, 8\): give \(H, W, bands\) or \(B, H, W, bands\)"),
        (np.zeros((0, 8, 4)), None, r"has shape \(0, 8, 4\)"),
        (
            np.zeros((8, 8, 3)),
            None,
            r"3 bands in its last axis, not the 4 of .*; name its own as bands=",
        ),
        (np.zeros((8, 8, 3)), ("red", "green"), r"3 bands in its last axis, not the 2 of red, green$"),
        (np.zeros((8, 8, 3)), ("red", "green", "nir"), r"has no band 'blue', only red, green, nir"),
        (
            np.zeros((8, 8, 5)),
            ("blue", "green", "red", "Red", None),
            r"has several bands .red.: blue, .*",
        ),
        (np.full((8, 8, 4), np.nan), None, r"not finite: give pixels without data the value 0"),
    ],
)
def test_images_that_do_not_fit(model, image, bands, message):
    with pytest.raises(UserError, match=message):
        model.predict(image, bands)


def test_a_map_is_the_prediction(model, scene, tmp_path):
    """By path and by open dataset."""
    done = model.map(scene, tmp_path / "map.tif")
    with rasterio.open(scene) as dataset:
        again = model.map(dataset, tmp_path / "again.tif")
        pixels, bands = np.moveaxis(dataset.read(), 0, -1), dataset.descriptions
    assert done["shares"] == again["shares"]
    wanted = model.predict(pixels, bands)
    with rasterio.open(tmp_path / "map.tif") as first, rasterio.open(tmp_path / "again.tif") as second:
        np.testing.assert_array_equal(first.read(1), wanted)
        np.testing.assert_array_equal(second.read(1), wanted)


def test_programs_are_kept(model):
    """Images of other sizes, with as many windows: nothing is compiled anew."""
    model.predict(image_of(30, 60))
    model.features(image_of(30, 60))
    with jax.log_compiles(), io.StringIO() as log:
        handler = logging.StreamHandler(log)
        logging.getLogger().addHandler(handler)
        model.predict(image_of(60, 29))
        model.features(image_of(60, 29))
        logging.getLogger().removeHandler(handler)
        assert "Compiling" not in log.getvalue()


def test_a_converted_file_is_the_run(model, folder, tmp_path):
    file = tmp_path / "model.safetensors"
    spectralmoe_jax.convert(str(folder / "runs" / "quickstart"), str(file))
    again, image = spectralmoe_jax.load(file), image_of(40, 40)
    assert again.classes == model.classes
    np.testing.assert_array_equal(again.scores(image), model.scores(image))


def test_statistics_of_the_configuration(folder, tmp_path):
    """Those of the file, unless the command asks for others."""
    file = tmp_path / "a,b.safetensors"  # a comma separates files elsewhere
    spectralmoe_jax.convert(str(folder / "runs" / "quickstart"), str(file))
    config = spectralmoe_jax.load(file).config
    other = config.replaced({"model.pixel_mean": (1.0, 2.0, 3.0, 4.0)})
    np.testing.assert_array_equal(spectralmoe_jax.load(file, other).pixel_mean, (1, 2, 3, 4))


def test_a_fingerprint_tells_models_apart(model, folder, tmp_path):
    run, file = folder / "runs" / "quickstart", tmp_path / "model.safetensors"
    spectralmoe_jax.convert(str(run), str(file))
    assert spectralmoe_jax.load(file).fingerprint == model.fingerprint
    fewer = model.config.replaced({"evaluate.batch_size": 1})
    assert spectralmoe_jax.load(run, fewer).fingerprint == model.fingerprint
    tensors = load_file(file)
    tensors["backbone/visual/blocks/norm1/bias"] += 1
    with safe_open(file, "np") as opened:
        save_file(tensors, file, opened.metadata())
    changes = {"evaluate.overlap": 0, "data.file_bands": ("a", "b", "c", "d"), "evaluate.tta": "d4"}
    others = [spectralmoe_jax.load(file)]
    others += [spectralmoe_jax.load(run, model.config.replaced({k: v})) for k, v in changes.items()]
    assert len({model.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_examples_in_docstrings(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    failed, tried = doctest.testmod(importlib.import_module("spectralmoe_jax.inference.model"))
    assert failed == 0
    assert tried > 20
