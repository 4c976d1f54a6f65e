"""Known sensors, and the choice of a file's bands by the names of a configuration."""

from data_pipelines.sensors.band_selection import (
    check_wavelengths,
    choose_bands,
    is_band_name,
    mentioned_sensors,
    select_bands,
)
from spectralmoe_jax.sensors import (
    SENSORS,
    Band,
    Sensor,
    find_sensor,
    names_in_files,
    stored_reflectance,
    visible,
    wavelengths,
)

__all__ = [
    "SENSORS",
    "Band",
    "Sensor",
    "check_wavelengths",
    "choose_bands",
    "find_sensor",
    "is_band_name",
    "mentioned_sensors",
    "names_in_files",
    "select_bands",
    "stored_reflectance",
    "visible",
    "wavelengths",
]
