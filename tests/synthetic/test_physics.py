"""Spectra, sensors and light against closed forms."""

import numpy as np
import pytest

from data_pipelines.synthetic.render import Sun, cast_shadow, haze, shading, skylight
from data_pipelines.synthetic.sensor_model import (
    SENSOR_A,
    SENSOR_B,
    WAVELENGTHS,
    Band,
    Sensor,
    material_names,
    perturbations,
    spectrum,
)

SENSORS = pytest.mark.parametrize("sensor", [SENSOR_A, SENSOR_B], ids=lambda s: s.name)


def at(values: np.ndarray, wavelength: float) -> float:
    return float(np.interp(wavelength, WAVELENGTHS, values))


def ndvi(sensor: Sensor, material: str) -> float:
    _, _, red, nir = sensor.band_reflectance(spectrum(material))
    return (nir - red) / (nir + red)


def test_grid_covers_the_solar_range_evenly():
    np.testing.assert_allclose(WAVELENGTHS[[0, -1]], (0.4, 2.4))
    np.testing.assert_allclose(np.diff(WAVELENGTHS), 0.01)


@pytest.mark.parametrize("material", material_names())
def test_reflectance_is_between_0_and_1(material):
    values = spectrum(material)
    assert values.shape == WAVELENGTHS.shape
    assert values.min() >= 0
    assert values.max() <= 1


@pytest.mark.parametrize("leaf", ["crop", "grass", "broadleaf", "conifer"])
def test_leaves_have_chlorophyll_the_red_edge_and_water_bands(leaf):
    values = spectrum(leaf)
    assert at(values, 0.55) > 1.3 * at(values, 0.45)
    assert at(values, 0.55) > 1.3 * at(values, 0.67)
    edge = WAVELENGTHS[np.argmax(np.gradient(values))]
    assert 0.69 <= edge <= 0.76
    for band, shoulder in ((1.45, 1.28), (1.45, 1.65), (1.95, 1.80), (1.95, 2.20)):
        assert at(values, band) < 0.75 * at(values, shoulder)


@pytest.mark.parametrize("soil", ["brown soil", "red soil", "sand"])
def test_soils_rise_to_the_near_infrared(soil):
    assert (np.diff(spectrum(soil)[WAVELENGTHS <= 1.3]) >= -1e-4).all()


@pytest.mark.parametrize("water", ["clear water", "turbid water"])
def test_water_is_dark_beyond_the_visible(water):
    assert spectrum(water)[WAVELENGTHS > 1.0].max() < 0.01 < at(spectrum(water), 0.5)


@SENSORS
def test_vegetation_index_orders_plants_soil_water(sensor):
    for plant in ("crop", "grass", "broadleaf", "conifer"):
        for soil in ("brown soil", "red soil", "sand"):
            assert ndvi(sensor, plant) > ndvi(sensor, soil) + 0.2
            assert ndvi(sensor, soil) > 0.05 > 0 > ndvi(sensor, "clear water")


@SENSORS
def test_flat_reflectance_passes_every_band_unchanged(sensor):
    flat = np.full((5, WAVELENGTHS.size), 0.37)
    np.testing.assert_allclose(sensor.band_reflectance(flat), 0.37, rtol=1e-12)


def test_symmetric_band_sees_a_sloping_spectrum_at_its_centre():
    sensor = Sensor("test", (Band("red", 0.66, 0.05), Band("swir", 1.61, 0.09)), blur=0, noise=0)
    np.testing.assert_allclose(sensor.band_reflectance(0.2 * WAVELENGTHS), (0.132, 0.322), rtol=1e-4)


def test_response_falls_to_half_at_half_the_width():
    (response,) = Sensor("test", (Band("nir", 0.80, 0.10),), blur=0, noise=0).responses()
    assert at(response, 0.75) == pytest.approx(at(response, 0.80) / 2, rel=1e-9)
    assert at(response, 0.85) == pytest.approx(at(response, 0.80) / 2, rel=1e-9)


def test_calibration_and_noise():
    bands = (Band("red", 0.66, 0.05, gain=1.2, offset=0.01),)
    truth = np.full((300, 300, 1), 0.18, np.float32)
    clean = Sensor("clean", bands, blur=0, noise=0).measure(truth, np.random.default_rng(0))
    np.testing.assert_allclose(clean, 1.2 * 0.18 + 0.01, rtol=1e-6)
    noisy = Sensor("noisy", bands, blur=0, noise=0.01).measure(truth, np.random.default_rng(0))
    assert noisy.mean() == pytest.approx(1.2 * 0.18 + 0.01, abs=2e-4)
    assert noisy.std() == pytest.approx(1.2 * 0.01, rel=0.02)


def test_perturbations_have_the_given_spread_and_are_smooth():
    factors = np.log(perturbations(4000, np.random.default_rng(0), brightness=0.1, shape=0.05))
    knots = factors[:, ::25]
    np.testing.assert_allclose(knots.std(axis=0), np.hypot(0.1, 0.05), rtol=0.06)
    np.testing.assert_allclose(factors.mean(axis=0), 0, atol=0.01)
    assert np.abs(np.diff(factors)).max() < 0.06


@pytest.mark.parametrize("azimuth", [0, 90, 180, 270, 135, 200, 325])
@pytest.mark.parametrize("elevation", [25, 45, 60])
def test_shadow_points_away_from_the_sun_and_ends_where_trigonometry_says(azimuth, elevation):
    spacing, tall = 0.5, 12.0
    height = np.zeros((201, 201), np.float32)
    height[98:103, 98:103] = tall
    shadow = cast_shadow(height, Sun(azimuth, elevation), spacing)
    rows, cols = np.nonzero(shadow)
    north, east = (100 - rows) * spacing, (cols - 100) * spacing
    away = np.deg2rad(azimuth + 180)
    along = north * np.cos(away) + east * np.sin(away)
    aside = -north * np.sin(away) + east * np.cos(away)
    # The tower reaches at most 2 * sqrt(2) pixels from its middle; one more pixel for the raster.
    reach, slack = tall / np.tan(np.deg2rad(elevation)), (2 * np.sqrt(2) + 1) * spacing
    assert along.min() > 0
    assert reach - spacing <= along.max() <= reach + slack
    assert np.abs(aside).max() <= slack


def test_no_shadow_on_level_ground_nor_on_gentle_slopes():
    slope = np.add.outer(np.arange(80.0), np.arange(80.0)) * 0.1
    for azimuth in range(0, 360, 45):
        assert not cast_shadow(slope * 0, Sun(azimuth, 30)).any()
        assert not cast_shadow(slope, Sun(azimuth, 30)).any()


@pytest.mark.parametrize("tilt", [-20, 0, 15])
def test_slopes_are_lit_by_the_cosine_of_incidence(tilt):
    """Tilted by t towards the sun, ground gets sin(elevation + t) / sin(elevation) of its level light."""
    north = -np.arange(40.0)[:, None] * np.ones(40)
    height = -np.tan(np.deg2rad(tilt)) * north  # the sun in the north, the ground falls towards it
    lit = shading(height, Sun(azimuth=0, elevation=40))
    expected = np.sin(np.deg2rad(40 + tilt)) / np.sin(np.deg2rad(40))
    np.testing.assert_allclose(lit, expected, rtol=1e-5)


def test_sky_is_blue_and_haze_is_worst_in_the_blue():
    path, passes = haze(0.04)
    assert at(path, 0.5) == pytest.approx(0.04)
    assert (np.diff(path) < 0).all()
    assert (np.diff(passes) > 0).all()
    assert passes.min() > 0.9
    assert passes.max() < 1
    assert at(skylight(), 0.45) > 2 * at(skylight(), 0.85)
    clear_path, clear_passes = haze(0.0)
    assert not clear_path.any()
    assert (clear_passes == 1).all()
