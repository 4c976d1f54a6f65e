"""A resized crop against OpenCV: the whole image resized, then cut."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.records import ArraySource
from data_pipelines.records import crop as cut
from data_pipelines.tiles.tile_index import TileIndex
from data_pipelines.transforms import resized_crop
from data_pipelines.transforms.geometry import Side, resized_image, resized_label

CROP = 64
RATIOS = [n / 10 for n in range(5, 21)]


def noise(height, width, bands=3, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, bands)).astype(dtype)


def natural(height, width):
    """Smooth fields with sharp edges, as a photograph has."""
    rng = np.random.default_rng(1)
    field = cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), 5)
    image = 128 + 600 * field + 80 * (field[..., ::-1] > 0.02)
    return np.clip(image, 0, 255).astype(np.uint8)


def published(image, label, size):
    """mmcv's Resize: both whole, to (height, width)."""
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return image, cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)


def drawn(image, label, ratio, seed):
    source = ArraySource({("d", "i"): (image, label)})
    tile = TileIndex(source, max(label.shape))[0]
    rng = np.random.default_rng(seed)
    return resized_crop(tile, rng, crop=CROP, scale=(ratio, ratio), max_edge=10_000, max_class_share=1.0)


def corner(image, label, size, ratio, seed):
    """Where the crop of a seed lies: read off an image that states its own coordinates."""
    rows, cols = np.mgrid[: label.shape[0], : label.shape[1]].astype(np.float32)
    ours = drawn(np.stack([rows, cols], axis=-1), label, ratio, seed)["image"]
    middle = [min(CROP, side) // 2 for side in size]
    places = (ours[middle[0], middle[1]] + 0.5) * np.array(size) / label.shape - 0.5
    found = np.rint(places).astype(int)
    np.testing.assert_allclose(places, found, atol=2e-3)
    return found - middle


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("shape", [(64, 64), (64, 77), (97, 64), (201, 143), (41, 64)])
@pytest.mark.parametrize("make", [noise, natural])
def test_a_resized_crop_equals_a_crop_of_the_resized_image(make, shape, ratio):
    image = make(*shape)
    label = np.random.default_rng(2).integers(0, 200, shape, np.uint8)
    short = int(ratio * CROP + 1e-6)
    factor = short / min(min(shape), CROP)
    size = tuple(int(side * factor + 0.5) for side in shape)
    whole, whole_label = published(image, label, size)
    for seed in range(4):
        ours = drawn(image, label, ratio, seed)
        top, left = corner(image, label, size, ratio, seed)
        assert (top >= 0) & (left >= 0)
        expected = whole[top : top + CROP, left : left + CROP]
        expected_label = whole_label[top : top + CROP, left : left + CROP]
        height, width = expected_label.shape
        assert (height, width) == tuple(min(CROP, side) for side in size)
        np.testing.assert_array_equal(ours["label"][:height, :width], expected_label)
        assert np.abs(ours["image"][:height, :width].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("ratio", RATIOS)
def test_far_inside_a_large_image(ratio, dtype):
    """Where OpenCV would have to resize far more than the part, and the image is not read for it."""
    image = noise(2003, 611, 2, dtype)
    size = tuple(int(side * ratio + 0.5) for side in image.shape[:2])
    whole, whole_label = published(image, image[..., 0].astype(np.uint8), size)
    reads = []

    def read(window):
        reads.append(window)
        return cut(image, window)

    for row, col in [(size[0] - CROP, size[1] - CROP), (size[0] // 2 + 1, size[1] // 3), (7, 150)]:
        rows, cols = Side(2003, size[0], row, CROP), Side(611, size[1], col, CROP)
        part = resized_image(read, rows, cols)
        expected = whole[row : row + CROP, col : col + CROP]
        assert part.dtype == dtype
        assert np.abs(part.astype(np.float64) - expected).max() <= (1 if dtype != np.float32 else 0.02)
        label = resized_label(lambda window: cut(image[..., 0], window), rows, cols)
        np.testing.assert_array_equal(label, whole_label[row : row + CROP, col : col + CROP])
    assert max(window.height for window in reads) <= 2 * CROP / ratio + 3


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_labels_of_any_size_bit_for_bit(data):
    source = data.draw(st.integers(1, 900))
    resized = data.draw(st.integers(max(1, source // 3), source * 3))
    start = data.draw(st.integers(0, resized - 1))
    length = data.draw(st.integers(1, resized - start))
    column = np.arange(source, dtype=np.uint16)[:, None]
    whole = cv2.resize(column, (1, resized), interpolation=cv2.INTER_NEAREST)
    side = Side(source, resized, start, length)
    part = resized_label(lambda window: cut(column, window), side, Side(1, 1, 0, 1))
    np.testing.assert_array_equal(part, whole[start : start + length])


def test_more_bands_than_opencv_supports():
    image = noise(40, 50, 200)
    rows, cols = Side(40, 61, 7, 50), Side(50, 77, 20, 50)
    part = resized_image(lambda window: cut(image, window), rows, cols)
    for band in (0, 127, 128, 199):
        whole = cv2.resize(image[..., band], (77, 61), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(part[..., band], whole[7:57, 20:70])


def test_a_real_photograph(shared_data):
    path = sorted((shared_data / "dubai/tile_1/images").glob("*.jpg"))[0]
    image = cv2.imread(str(path))[:512, :512]
    for resized in (307, 563, 614, 870, 1024):
        whole = cv2.resize(image, (resized, resized), interpolation=cv2.INTER_LINEAR)
        length = min(512, resized)
        for start in {0, (resized - length) // 3, resized - length}:
            rows = Side(512, resized, start, length)
            part = resized_image(lambda window: cut(image, window), rows, rows)
            expected = whole[start : start + length, start : start + length]
            assert np.abs(part.astype(int) - expected).max() <= 1
