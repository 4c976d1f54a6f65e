"""Sensors, their bands, and which bands and wavelengths a file holds."""

from data_pipelines.sensors.band_selection import check_wavelengths, choose_bands, select_bands
from data_pipelines.sensors.file_tags import stated_wavelengths, wavelengths_of_file
from spectralmoe_jax.sensors import SENSORS, Band, Sensor, find_sensor, visible, wavelengths

__all__ = [
    "SENSORS",
    "Band",
    "Sensor",
    "check_wavelengths",
    "choose_bands",
    "find_sensor",
    "select_bands",
    "stated_wavelengths",
    "visible",
    "wavelengths",
    "wavelengths_of_file",
]
