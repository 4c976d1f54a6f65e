"""Rare classes are drawn more often, images without labels never."""

import pickle

import numpy as np
import pytest

from data_pipelines.records import ArraySource
from data_pipelines.tiles.tile_index import ClassBalancedIndex, TileIndex, class_probabilities
from data_pipelines.transforms import resized_crop
from spectralmoe_jax.errors import UserError


@pytest.fixture(scope="module")
def source():
    """Four images of 40 x 40: class 0 everywhere, class 1 in a corner of one, class 2 in half of another, and
    one image without any label."""
    labels = [np.zeros((40, 40), np.uint8) for _ in range(4)]
    labels[1][:10, :10] = 1
    labels[2][:, 20:] = 2
    labels[3][:] = 255
    images = {("d", str(i)): (np.full((40, 40, 1), i, np.uint8), label) for i, label in enumerate(labels)}
    arrays = ArraySource(images)
    arrays.class_pixels = np.stack([np.bincount(label.ravel(), minlength=256)[:3] for label in labels])
    return arrays


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 100.0])
def test_probabilities_follow_the_formula(temperature):
    pixels = np.array([900, 90, 10])
    weights = [np.exp((1 - pixel / 1000) / temperature) for pixel in pixels]
    np.testing.assert_allclose(class_probabilities(pixels, temperature), np.array(weights) / sum(weights))


def test_a_class_without_pixels_is_not_drawn():
    assert class_probabilities(np.array([5, 0, 5]), 0.1)[1] == 0


def test_classes_are_drawn_with_their_probabilities(source):
    index = ClassBalancedIndex(source, 20, temperature=0.5)
    rng = np.random.default_rng(0)
    drawn = [index[i % len(index)].draw(rng) for i in range(4000)]
    share = np.bincount([tile.wanted for tile in drawn], minlength=3) / len(drawn)
    np.testing.assert_allclose(share, index.probabilities, atol=4 * np.sqrt(0.25 / len(drawn)))
    for tile in drawn:
        row = source.records.index(tile.record)
        assert source.class_pixels[row][tile.wanted] > 0


def test_a_crop_holds_the_class_it_was_drawn_for(source):
    index = pickle.loads(pickle.dumps(ClassBalancedIndex(source, 20, temperature=0.05)))
    rng = np.random.default_rng(0)
    held = {1: [], 2: []}
    for number in range(600):
        tile = index[number % len(index)].draw(rng)
        example = resized_crop(tile, rng, crop=20, scale=(1, 1), max_class_share=1.0)
        if tile.wanted:
            held[tile.wanted].append((example["label"] == tile.wanted).any())
    assert len(held[1]) > 100
    assert all(held[1] + held[2])


def test_the_same_generator_draws_the_same(source):
    index = ClassBalancedIndex(source, 20, temperature=0.5)
    first, second = (index[3].draw(np.random.default_rng(8)) for _ in range(2))
    assert (first.record, first.wanted) == (second.record, second.wanted)


def test_images_without_labels_are_left_out(source):
    index = TileIndex(source, 20)
    assert [record.name for record in index.records] == ["d/0", "d/1", "d/2"]
    assert len(index) == 12
    balanced = ClassBalancedIndex(source, 20, temperature=1.0)
    assert balanced.records == index.records


def test_minimum_share_of_labels():
    label = np.full((10, 10), 255, np.uint8)
    label[:3] = 0
    arrays = ArraySource({("d", "some"): (np.zeros((10, 10, 1), np.uint8), label)})
    arrays.class_pixels = np.array([[30]])
    assert len(TileIndex(arrays, 10, min_labelled=0.3)) == 1
    with pytest.raises(UserError, match=r"data\.min_labelled = 0\.31: .*has 30\.0%"):
        TileIndex(arrays, 10, min_labelled=0.31)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_bad_temperatures(source, temperature):
    with pytest.raises(UserError, match=r"data\.class_temperature = "):
        ClassBalancedIndex(source, 20, temperature=temperature)


def test_a_source_without_class_counts(source):
    plain = ArraySource({("d", "x"): (np.zeros((10, 10, 1), np.uint8), np.zeros((10, 10), np.uint8))})
    with pytest.raises(UserError, match=r"data\.class_temperature = 0\.1: must be None, as ArraySource"):
        ClassBalancedIndex(plain, 10, temperature=0.1)
    with pytest.raises(UserError, match=r"data\.min_labelled = 0\.5: must be 0, as ArraySource"):
        TileIndex(plain, 10, min_labelled=0.5)
    assert len(TileIndex(plain, 10)) == 1
