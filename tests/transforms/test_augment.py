"""Transforms against closed forms and step-by-step OpenCV."""

import cv2
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.records import ArraySource
from data_pipelines.tiles.tile_index import TileIndex
from data_pipelines.transforms import (
    Augment,
    Distortion,
    distort,
    photometric_distortion,
    resized_crop,
    visible_bands,
)
from data_pipelines.transforms.radiometry import draw_distortion
from spectralmoe_jax.config.schema import AugmentConfig
from spectralmoe_jax.errors import UserError

PLAIN = {"scale": (1.0, 1.0), "max_class_share": 1.0}


def tiles_of(image, label, stride=16):
    return TileIndex(ArraySource({("d", "i"): (image, label)}), stride)


def ramp(height, width, bands=2):
    """An image whose bands are the row, the column, and sums of the two: bilinear sampling keeps ramps."""
    rows, cols = np.mgrid[:height, :width].astype(np.float32)
    more = [rows + band * cols for band in range(2, bands)]
    return np.stack([rows, cols, *more], axis=-1)


def zeros(height, width):
    return np.zeros((height, width), np.uint8)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40))
def test_cells_cover_each_pixel_once(height, width, stride):
    index = tiles_of(ramp(height, width), zeros(height, width), stride)
    seen = np.zeros((height, width), int)
    cells = [index[i].cell for i in range(len(index))]
    for row, col, h, w in cells:
        seen[row : row + h, col : col + w] += 1
        assert 1 <= h <= stride
        assert 1 <= w <= stride
    assert (seen == 1).all()
    assert max(c.height for c in cells) - min(c.height for c in cells) <= 1


def test_index_finds_the_image():
    sizes = {"a": (3, 3), "b": (20, 7), "c": (9, 30)}
    images = {("d", n): (np.zeros((*s, 1), np.uint8), zeros(*s)) for n, s in sizes.items()}
    index = TileIndex(ArraySource(images), 8)
    names = [index[i].record.name for i in range(len(index))]
    assert names == ["d/a"] + ["d/b"] * 3 + ["d/c"] * 8
    with pytest.raises(IndexError):
        index[len(index)]


def test_positions_are_uniform():
    index = tiles_of(ramp(40, 33), zeros(40, 33), stride=16)
    rng = np.random.default_rng(0)
    corners = np.array(
        [
            resized_crop(index[i], rng, crop=8, **PLAIN)["image"][0, 0]
            for _ in range(800)
            for i in range(len(index))
        ]
    )
    for corner, positions in zip(corners.T, (33, 26), strict=True):
        counts = np.bincount(corner.astype(int), minlength=positions)
        assert len(counts) == positions
        assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_scale_takes_every_step_and_samples_where_it_should():
    index = tiles_of(ramp(300, 260, bands=200), zeros(300, 260), stride=300)
    seen = set()
    for seed in range(150):
        out = resized_crop(index[0], np.random.default_rng(seed), crop=40, max_class_share=1.0)["image"]
        spacing = np.diff(out[2:-2, 20, 0].astype(np.float64)).mean()
        np.testing.assert_allclose(np.diff(out[2:-2, 2:-2, 0], axis=0), spacing, atol=1e-3)
        np.testing.assert_allclose(np.diff(out[2:-2, 2:-2, 1], axis=1), spacing, atol=2e-2)  # 260 x ratio
        for band in (2, 127, 128, 199):
            np.testing.assert_allclose(out[..., band], out[..., 0] + band * out[..., 1], rtol=1e-4)
        seen.add(round(40 * spacing))
    assert seen == {round(40 / (ratio / 10)) for ratio in range(5, 21)}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(10, 90), st.integers(10, 90))
def test_image_and_label_stay_aligned(seed, height, width):
    rows, cols = np.mgrid[:height, :width]
    index = tiles_of(ramp(height, width), (rows // 8 * 16 + cols // 8).astype(np.uint8))
    rng = np.random.default_rng(seed)
    transform = Augment(24, AugmentConfig(max_class_share=1.0, vertical_flip=0.5, turns=True))
    out = transform(index[int(rng.integers(len(index)))], rng)
    image, label = out["image"], out["label"]
    assert image.shape == (24, 24, 2)
    assert label.shape == (24, 24)
    known = label != 255
    assert known.any()
    # label x * s, image (x + 0.5) * s - 0.5, as OpenCV has it: up to half a pixel apart for s from 0 to 2
    for block, coordinate in ((label // 16, image[..., 0]), (label % 16, image[..., 1])):
        assert (block[known] * 8.0 - 0.5 <= coordinate[known]).all()
        assert (coordinate[known] <= block[known] * 8.0 + 8.5).all()


def test_flips_and_turns_reach_all_eight_orientations():
    index = tiles_of(ramp(8, 8), zeros(8, 8))
    transform = Augment(8, AugmentConfig(scale=(1, 1), max_class_share=1, vertical_flip=0.5, turns=True))
    seen = {transform(index[0], np.random.default_rng(s))["image"].tobytes() for s in range(200)}
    assert len(seen) == 8
    still = Augment(8, AugmentConfig(scale=(1, 1), max_class_share=1, flip=0))
    assert {still(index[0], np.random.default_rng(s))["image"].tobytes() for s in range(20)} == {
        ramp(8, 8).tobytes()
    }


def test_a_small_image_is_padded_with_ignore():
    index = tiles_of(ramp(10, 14), zeros(10, 14))
    # shortest edge 10 to 24 wants 34 columns of 24; the longest edge may have 21, so the factor is 1.5
    out = resized_crop(index[0], np.random.default_rng(0), crop=24, scale=(1.0, 1.0), max_edge=21)
    expected = np.full((24, 24), 255)
    expected[:15, :21] = 0
    np.testing.assert_array_equal(out["label"], expected)
    np.testing.assert_allclose(np.diff(out["image"][2:13, 0, 0]), 1 / 1.5, atol=1e-5)
    np.testing.assert_array_equal(out["image"][15:], out["image"][13:4:-1])  # mirrored


def share_of_commonest(label):
    values, counts = np.unique(label[label != 255], return_counts=True)
    return counts.max() / counts.sum() if len(values) else 1.0


def test_no_class_above_the_allowed_share():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, (96, 96), np.uint8)
    label[:, :48] = 2
    label[:48, 48:72] = 255
    index = tiles_of(np.zeros((96, 96, 3), np.uint8), label)

    def shares(limit):
        return [
            share_of_commonest(
                resized_crop(index[i], np.random.default_rng(i), crop=16, max_class_share=limit)["label"]
            )
            for i in range(len(index))
        ]

    assert max(shares(0.75)) <= 0.75
    assert max(shares(1.0)) > 0.75


@pytest.mark.parametrize("only", [1, 255])
def test_an_image_of_one_class_is_taken_as_it_is(only):
    index = tiles_of(np.zeros((40, 40, 3), np.uint8), np.full((40, 40), only, np.uint8))
    out = resized_crop(index[0], np.random.default_rng(0), crop=16, **{**PLAIN, "max_class_share": 0.75})
    assert (out["label"] == only).all()


def test_the_class_share_rule_stops_after_ten_tries():
    index = tiles_of(np.zeros((40, 40, 3), np.uint8), zeros(40, 40))
    reads = []

    class Counting:
        wanted, is_targeted = None, False
        record, cell, read_image = index[0].record, index[0].cell, staticmethod(index[0].read_image)

        def read_label(self, window):
            reads.append(window)
            return index[0].read_label(window)

    resized_crop(Counting(), np.random.default_rng(0), crop=16)
    assert len(reads) == 10


def colours():
    """All greys, the corners of the colour cube, and random colours, as an image (72, 84, 3)."""
    greys = np.repeat(np.arange(256), 3).reshape(-1, 3)
    corners = np.stack(np.meshgrid(*[[0, 255]] * 3), axis=-1).reshape(-1, 3)
    others = np.random.default_rng(0).integers(0, 256, (72 * 84 - 264, 3))
    return np.concatenate([greys, corners, others]).astype(np.uint8).reshape(72, 84, 3)


def published(rgb, brightness=None, contrast=None, contrast_last=False, saturation=None, hue=None):
    """The published recipe by OpenCV: 8 bits after each step, a round trip through HSV for each colour."""

    def convert(values, factor=1.0, summand=0.0):
        return np.clip(values.astype(np.float32) * factor + summand, 0, 255).astype(np.uint8)

    if brightness is not None:
        rgb = convert(rgb, summand=brightness)
    if contrast is not None and not contrast_last:
        rgb = convert(rgb, contrast)
    if saturation is not None:
        hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = convert(hsv[..., 1], saturation)
        rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if hue is not None:
        hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
        rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrast is not None and contrast_last:
        rgb = convert(rgb, contrast)
    return rgb


@pytest.mark.parametrize("brightness", [None, -31.7, -0.4, 32.0])
@pytest.mark.parametrize(
    ("contrast", "contrast_last"), [(None, False), (0.5, False), (1.5, True), (0.93, True)]
)
@pytest.mark.parametrize(
    ("saturation", "hue"),
    [(None, None), (0.5, None), (1.5, None), (None, -18), (None, 17), (1.31, -7), (0.73, 12)],
)
def test_distortion_bit_for_bit(brightness, contrast, contrast_last, saturation, hue):
    change = Distortion(brightness, contrast, contrast_last, saturation, hue)
    np.testing.assert_array_equal(distort(colours(), change), published(colours(), *change))


def test_drawn_distortions_bit_for_bit():
    """All that a generator draws; both colours at once among it."""
    drawn = [draw_distortion(np.random.default_rng(seed)) for seed in range(100)]
    assert sum(d.saturation is not None and d.hue is not None for d in drawn) > 10
    for change in drawn:
        np.testing.assert_array_equal(distort(colours(), change), published(colours(), *change))


@pytest.mark.parametrize("delta", [-31.7, -0.4, 0.0, 17.3, 32.0])
def test_brightness(delta):
    out = distort(colours(), Distortion(brightness=delta))
    np.testing.assert_array_equal(out, np.floor(np.clip(colours() + delta, 0, 255)))


def test_hue_is_circular():
    red = np.array([[[255, 0, 0]]], np.uint8)
    below, above = distort(red, Distortion(hue=-18)), distort(red, Distortion(hue=18))
    assert np.abs(below.astype(int) - [255, 0, 153]).max() <= 1  # 324 degrees
    assert np.abs(above.astype(int) - [255, 153, 0]).max() <= 1  # 36 degrees
    violet = np.array([[[255, 0, 17]]], np.uint8)  # 356 degrees
    assert np.abs(distort(violet, Distortion(hue=10)).astype(int) - [255, 68, 0]).max() <= 1  # 16 degrees


def test_photometric_changes_only_its_bands_and_not_the_input():
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 4), np.uint8)
    before = image.copy()
    example = {"image": image, "label": zeros(6, 6)}
    changed = 0
    for seed in range(30):
        out = photometric_distortion(
            example, np.random.default_rng(seed), visible_bands(["nir", "Red", "green", "blue"])
        )
        np.testing.assert_array_equal(out["image"][..., 0], before[..., 0])
        assert out["image"].dtype == np.uint8
        changed += (out["image"] != before).any()
    np.testing.assert_array_equal(image, before)
    assert changed > 20


def test_photometric_rejects_other_types():
    with pytest.raises(UserError, match=r"augment\.photometric = True: must be False for images of type"):
        photometric_distortion({"image": np.zeros((2, 2, 3), np.float32)}, np.random.default_rng(0))
    with pytest.raises(UserError, match="red not among nir, green, blue"):
        visible_bands(("nir", "green", "blue"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": (2.0, 0.5)}, r"augment\.scale = \(2\.0, 0\.5\)"),
        ({"scale_step": 0}, r"augment\.scale_step = 0"),
        ({"max_class_share": 0}, r"augment\.max_class_share = 0"),
        ({"vertical_flip": 2}, r"augment\.vertical_flip = 2"),
    ],
)
def test_bad_settings_are_rejected(settings, message):
    with pytest.raises(UserError, match=message):
        AugmentConfig(**settings)
