"""Names of bands and the sensor, from names, colours, tags, wavelengths or hundreds of bands."""

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from data_pipelines.sensors import SENSORS
from data_pipelines.survey.ambiguity import Ambiguous
from data_pipelines.survey.bands import find_bands
from spectralmoe_jax.errors import UserError
from tests.rasters import write_raster


def image(path, bands, names=(), dtype=np.uint16, **profile):
    pixels = np.random.default_rng(0).integers(1, 200, (8, 8, bands)).astype(dtype)
    return write_raster(path, pixels, names, **profile)


def found_in(path, *given, **options):
    return find_bands(path.parent, {"here": [path]}, *given, **options)


def test_names_in_the_file(tmp_path):
    names = ("B02 (490 nm)", "B03", "B8A")
    found = found_in(image(tmp_path / "a.tif", 3, names))
    assert found.names == ("B02", "B03", "B8A")
    assert (found.sensor, found.file_bands) == ("sentinel2", None)  # no other has B8A


def test_colours(tmp_path):
    found = found_in(image(tmp_path / "a.tif", 3, dtype=np.uint8, photometric="RGB"))
    assert (found.names, found.sensor, found.file_bands) == (("red", "green", "blue"), None, None)


@pytest.mark.parametrize(("count", "sensor"), [(32, "orbita_ohs"), (239, "prisma")])
def test_number_of_hyperspectral_bands(tmp_path, count, sensor):
    found = found_in(image(tmp_path / "a.tif", count))
    assert found.sensor == sensor
    assert found.names == found.file_bands == tuple(band.name for band in SENSORS[sensor].bands)


# with the sensors that have as many bands: one, several, or none
NUMBERS = {
    2: (), 4: ("gaofen1", "gaofen2", "planetscope", "aerial_rgbn"), 6: ("generic",), 7: ("landsat5",),
    8: ("landsat7",), 11: ("landsat8", "landsat9"), 13: ("sentinel2",), 31: (), 224: ("enmap", "aviris"),
}  # fmt: skip


@pytest.mark.parametrize("count", NUMBERS)
def test_a_number_that_says_nothing(tmp_path, count):
    path = image(tmp_path / "a.tif", count, photometric="MINISBLACK")
    option = "--sensor" if NUMBERS[count] else "--bands"
    with pytest.raises(Ambiguous, match=f"{count} bands without names.*--bands.*") as error:
        found_in(path)
    assert (error.value.option, error.value.choices) == (option, NUMBERS[count])
    for sensor in NUMBERS[count]:
        assert found_in(path, sensor=sensor).names == tuple(band.name for band in SENSORS[sensor].bands)
    names = tuple(f"x{number}" for number in range(count))
    found = found_in(path, names)
    assert found.names == found.file_bands == names
    with pytest.raises(UserError, match="bands"):
        found_in(path, names[1:])


def test_a_choice_of_named_bands(tmp_path):
    path = image(tmp_path / "a.tif", 4, ("blue", "green", "red", "nir"))
    found = found_in(path, ("nir", "red"))
    assert (found.names, found.file_bands) == (("nir", "red"), None)
    with pytest.raises(UserError, match="no band 'swir'"):
        found_in(path, ("nir", "swir"))


def test_an_infrared_picture(tmp_path):
    path = image(tmp_path / "a.tif", 3, dtype=np.uint8, photometric="RGB")
    found = found_in(path, ("nir", "red", "green"))
    assert found.names == found.file_bands == ("nir", "red", "green")


def test_an_alpha_with_many_values_is_ambiguous(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 4)).astype(np.uint8)
    path = write_raster(tmp_path / "a.tif", pixels, photometric="RGB", alpha="YES")
    with pytest.raises(Ambiguous, match=r"band 4 is called alpha.*--bands$"):
        found_in(path)
    pixels[..., 3] = np.where(pixels[..., 3] > 99, 255, 0)
    path = write_raster(tmp_path / "b.tif", pixels, photometric="RGB", alpha="YES")
    assert found_in(path).names == ("red", "green", "blue")
    path = write_raster(tmp_path / "c.tif", pixels[..., [3, 0, 1, 2]], alpha="no")
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [getattr(ColorInterp, name) for name in ("alpha", "red", "green", "blue")]
    assert found_in(path).names == ("red", "green", "blue")


NAMES = ("blue", "green", "red", "nir", "swir16", "swir22")


def test_sensors_by_name(tmp_path):
    domains = {name: [image(tmp_path / f"{name}_image.tif", 6, NAMES)] for name in ("landsat5", "landsat7")}
    found = find_bands(tmp_path, domains)
    assert found.sensor == "landsat5"
    assert found.sensors == {"landsat5": "landsat5", "landsat7": "landsat7"}
    domains["else"] = [image(tmp_path / "else_image.tif", 6, NAMES)]
    with pytest.raises(Ambiguous, match=r"else does not say.*--sensor$"):
        find_bands(tmp_path, domains)
    assert find_bands(tmp_path, domains, sensor="landsat5").sensors == {}


def test_sensor_by_tag_and_two_sensors(tmp_path):
    path = image(tmp_path / "a.tif", 6, NAMES)
    with rasterio.open(path, "r+") as file:
        file.update_tags(SPACECRAFT_ID="LANDSAT_8")
    assert found_in(path).sensor == "landsat8"
    renamed = path.rename(tmp_path / "landsat7.tif")
    with pytest.raises(Ambiguous, match=r"landsat7 or landsat8.*--sensor$"):
        found_in(renamed)


def test_a_sensor_without_these_bands_is_not_used(tmp_path):
    path = image(tmp_path / "sentinel2_indices.tif", 2, ("ndvi", "ndwi"))
    found = found_in(path)
    assert (found.sensor, found.sensor_origin) == (None, "not sentinel2, which has no such bands")
    with pytest.raises(UserError, match="sentinel2 has no band 'ndvi'"):
        found_in(path, sensor="sentinel2")


def test_wavelengths(tmp_path):
    """Those of a sensor tell it; others number the bands."""
    bands = SENSORS["enmap"].bands
    for shift, sensor in ((0.0, "enmap"), (0.02, None)):
        path = image(tmp_path / f"{shift}.tif", len(bands))
        with rasterio.open(path, "r+") as file:
            for number, band in enumerate(bands, 1):
                file.update_tags(number, wavelength=str(1000 * (band.centre + shift)), wavelength_units="nm")
        found = found_in(path)
        assert found.names[:2] == ("band 1", "band 2")
        assert found.sensor == sensor
        assert found.file_bands == found.names
