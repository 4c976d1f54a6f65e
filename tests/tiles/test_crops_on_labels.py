"""Crops over labelled pixels: drawn evenly from all of them, the same after a restart."""

from itertools import islice

import numpy as np
import pytest
import scipy.stats

from data_pipelines.loader import train_batches
from data_pipelines.records import ArraySource
from data_pipelines.splits import Splits, training_elements, training_pixels
from data_pipelines.tiles.tile_index import ClassBalancedIndex, TileIndex
from data_pipelines.transforms import Augment, resized_crop
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.schema import AugmentConfig
from spectralmoe_jax.errors import UserError

CROP = 16


@pytest.fixture(scope="module")
def source():
    """Labelled pixels: 30 in a corner of the first image, 20 and 10 in the second, none in the third."""
    labels = [np.full((64, 80), 255, np.uint8) for _ in range(3)]
    labels[0][:5, :6] = 0
    labels[1][30:34, 40:45], labels[1][62:, 5:10] = 1, 2
    images = {("d", str(i)): (np.arange(64 * 80).reshape(64, 80, 1), label) for i, label in enumerate(labels)}
    arrays = ArraySource(images)
    arrays.class_pixels = np.stack([np.bincount(label.ravel(), minlength=256)[:3] for label in labels])
    return arrays


def test_every_labelled_pixel_is_equally_likely(source):
    index, rng, found = TileIndex(source, CROP, exact=True), np.random.default_rng(0), []
    for number in range(6000):
        tile = index[number % len(index)].draw(rng, on_labels=1.0)
        found.append((tile.record.name[-1], *tile.find_pixel(rng, tile.cell)))
    pixels, counts = np.unique(np.array(found), axis=0, return_counts=True)
    assert len(pixels) == 60
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_every_crop_holds_a_label(source):
    index, rng = TileIndex(source, CROP, exact=True), np.random.default_rng(0)
    held = {0: 0, 1: 0, 2: 0}
    for number in range(400):
        tile = index[number % len(index)].draw(rng, on_labels=1.0)
        label = resized_crop(tile, rng, crop=CROP, max_class_share=1.0, scale=(1, 1))["label"]
        (wanted,) = set(np.unique(label)) - {255}
        held[int(wanted)] += 1
    assert scipy.stats.chisquare(list(held.values()), [200, 400 / 3, 200 / 3]).pvalue > 1e-3


def test_the_probability_is_that_of_the_crops(source):
    index, rng = TileIndex(source, CROP, exact=True), np.random.default_rng(0)
    share = np.mean([index[n % len(index)].draw(rng, on_labels=0.3).on_label for n in range(2000)])
    assert abs(share - 0.3) < 4 * np.sqrt(0.21 / 2000)
    balanced = ClassBalancedIndex(source, CROP, temperature=0.5)
    assert balanced[0].draw(np.random.default_rng(1), on_labels=1.0).wanted is not None


@pytest.mark.slow
def test_batches_are_the_same_after_a_restart_and_with_workers(source):
    index, augment = TileIndex(source, CROP, exact=True), Augment(CROP, AugmentConfig(crop_on_labels=0.7))

    def take(count, **settings):
        return list(islice(train_batches(index, augment, batch_size=4, seed=3, **settings), count))

    straight = take(6)
    for batches in (take(3, start_step=3), take(6, workers=1)[3:]):
        for batch, same in zip(straight[3:], batches, strict=True):
            assert all(batch[key].tobytes() == same[key].tobytes() for key in batch)


def test_pixels_of_the_training_images(source):
    config = load_config("configs/quickstart.py", ["--config.augment.crop_on_labels=0.5"])
    splits = Splits(source, source, source.records[1:], source.records[:1])
    assert training_pixels(config, splits).tolist() == [0, 20, 10]
    tiles, augment = training_elements(config, splits)
    assert augment.settings.crop_on_labels == 0.5
    assert len(tiles.records) == 1
    # a source that does not count them: labels are read, but crops are not placed
    uncounted = ArraySource(
        {("d", r.name): (source.read_image(r), source.read_label(r)) for r in source.records}
    )
    splits = Splits(uncounted, uncounted, uncounted.records[1:], uncounted.records[:1])
    assert training_pixels(config, splits).tolist() == [0, 20, 10, 0, 0, 0]
    with pytest.raises(UserError, match=r"crop_on_labels = 0\.5: must be 0, as ArraySource does not count"):
        training_elements(config, splits)
