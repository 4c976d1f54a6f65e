"""Boundary IoU against closed forms and SciPy's erosion."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from spectralmoe_jax.evaluation.boundaries import WIDTH, BoundaryCounts


def counted(truth, prediction, classes=2):
    found = BoundaryCounts(classes)
    found.add(truth, prediction)
    return found


def square(shift=0, side=40, size=100):
    image = np.zeros((size, size), np.int64)
    image[30 : 30 + side, 30 + shift : 30 + shift + side] = 1
    return image


def test_equal_maps_and_maps_without_a_common_edge():
    np.testing.assert_array_equal(counted(square(), square()).iou, [1, 1])
    assert counted(np.ones((50, 50), int), np.zeros((50, 50), int)).iou.tolist() == [0, 0]
    assert np.isnan(counted(square(), square(), classes=3).iou[2])


def test_a_shifted_square():
    """Rings of width 3 in squares of 40, one shifted by 1: both and either in closed form."""
    assert round(WIDTH * 100 * 2**0.5) == 3
    found = counted(square(), square(1))
    ring = 40**2 - 34**2
    # rows at the top and bottom: 3 + 3 rows of 39 common pixels; sides: 2 columns in common on either side,
    # and none across, in the remaining 34 rows
    both = 6 * 39 + 34 * 4
    assert (found.both[1], found.either[1]) == (both, 2 * ring - both)


@pytest.mark.parametrize("seed", range(3))
def test_edges_are_what_erosion_takes_away(seed):
    rng = np.random.default_rng(seed)
    truth, prediction = (np.kron(rng.integers(0, 3, (6, 8)), np.ones((12, 11), int)) for _ in range(2))
    width = round(WIDTH * np.hypot(*truth.shape))
    kernel = np.ones((2 * width + 1,) * 2)
    found = counted(truth, prediction, 3)
    for number in range(3):
        edges = [mask & ~binary_erosion(mask, kernel) for mask in (truth == number, prediction == number)]
        assert found.both[number] == (edges[0] & edges[1]).sum()
        assert found.either[number] == (edges[0] | edges[1]).sum()


def test_labels_that_end_make_no_edge():
    """One class and no label beside it: all of its edges are those of the image."""
    truth = np.zeros((100, 100), int)
    truth[:, 50:] = 255
    found = counted(truth, np.zeros((100, 100), int), 1)
    assert found.either[0] == found.both[0] == 100 * 50 - 94 * 47
