"""Bands by name: found wherever they stand, never mistaken."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.sensors import SENSORS, check_wavelengths, select_bands, wavelengths
from spectralmoe_jax.errors import UserError

S2 = tuple(band.name for band in SENSORS["sentinel2"].bands)


@given(st.permutations(S2), st.lists(st.sampled_from(S2), min_size=1, max_size=13, unique=True))
def test_any_choice_is_found_in_any_order(there, wanted):
    places = select_bands("x.tif", wanted, 13, there, sensor="sentinel2")
    assert [there[place] for place in places] == wanted


@pytest.mark.parametrize(
    ("wanted", "there", "sensor", "places"),
    [
        (("red", "green", "blue"), S2, "sentinel2", (3, 2, 1)),
        (("B04", "nir"), ("Blue", "Red (665 nm)", "NIR "), "sentinel2", (1, 2)),
        (("r", "g", "b"), ("blue", "green", "red"), None, (2, 1, 0)),
        (("band 3", "band 1"), ("band 1 (418.24 Nanometers)", "band 2 (423.9)", "band 3"), "enmap", (2, 0)),
        (("nir", "red"), (None, None), None, (0, 1)),
        (("nir", "red"), ("Band 1", "band_2"), None, (0, 1)),
        (("B2", "B4"), ("blue", "green", "red", "nir"), "landsat5", (1, 3)),
    ],
)
def test_names(wanted, there, sensor, places):
    assert select_bands("x.tif", wanted, len(there), there, sensor=sensor) == places


def test_colours_order_unnamed_bands_only_where_they_are_the_ones_wanted():
    colours = ("red", "green", "blue")
    assert select_bands("x", ("blue", "red", "green"), 3, (None,) * 3, colours=colours) == (2, 0, 1)
    assert select_bands("x", ("nir", "red", "green"), 3, (None,) * 3, colours=colours) == (0, 1, 2)


def test_a_configuration_can_name_the_bands_of_a_file():
    named = ("nir", "red", "green", "blue")
    assert select_bands("x", ("red", "green", "blue"), 4, (None,) * 4, file_bands=named) == (1, 2, 3)


@pytest.mark.parametrize(
    ("wanted", "there", "options", "parts"),
    [
        (
            ("nir", "swir16"),
            ("nir", "swir22"),
            {},
            ["x.tif", "no band 'swir16'", "nir, swir22", "file_bands"],
        ),
        (("nir", "swir16"), ("nir", "swir1"), {}, ["did you mean swir1?"]),
        (("red",), ("red", "nir", "Red"), {}, ["x.tif", "2 of its bands are called red"]),
        (("red", "nir", "red"), ("red", "nir"), {}, ["config.bands", "'red' twice"]),
        (("red", "nir"), (None,) * 3, {}, ["3 bands without names", "names 2 (red, nir)"]),
        (("red",), (None,) * 3, {"file_bands": ("red", "nir")}, ["3 bands", "data.file_bands names 2"]),
        (("red",), (None,) * 2, {"file_bands": ("red", "RED")}, ["data.file_bands", "twice"]),
    ],
)
def test_mistakes_are_refused(wanted, there, options, parts):
    with pytest.raises(UserError) as error:
        select_bands("x.tif", wanted, len(there), there, **options)
    assert all(part in str(error.value) for part in parts), error.value


def test_wavelengths_are_compared():
    stated = (0.49, 0.665, 0.842)
    check_wavelengths("x.tif", ("a", "b"), (1, 2), stated, (0.66, 0.835))
    check_wavelengths("x.tif", ("b", "a"), (2, 1), stated, (0.835, 0.66))
    with pytest.raises(UserError, match=r"x\.tif: band b lies at 0\.842 um, .* to be at 0\.49 um"):
        check_wavelengths("x.tif", ("a", "b"), (1, 2), stated, (0.66, 0.49))
    with pytest.raises(UserError, match="1 entries for 2 bands"):
        check_wavelengths("x.tif", ("a", "b"), (1, 2), stated, (0.66,))


def test_a_band_without_a_stated_wavelength_is_not_compared():
    check_wavelengths("x.tif", ("a", "b"), (0, 1), (None, 0.842), (9.9, 0.842))


def test_wavelengths_may_differ_by_a_quarter_of_a_known_width_but_not_up_to_the_next_band():
    """Sentinel-2's near infrared is 106 nm wide."""
    check_wavelengths("x.tif", ("B08",), (0,), (0.85,), (0.8328,), "sentinel2")
    with pytest.raises(UserError, match=r"band B08 lies at 0\.85 um"):
        check_wavelengths("x.tif", ("B08",), (0,), (0.85,), (0.8328,))
    with pytest.raises(UserError, match=r"band a lies at 0\.606 um"):
        check_wavelengths("x.tif", ("a",), (0,), (0.606, 0.612), (0.6,))


@pytest.mark.parametrize(
    ("sensor", "count", "first", "last"),
    [
        ("orbita_ohs", 32, 0.466, 0.940),
        ("enmap", 224, 0.4182, 2.4455),
        ("sentinel2", 13, 0.4427, 2.2024),
        ("aviris", 224, 0.366, 2.496),
        ("prisma", 239, 0.4, 2.505),
    ],
)
def test_tables_span_what_is_published(sensor, count, first, last):
    centres = wavelengths([band.name for band in SENSORS[sensor].bands], sensor)
    assert len(centres) == count
    np.testing.assert_allclose((centres[0], centres[-1]), (first, last), atol=6e-4)


def test_true_colours_of_the_hyperspectral_sensors():
    for name in ("orbita_ohs", "enmap", "prisma", "aviris"):
        np.testing.assert_allclose(
            wavelengths(SENSORS[name].rgb, name), (0.665, 0.56, 0.485), atol=0.012, err_msg=name
        )
