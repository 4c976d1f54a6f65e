"""Bands by name, in files of any order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.sensors import SENSORS, check_wavelengths, choose_bands, select_bands, wavelengths
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
def test_band_names(wanted, there, sensor, places):
    assert select_bands("x.tif", wanted, len(there), there, sensor=sensor) == places


def test_colours_order_unnamed_bands_only_where_they_are_the_ones_wanted():
    colours = ("red", "green", "blue")
    assert select_bands("x", ("blue", "red", "green"), 3, (None,) * 3, colours=colours) == (2, 0, 1)
    assert select_bands("x", ("nir", "red", "green"), 3, (None,) * 3, colours=colours) == (0, 1, 2)


RGB = ("red", "green", "blue")


@pytest.mark.parametrize(
    ("wanted", "colours", "places"),
    [
        (("nir", *RGB), (*RGB, "undefined"), (3, 0, 1, 2)),
        ((*RGB, "nir"), (*RGB, "undefined"), (0, 1, 2, 3)),
        (("blue", "nir", "green", "red"), ("gray", "blue", "green", "red"), (1, 0, 2, 3)),
        ((*RGB, "nir"), (*RGB, "alpha"), (0, 1, 2, 3)),  # GDAL says so of any four bands of 8 bits
        ((*RGB, "nir", "swir16"), (*RGB, "undefined", "undefined"), (0, 1, 2, 3, 4)),
        (("nir", "red", "green", "swir16"), (*RGB, "undefined"), (0, 1, 2, 3)),  # not all three are wanted
    ],
)
def test_colours_beside_other_bands(wanted, colours, places):
    assert select_bands("x", wanted, len(colours), (None,) * len(colours), colours=colours) == places
    if "nir" in wanted and "swir16" not in wanted:  # and by the names of a sensor
        renamed = tuple({"red": "B04", "green": "B03", "blue": "B02", "nir": "B08"}[name] for name in wanted)
        chosen = select_bands("x", renamed, 4, (None,) * 4, colours=colours, sensor="sentinel2")
        assert chosen == places


@pytest.mark.parametrize(
    ("wanted", "colours"),
    [
        (("nir", *RGB), (*RGB, "alpha")),
        (("nir", *RGB, "swir16"), (*RGB, "undefined", "undefined")),
        (("blue", "green", "red", "nir", "swir16"), (*RGB, "undefined", "undefined")),
    ],
)
def test_contradicting_colours_are_rejected(wanted, colours):
    with pytest.raises(UserError, match=r"x\.tif: says that its bands are red, green, .* data\.file_bands"):
        select_bands("x.tif", wanted, len(colours), (None,) * len(colours), colours=colours)
    named = {"file_bands": wanted, "colours": colours}
    assert select_bands("x.tif", wanted, len(colours), (None,) * len(colours), **named) == tuple(
        range(len(wanted))
    )


def test_bands_taken_by_position_are_reported_once(caplog):
    for place in ("one.tif", "two.tif"):
        select_bands(place, ("up", "down"), 2, (None, None))
        select_bands(place, RGB, 3, (None,) * 3, colours=RGB)
    told = [entry.getMessage() for entry in caplog.records]
    assert told == ["one.tif and others like it do not name their bands: they are taken to be up, down, in "
                    "this order"]  # fmt: skip


@pytest.mark.parametrize(
    ("descriptions", "colours", "file_bands", "wanted", "found"),
    [
        ((None,) * 4, (*RGB, "alpha"), None, RGB, ((0, 1, 2), (3,))),
        ((*RGB, "alpha"), (*RGB, "alpha"), None, ("blue", "red"), ((2, 0), (3,))),
        ((*RGB, None), (*RGB, "alpha"), None, RGB, ((0, 1, 2), (3,))),
        ((*RGB, "nir"), (*RGB, "alpha"), None, RGB, ((0, 1, 2), ())),  # it has another name
        ((None,) * 4, (*RGB, "alpha"), (*RGB, "nir"), ("nir", "red"), ((3, 0), ())),
        ((None,) * 4, (*RGB, "alpha"), (*RGB, "nir"), ("blue", "red"), ((2, 0), ())),
        ((None,) * 4, (*RGB, "alpha"), None, (*RGB, "nir"), ((0, 1, 2, 3), ())),
        ((None, None), ("gray", "alpha"), None, ("pan",), ((0,), (1,))),
        ((None,) * 3, RGB, None, RGB, ((0, 1, 2), ())),
        ((None,) * 4, ("alpha", *RGB), None, RGB, ((1, 2, 3), (0,))),
        ((None,) * 5, (*RGB, "alpha", "undefined"), None, (*RGB, "nir"), ((0, 1, 2, 4), (3,))),
        ((None,) * 5, (*RGB, "undefined", "alpha"), (*RGB, "nir"), ("nir",), ((3,), (4,))),
        ((None,) * 4, (*RGB, "alpha"), (*RGB, "alpha"), RGB, ((0, 1, 2), (3,))),
        ((None,) * 4, (*RGB, "alpha"), ("nir", "red", "green", "A"), ("red", "nir"), ((1, 0), (3,))),
        ((None,) * 4, (*RGB, "alpha"), (*RGB, "alpha"), ("alpha",), ((3,), ())),  # wanted as a band
    ],
)
def test_an_alpha_band_is_not_a_band(descriptions, colours, file_bands, wanted, found):
    assert choose_bands("x", wanted, descriptions, colours, file_bands=file_bands) == found


LANDSAT = ("blue", "green", "red", "nir", "swir16", "swir22")
SEVEN = tuple(f"B{number}" for number in range(1, 8))


@pytest.mark.parametrize(
    ("texts", "sensor", "places"),
    [
        (("scene",), "landsat5", (0, 1, 2, 3, 4, 6)),  # nothing is said
        (("landsat5_image",), "landsat5", (0, 1, 2, 3, 4, 6)),
        (("LT05_L2SP_193023",), "landsat7", (0, 1, 2, 3, 4, 6)),  # the same numbers
        (("landsat8_image",), "landsat8", (1, 2, 3, 4, 5, 6)),
        (("x", "LANDSAT_9"), "landsat8", (1, 2, 3, 4, 5, 6)),
        (("landsat5 and landsat8",), "landsat5", (0, 1, 2, 3, 4, 6)),
    ],
)
def test_band_numbers_follow_the_sensor(texts, sensor, places):
    found = choose_bands("x", LANDSAT, SEVEN, ("gray",) * 7, sensor=sensor, texts=texts)
    assert found == (places, ())


@pytest.mark.parametrize(
    ("texts", "sensor", "there", "parts"),
    [
        (
            ("landsat8_image", "landsat8"),
            "landsat5",
            SEVEN,
            ["is of landsat8", "B1 is not blue", "data.sensors"],
        ),
        (("scene", "LANDSAT_8"), "landsat7", SEVEN, ["is of landsat8"]),
        (("LC09_L2SP_193023_20220101",), "landsat5", SEVEN, ["is of landsat9"]),
        (("LE07_x",), "landsat8", SEVEN, ["is of landsat7"]),
        (("S2A_MSIL2A",), "landsat5", SEVEN, ["is of sentinel2"]),
        (("scene",), "landsat5", (*SEVEN, "B10"), ["has a band 'B10', landsat5 has none of this number"]),
    ],
)
def test_band_numbers_of_another_sensor_are_rejected(texts, sensor, there, parts):
    options = {"sensor": sensor, "texts": texts}
    with pytest.raises(UserError) as error:
        choose_bands("x.tif", LANDSAT, there, ("gray",) * len(there), **options)
    assert all(part in str(error.value) for part in ["x.tif: ", *parts]), error.value
    names = ("blue", "green", "red", "nir", "swir16", "thermal", "swir22", "pan")[: len(there)]
    named = choose_bands("x.tif", LANDSAT, names, ("gray",) * len(there), **options)  # not by numbers
    assert named == ((0, 1, 2, 3, 4, 6), ())


@pytest.mark.parametrize("other", ["prisma", "aviris"])
def test_numbers_of_spectrometers_are_not_names(other):
    there = tuple(f"band {number}" for number in range(1, 225))
    chosen = choose_bands("x", ("band 47",), there, ("gray",) * 224, sensor="enmap", texts=("enmap_x",))
    assert chosen == ((46,), ())
    with pytest.raises(UserError, match=f"is of {other}"):
        choose_bands("x", ("band 47",), there, ("gray",) * 224, sensor="enmap", texts=(f"{other}_x",))


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
def test_mistakes_are_rejected(wanted, there, options, parts):
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


def test_tolerance_of_wavelengths():
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
def test_tables_span_the_published_range(sensor, count, first, last):
    centres = wavelengths([band.name for band in SENSORS[sensor].bands], sensor)
    assert len(centres) == count
    np.testing.assert_allclose((centres[0], centres[-1]), (first, last), atol=6e-4)


def test_true_colours_of_the_hyperspectral_sensors():
    for name in ("orbita_ohs", "enmap", "prisma", "aviris"):
        np.testing.assert_allclose(
            wavelengths(SENSORS[name].rgb, name), (0.665, 0.56, 0.485), atol=0.012, err_msg=name
        )


@pytest.mark.parametrize(
    ("there", "file_bands", "sensor", "message"),
    [
        (
            ("red", "nir", None),
            ("nir", "red", "swir16"),
            None,
            "its band 1 is called 'red', .* calls it 'nir'",
        ),
        (("B04", "x", "y"), ("B03", "B04", "B08"), "sentinel2", "its band 1 is called 'B04', .* it 'B03'"),
        (
            ("B04", "x", "y"),
            ("green", "red", "nir"),
            "sentinel2",
            "is called 'B04', .* it 'green'",
        ),
    ],
)
def test_names_that_contradict_those_of_the_file(there, file_bands, sensor, message):
    """A name of the file's that stands at another place of data.file_bands; one that is not there is free."""
    with pytest.raises(UserError, match=rf"x\.tif: .*{message}: correct data\.file_bands, or leave it out"):
        select_bands("x.tif", file_bands[:1], 3, there, sensor=sensor, file_bands=file_bands)
    renamed = ("red", "edge", "other")
    assert select_bands("x.tif", ("edge",), 3, ("Band A", "Band B", None), file_bands=renamed) == (1,)


def test_files_that_name_the_bands_need_no_other_names():
    """data.file_bands is for those among them that do not, and have as many bands."""
    named = {"file_bands": ("nir", "red", "green")}
    assert select_bands("x.tif", ("red", "nir"), 2, ("red", "nir"), **named) == (0, 1)
    with pytest.raises(UserError, match=r"x\.tif: 2 bands, data\.file_bands names 3: name them all"):
        select_bands("x.tif", ("red", "nir"), 2, (None, None), **named)
