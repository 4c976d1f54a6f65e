"""Spectral jitter and normalisation against their formulas, for any number of bands and any type."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.transforms import Jitter, draw_jitter, jitter, normalise, spectral_jitter
from spectralmoe_jax.config.schema import AugmentConfig
from spectralmoe_jax.errors import UserError

TYPES = (np.uint8, np.int16, np.uint16, np.float32)


def scene(dtype, bands=5, seed=0):
    """An image (12, 10, bands) with a corner without data."""
    image = np.random.default_rng(seed).integers(20, 200, (12, 10, bands)).astype(dtype)
    image[:3, :4] = 0
    return image


def change(bands, factor=1.0, offset=0.0, dropped=()):
    return Jitter(
        np.broadcast_to(np.float64(factor), bands), np.broadcast_to(np.float64(offset), bands),
        np.isin(np.arange(bands), dropped),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
def test_gain_is_a_factor(dtype):
    image, factors = scene(dtype), np.array([0.5, 1.0, 1.1, 0.93, 2.0])
    exact = image * factors
    if dtype != np.float32:
        exact = np.clip(np.rint(exact), 0, np.iinfo(dtype).max)
    changed = jitter(image, change(5, factors))
    assert changed.dtype == dtype
    # 16 bits go through float32, where a half may round either way
    np.testing.assert_allclose(changed, exact, atol={np.uint8: 0, np.float32: 1e-4}.get(dtype, 1))


@pytest.mark.parametrize("dtype", TYPES)
def test_offset_is_in_deviations_of_the_pixels_with_data(dtype):
    image, shifts = scene(dtype), np.array([0.5, -0.25, 0.0, 1.0, -1.0])
    valid = image.any(axis=-1)
    exact = image + shifts * image[valid].astype(np.float64).std(axis=0)
    if dtype != np.float32:
        exact = np.clip(np.rint(exact), np.iinfo(dtype).min, np.iinfo(dtype).max)
    changed = jitter(image, change(5, 1.0, shifts))
    np.testing.assert_allclose(changed[valid], exact[valid], atol=1 if dtype != np.float32 else 1e-3)
    assert (changed[~valid] == 0).all()


def test_a_dropped_band_is_its_mean():
    image = scene(np.float32)
    valid = image.any(axis=-1)
    changed = jitter(image, change(5, dropped=(1, 3)))
    np.testing.assert_allclose(
        changed[valid][:, [1, 3]], np.tile(image[valid][:, [1, 3]].mean(0), (valid.sum(), 1))
    )
    np.testing.assert_array_equal(changed[..., [0, 2, 4]], image[..., [0, 2, 4]])
    assert (changed[~valid] == 0).all()


@given(st.integers(0, 10_000), st.sampled_from([1, 3, 13, 224]))
def test_draws_stay_within_their_range(seed, bands):
    drawn = draw_jitter(np.random.default_rng(seed), bands, gain=0.1, offset=0.2, drop_bands=0.9, tilt=0.3)
    assert not drawn.dropped.all()
    assert (np.abs(drawn.offset) <= 0.2).all()
    assert (drawn.factor >= 0.9 * 0.9 * 0.7 - 1e-9).all()
    assert (drawn.factor <= 1.1 * 1.1 * 1.3 + 1e-9).all()
    tilted = draw_jitter(np.random.default_rng(seed), bands, tilt=0.3).factor
    slopes = np.diff(tilted)
    np.testing.assert_allclose(slopes, slopes[:1].repeat(len(slopes)), atol=1e-12)  # a straight line
    assert tilted.mean() == pytest.approx(1)  # about the middle band


@pytest.mark.parametrize("dtype", TYPES)
def test_the_label_and_the_input_are_unchanged(dtype):
    example = {"image": scene(dtype), "label": np.arange(120).reshape(12, 10).astype(np.uint8)}
    before = {key: array.copy() for key, array in example.items()}
    settings = {"gain": 0.2, "offset": 0.2, "drop_bands": 0.3, "tilt": 0.2}
    once, again = (spectral_jitter(example, np.random.default_rng(5), **settings) for _ in range(2))
    for key in before:
        np.testing.assert_array_equal(example[key], before[key])
    np.testing.assert_array_equal(once["label"], before["label"])
    np.testing.assert_array_equal(once["image"], again["image"])
    assert (once["image"] != before["image"]).any()
    none = spectral_jitter(example, np.random.default_rng(5), gain=0.0, offset=0.0, drop_bands=0.0, tilt=0.0)
    np.testing.assert_array_equal(none["image"], before["image"])


def test_integers_are_clipped_to_their_range():
    image = np.full((2, 2, 2), 30_000, np.int16)
    image[0, 0] = -30_000
    np.testing.assert_array_equal(jitter(image, change(2, 2.0))[..., 0], [[-32768, 32767], [32767, 32767]])
    assert (jitter(np.full((2, 2, 1), 200, np.uint8), change(1, 2.0)) == 255).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_normalisation_equals_the_models(dtype):
    """The model computes this in float32 on the device."""
    image = scene(dtype)
    mean, std = (10.0, 20.0, 30.0, 40.0, 50.0), (1.0, 2.0, 3.0, 4.0, 5.0)
    wanted = (jnp.asarray(image).astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)
    found = normalise(image, mean, std)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("key", ["gain", "offset", "drop_bands", "tilt"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_bad_settings_are_named(key, value):
    with pytest.raises(UserError, match=rf"augment\.{key} = "):
        AugmentConfig(**{key: value})
