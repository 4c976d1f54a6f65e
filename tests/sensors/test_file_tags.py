"""Wavelengths in the tags of files."""

import numpy as np
import pytest
import rasterio

from data_pipelines.readers.raster_header import (
    read_header,
    stated_bandwidths,
    stated_wavelengths,
    wavelengths_of_file,
)
from spectralmoe_jax.errors import UserError
from tests.rasters import PLACE, write_raster


@pytest.fixture
def file(tmp_path):
    """Writes two bands whose first has these tags, and the second 0.5 um."""

    def write(**tags):
        path = write_raster(tmp_path / "x.tif", np.ones((4, 4, 2), np.uint8), **PLACE)
        with rasterio.open(path, "r+") as dataset:
            dataset.update_tags(1, **tags)
            dataset.update_tags(2, wavelength="0.5")
        return path

    return write


@pytest.mark.parametrize(
    ("tags", "centre"),
    [
        ({"wavelength": "418.24", "wavelength_units": "Nanometers"}, 0.41824),
        ({"wavelength": "0.665", "wavelength_units": "Micrometers"}, 0.665),
        ({"WAVELENGTH": "0.665", "Wavelength_Units": "um"}, 0.665),
        ({"wavelength": "11450", "wavelength_units": "nm"}, 11.45),
        ({"wavelength": "11.45"}, 11.45),  # without units: nanometres above 100
        ({"wavelength": "665"}, 0.665),
    ],
)
def test_units(file, tags, centre):
    path = file(**tags)
    np.testing.assert_allclose(stated_wavelengths(path), (centre, 0.5), rtol=1e-12)
    assert wavelengths_of_file(path) == stated_wavelengths(path)
    assert read_header(path).states_wavelengths


def test_gdal_metadata_wins_over_other_tags(file):
    path = file(wavelength="999")
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(1, ns="IMAGERY", CENTRAL_WAVELENGTH_UM="0.443")
    assert stated_wavelengths(path) == (0.443, 0.5)


@pytest.mark.parametrize(
    ("tags", "width"),
    [
        ({"wavelength": "418.24", "wavelength_units": "Nanometers", "fwhm": "6.99561"}, 0.00699561),
        ({"wavelength": "665", "fwhm": "30"}, 0.03),  # in the units of the wavelength
        ({"wavelength": "0.665", "FWHM": "0.03"}, 0.03),
        ({"fwhm": "30", "fwhm_units": "nm"}, 0.03),
        ({"wavelength": "665"}, None),
    ],
)
def test_bandwidths(file, tags, width):
    assert stated_bandwidths(file(**tags)) == (width if width is None else pytest.approx(width), None)


def test_gdal_bandwidth_beside_other_wavelengths(file):
    path = file(wavelength="665", wavelength_units="nm", fwhm="99")
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(1, ns="IMAGERY", FWHM_UM="0.03")
    assert stated_bandwidths(path) == (0.03, None)
    assert stated_wavelengths(path) == (0.665, 0.5)


def test_an_unusable_bandwidth(file):
    path = file(wavelength="665", fwhm="wide")
    with pytest.raises(UserError, match=r"band 1 has the bandwidth 'wide', no number: .*\.bandwidths in"):
        stated_bandwidths(path)
    assert stated_wavelengths(path) == (0.665, 0.5)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"wavelength": "blue"}, r"band 1 has the wavelength 'blue', no number: give config\.model\.visual"),
        ({"wavelength": "-3"}, r"band 1 has the wavelength -3\.0, not a positive number"),
        ({"wavelength": "nan"}, r"band 1 has the wavelength nan, not a positive number"),
        ({"wavelength": "inf"}, r"band 1 has the wavelength inf, not a positive number"),
        ({"wavelength": "5", "wavelength_units": "GHz"}, r"band 1 has its wavelength in 'ghz'"),
    ],
)
def test_unusable_tags(file, tags, message):
    with pytest.raises(UserError, match=rf"x\.tif: {message}"):
        stated_wavelengths(file(**tags))


def test_a_band_without_a_tag(file):
    path = file(other="x")
    assert stated_wavelengths(path) == (None, 0.5)
    with pytest.raises(UserError, match=r"x\.tif: band 1 has no tag `wavelength`"):
        wavelengths_of_file(path)


def test_files_that_are_not_images(tmp_path):
    (tmp_path / "x.tif").write_text("text")
    with pytest.raises(UserError, match=r"x\.tif: cannot be opened as an image"):
        stated_wavelengths(tmp_path / "x.tif")


@pytest.mark.parametrize("key", ["SPACECRAFT_ID", "satellite", "Platform", "SENSOR_ID"])
def test_sensor_from_tags(file, key):
    path = file()
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(**{key: "LANDSAT_8", "author": "landsat7"})
    assert read_header(path).platforms == ("LANDSAT_8",)
