"""Transforms against closed forms: ramps for geometry, the standard library's HSV for colours."""

import colorsys

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.sources import Arrays, TileIndex
from data_pipelines.transforms import (
    Augment,
    Distortion,
    distort,
    photometric_distortion,
    resized_crop,
    visible_bands,
)
from spectralmoe_jax.errors import UserError

PLAIN = {"scale": (1.0, 1.0), "max_class_share": 1.0}


def tiles_of(image, label, stride=16):
    return TileIndex(Arrays({("d", "i"): (image, label)}), stride)


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
    index = TileIndex(Arrays(images), 8)
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
        inner = out[2:-2, 2:-2].astype(np.float64)  # beyond the window bilinear sampling repeats the border
        spacing = np.diff(inner[:, 0, 0]).mean()
        np.testing.assert_allclose(np.diff(inner[..., 0], axis=0), spacing, atol=1e-3)
        np.testing.assert_allclose(np.diff(inner[..., 1], axis=1), spacing, atol=1e-3)
        for band in (2, 127, 128, 199):
            expected = inner[..., 0] + band * inner[..., 1]
            np.testing.assert_allclose(inner[..., band], expected, rtol=1e-4)
        # half-pixel centres: the window's centre stays the centre
        assert abs((out[19, 19, 0] + out[20, 20, 0]) % 1.0) < 1e-3
        seen.add(spacing)
    windows = {round(40 / (ratio / 10)) for ratio in range(5, 21)}
    assert {round(s * 40) for s in seen} == windows


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.integers(10, 90), st.integers(10, 90))
def test_image_and_label_stay_aligned(seed, height, width):
    rows, cols = np.mgrid[:height, :width]
    index = tiles_of(ramp(height, width), (rows // 8 * 16 + cols // 8).astype(np.uint8))
    rng = np.random.default_rng(seed)
    transform = Augment(24, max_class_share=1.0, vertical_flip=0.5, turns=True)
    out = transform(index[int(rng.integers(len(index)))], rng)
    image, label = out["image"], out["label"]
    assert image.shape == (24, 24, 2)
    assert label.shape == (24, 24)
    known = label != 255
    assert known.any()
    for block, coordinate in ((label // 16, image[..., 0]), (label % 16, image[..., 1])):
        assert (block[known] * 8.0 - 1 <= coordinate[known]).all()
        assert (coordinate[known] <= block[known] * 8.0 + 8).all()


def test_flips_and_turns_reach_all_eight_orientations():
    index = tiles_of(ramp(8, 8), zeros(8, 8))
    transform = Augment(8, scale=(1, 1), max_class_share=1, vertical_flip=0.5, turns=True)
    seen = {transform(index[0], np.random.default_rng(s))["image"].tobytes() for s in range(200)}
    assert len(seen) == 8
    still = Augment(8, scale=(1, 1), max_class_share=1, flip=0)
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


def test_the_rule_gives_up_after_ten_tries():
    index = tiles_of(np.zeros((40, 40, 3), np.uint8), zeros(40, 40))
    reads = []

    class Counting:
        wanted = None
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


@pytest.mark.parametrize("delta", [-31.7, -0.4, 0.0, 17.3, 32.0])
def test_brightness(delta):
    out = distort(colours(), Distortion(brightness=delta))
    expected = np.floor(np.clip(colours() + delta, 0, 255))
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("factor", [0.5, 0.93, 1.5])
def test_contrast(factor, last):
    out = distort(colours(), Distortion(contrast=factor, contrast_last=last))
    np.testing.assert_array_equal(out, np.floor(np.clip(colours() * np.float32(factor), 0, 255)))


def hsv_closed_form(rgb, saturation, hue):
    """RGB after HSV on the grid of half degrees and 256 saturations; all that a near tie allows, (n, 3).

    OpenCV divides through tables of 12 fractional bits, wrong by up to 0.5 / 4096 times the numerator: at
    most 255 for the saturation and 6 * 255 for the hue.
    """
    h, s, v = colorsys.rgb_to_hsv(*(int(c) / 255 for c in rgb))
    slack = 255 * 0.5 / 4096
    hues = {(round(h * 180 + e) + hue) % 180 for e in (-6 * slack, 6 * slack)}
    saturations = {round(s * 255 + e) for e in (-slack, slack)}
    saturations = {int(min(s8 * np.float32(saturation), 255)) for s8 in saturations}
    options = [colorsys.hsv_to_rgb(h8 / 180, s8 / 255, v) for h8 in hues for s8 in saturations]
    return np.round(255 * np.array(options), 9)  # 9: what doubles are sure of


def distance(rgb, options):
    return np.abs(rgb - options).max(axis=-1).min()


@pytest.mark.parametrize(
    ("saturation", "hue"), [(1.0, 0), (0.5, 0), (1.5, 0), (1.0, -18), (1.0, 17), (1.31, -7)]
)
def test_saturation_and_hue_within_one_grey_level(saturation, hue):
    before = colours()
    after = distort(before, Distortion(saturation=saturation, hue=hue))
    pairs = list(zip(before.reshape(-1, 3), after.reshape(-1, 3), strict=True))
    options = [hsv_closed_form(rgb, saturation, hue) for rgb, _ in pairs]
    assert np.mean([len(o) == 1 for o in options]) > 0.5
    assert max(distance(rgb, o) for (_, rgb), o in zip(pairs, options, strict=True)) <= 1


def test_hue_runs_around_the_circle():
    red = np.array([[[255, 0, 0]]], np.uint8)
    below, above = distort(red, Distortion(hue=-18)), distort(red, Distortion(hue=18))
    assert np.abs(below.astype(int) - [255, 0, 153]).max() <= 1  # 324 degrees
    assert np.abs(above.astype(int) - [255, 153, 0]).max() <= 1  # 36 degrees
    violet = np.array([[[255, 0, 17]]], np.uint8)  # 356 degrees
    assert np.abs(distort(violet, Distortion(hue=10)).astype(int) - [255, 68, 0]).max() <= 1  # 16 degrees


def test_contrast_before_or_after_the_colours():
    grey_blue = np.array([[[40, 90, 200]]], np.uint8)
    first = distort(grey_blue, Distortion(contrast=1.5, saturation=1.2))
    last = distort(grey_blue, Distortion(contrast=1.5, contrast_last=True, saturation=1.2))
    by_hand_first = hsv_closed_form((60, 135, 255), 1.2, 0)  # 200 x 1.5 is cut to 255
    by_hand_last = np.clip(1.5 * hsv_closed_form((40, 90, 200), 1.2, 0), 0, 255)
    assert distance(first, by_hand_first) <= 1
    assert distance(last, by_hand_last) <= 3  # one level times 1.5, and the dropped fraction
    assert (first != last).any()


def test_photometric_leaves_other_bands_and_the_input():
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


def test_photometric_refuses_other_images():
    with pytest.raises(UserError, match=r"augment\.photometric needs 8-bit"):
        photometric_distortion({"image": np.zeros((2, 2, 3), np.float32)}, np.random.default_rng(0))
    with pytest.raises(UserError, match="red not among nir, green, blue"):
        visible_bands(("nir", "green", "blue"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": 0}, r"data\.crop=0"),
        ({"scale": (2.0, 0.5)}, r"augment\.scale=\(2\.0, 0\.5\)"),
        ({"scale_step": 0}, r"augment\.scale_step=0"),
        ({"max_class_share": 0}, r"augment\.max_class_share=0"),
        ({"vertical_flip": 2}, r"augment\.vertical_flip=2"),
    ],
)
def test_augment_refuses(settings, message):
    with pytest.raises(UserError, match=message):
        Augment(**{"crop": 8, **settings})
