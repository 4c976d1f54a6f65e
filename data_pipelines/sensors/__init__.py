"""Sensors, their bands, and wavelengths that a file states itself."""

from data_pipelines.sensors.band_tags import wavelengths_of_file
from spectralmoe_jax.sensors import SENSORS, Band, wavelengths

__all__ = ["SENSORS", "Band", "wavelengths", "wavelengths_of_file"]
