"""Sliding windows against direct evaluation: blending changes neither pixelwise nor constant scores."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectralmoe_jax.config.schema import EvaluateConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.sliding_window import (
    blending_weight,
    predict_image,
    predict_tiles,
)
from spectralmoe_jax.models.windows import window_starts


@st.composite
def window_settings(draw):
    window = draw(st.integers(1, 12))
    return EvaluateConfig(window, draw(st.integers(0, window - 1)), draw(st.integers(1, 5)))


def pixelwise(pixels):
    """Scores that depend on each pixel alone, positive."""
    values = pixels.astype(np.float64)
    return np.stack([values[..., 0] + 1, values.sum(-1) + 0.5, 300 - values[..., 1]], -1)


@given(st.integers(1, 40), st.integers(1, 40), window_settings(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_pixelwise_predictor_is_unchanged_by_blending(height, width, setting, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 2), dtype=np.uint8)
    shapes = set()

    def predict(tiles):
        shapes.add((tiles.shape, tiles.dtype))
        return pixelwise(tiles)

    blended = predict_image(image, predict, setting)
    np.testing.assert_allclose(blended, pixelwise(image), rtol=1e-5)
    size = setting.window
    assert shapes == {((setting.batch_size, size, size, 2), np.dtype(np.uint8))}


@given(st.integers(1, 30), st.integers(1, 30), window_settings())
@settings(max_examples=30, deadline=None)
def test_constant_scores_stay_constant(height, width, setting):
    scores = np.array([0.2, 0.7, 0.1], np.float32)
    blended = predict_image(
        np.zeros((height, width, 1), np.uint8),
        lambda tiles: np.broadcast_to(scores, (*tiles.shape[:3], 3)),
        setting,
    )
    np.testing.assert_allclose(blended, np.broadcast_to(scores, (height, width, 3)), rtol=1e-5)


@given(st.integers(1, 200), window_settings())
@settings(max_examples=60, deadline=None)
def test_windows_cover_every_pixel_inside_the_image(length, setting):
    size = setting.window
    starts = window_starts(length, size, setting.overlap)
    covered = {pixel for start in starts for pixel in range(start, start + size)}
    assert covered >= set(range(length))
    assert starts == sorted(set(starts))
    assert max(starts) + size <= max(length, size)
    assert all(after <= before + size - setting.overlap for before, after in itertools.pairwise(starts))


@pytest.mark.parametrize("window", [1, 2, 7, 8])
def test_blending_weight_is_a_positive_symmetric_pyramid(window):
    weight = blending_weight(window)
    assert weight.shape == (window, window)
    assert weight.min() > 0
    assert weight.max() <= 1
    for turned in (weight[::-1], weight[:, ::-1], weight.T):
        np.testing.assert_allclose(weight, turned, rtol=1e-5)
    assert (np.diff(weight[window // 2, : (window + 1) // 2]) > 0).all()


def test_batches_are_always_full_and_in_order():
    sizes = []

    def predict(tiles):
        sizes.append(len(tiles))
        return tiles + 100

    tiles = [((i, 0), np.full((1, 1, 1), i)) for i in range(7)]
    got = list(predict_tiles(tiles, predict, 3))
    assert [place for place, _ in got] == [(i, 0) for i in range(7)]
    assert [int(scores.item()) for _, scores in got] == list(range(100, 107))
    assert sizes == [3, 3, 3]


@pytest.mark.parametrize(
    ("arguments", "key"),
    [((0, 0), "window"), ((4, 4), "overlap"), ((4, -1), "overlap"), ((4, 0, 0), "batch_size")],
)
def test_bad_settings_name_the_key(arguments, key):
    with pytest.raises(UserError, match=rf"config\.evaluate\.{key}"):
        EvaluateConfig(*arguments)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_scores_are_rejected(bad):
    """argmax would turn them into a class like any other."""

    def predict(tiles):
        scores = pixelwise(tiles)
        scores[-1, 0, 0, 1] = bad
        return scores

    with pytest.raises(UserError, match="not finite"):
        predict_image(np.zeros((9, 9, 2), np.uint8), predict, EvaluateConfig(4, 1, 2))
