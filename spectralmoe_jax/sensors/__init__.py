"""Sensors and the wavelengths of their bands, for encoders that ask for them and pipelines that read them.

The tables lie here, below the models, because a model with generated patch embeddings needs wavelengths and
is built without any pipeline; `data_pipelines.sensors` adds what concerns files.
"""

from __future__ import annotations

from collections.abc import Sequence

from spectralmoe_jax.errors import UserError, choose
from spectralmoe_jax.sensors.band_tables import (
    AERIAL,
    AVIRIS,
    ENMAP,
    GAOFEN1,
    GAOFEN2,
    GENERIC,
    LANDSAT5,
    LANDSAT7,
    LANDSAT8,
    LANDSAT9,
    ORBITA_OHS,
    PLANETSCOPE,
    PRISMA,
    SENTINEL2,
)
from spectralmoe_jax.sensors.bands import Band, Sensor

__all__ = ["SENSORS", "Band", "Sensor", "find_sensor", "place_of", "visible", "wavelengths"]

_ALL = (
    SENTINEL2, LANDSAT5, LANDSAT7, LANDSAT8, LANDSAT9, GAOFEN1, GAOFEN2, PLANETSCOPE, *AERIAL,
    ORBITA_OHS, ENMAP, PRISMA, AVIRIS, GENERIC,
)  # fmt: skip
_RGB = ("red", "green", "blue")
SENSORS: dict[str, Sensor] = {sensor.name: sensor for sensor in _ALL}


def find_sensor(name: str) -> Sensor:
    """The sensor of `config.sensor`. Raises UserError listing what there is."""
    return SENSORS[choose("config.sensor", name, SENSORS)]


def place_of(name: str, bands: Sequence[str], sensor: str | None = None) -> int | None:
    """Where in `bands` a band is, by any of its names on `sensor` in any case; None where it is not."""
    known_as = {} if sensor is None else find_sensor(sensor).known_as()
    names = [known_as.get(band.lower(), band).lower() for band in bands]
    wanted = known_as.get(name.lower(), name).lower()
    return names.index(wanted) if wanted in names else None


def visible(bands: Sequence[str], sensor: str | None = None) -> tuple[int, int, int] | None:
    """Where in `bands` red, green and blue are: by these names, or else the three that show the sensor.

    None where neither are all there.
    """
    triples = [_RGB] if sensor is None else [_RGB, find_sensor(sensor).rgb]
    for triple in triples:
        red, green, blue = (place_of(name, bands, sensor) for name in triple)
        if red is not None and green is not None and blue is not None:
            return red, green, blue
    return None


def wavelengths(bands: Sequence[str], sensor: str = "generic") -> tuple[float, ...]:
    """Centres of `bands` in micrometres, in their order; names and aliases in any case.

    Raises UserError naming an unknown sensor or band, and what is known.
    """
    table = find_sensor(sensor)
    known_as = table.known_as()
    centres = {band.name: band.centre for band in table.bands}
    for band in bands:
        if band.lower() not in known_as:
            known = ", ".join("/".join((known.name, *known.aliases)) for known in table.bands)
            raise UserError(
                f"config.bands: the wavelength of {band!r} is not known for the sensor {sensor} "
                f"(it has {known}): give config.sensor, or config.model.visual.wavelengths in micrometres"
            )
    return tuple(centres[known_as[band.lower()]] for band in bands)
