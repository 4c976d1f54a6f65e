"""Known sensors and the wavelengths of their bands, for wavelength-aware encoders and for data pipelines.

The tables are in this package because a model whose patch embedding is generated from wavelengths is built
without any data pipeline. `data_pipelines.sensors` chooses the bands of files with them.
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
    RGB,
    SENTINEL2,
    Band,
    Sensor,
)

__all__ = [
    "SENSORS", "Band", "Sensor", "bandwidths", "find_sensor", "names_in_files", "place_of",
    "stored_reflectance", "visible", "wavelengths",
]  # fmt: skip

_LANDSAT = (LANDSAT5, LANDSAT7, LANDSAT8, LANDSAT9)
_MULTISPECTRAL = (SENTINEL2, *_LANDSAT, GAOFEN1, GAOFEN2, PLANETSCOPE, *AERIAL)
_HYPERSPECTRAL = (ORBITA_OHS, ENMAP, PRISMA, AVIRIS)
SENSORS: dict[str, Sensor] = {sensor.name: sensor for sensor in (*_MULTISPECTRAL, *_HYPERSPECTRAL, GENERIC)}
"""All sensors by name."""


def find_sensor(name: str) -> Sensor:
    """Return the sensor of a name.

    Raises:
      UserError: there is no such sensor; the message lists all.
    """
    return SENSORS[choose("config.sensor", name, SENSORS)]


def place_of(name: str, bands: Sequence[str], sensor: str | None = None) -> int | None:
    """Return the position of a band in `bands`, or None.

    Args:
      name: any name of the band on the sensor, in any case.
      bands: names of bands, likewise.
      sensor: name of the sensor whose aliases are known; default none.
    """
    known_as = {} if sensor is None else find_sensor(sensor).known_as()
    names = [known_as.get(band.lower(), band).lower() for band in bands]
    wanted = known_as.get(name.lower(), name).lower()
    return names.index(wanted) if wanted in names else None


def visible(bands: Sequence[str], sensor: str | None = None) -> tuple[int, int, int] | None:
    """Return the positions in `bands` of red, green and blue, or None.

    Args:
      bands: names of bands.
      sensor: name of the sensor; its own three display bands are used if red, green and blue are not all
        there.
    """
    triples = [RGB] if sensor is None else [RGB, find_sensor(sensor).rgb]
    for triple in triples:
        red, green, blue = (place_of(name, bands, sensor) for name in triple)
        if red is not None and green is not None and blue is not None:
            return red, green, blue
    return None


def names_in_files(bands: Sequence[str], sensor: str | None) -> tuple[str, ...]:
    """Return the names that bands have in files of a sensor, by default Sentinel-2.

    A band that the sensor does not have keeps its name.
    """
    known_as = find_sensor(sensor or SENTINEL2.name).known_as()
    return tuple(known_as.get(name.lower(), name) for name in bands)


def wavelengths(bands: Sequence[str], sensor: str = "generic") -> tuple[float, ...]:
    """Return the centres of bands in micrometres.

    Args:
      bands: names or aliases, in any case.
      sensor: name of the sensor.

    Raises:
      UserError: an unknown sensor or band; the message lists the known ones.
    """
    return tuple(band.centre for band in _bands_of(bands, sensor, "wavelength"))


def bandwidths(bands: Sequence[str], sensor: str = "generic") -> tuple[float, ...]:
    """Return the full widths at half maximum of bands in micrometres; arguments are those of `wavelengths`.

    Raises:
      UserError: as `wavelengths`.
    """
    return tuple(band.width for band in _bands_of(bands, sensor, "bandwidth"))


def _bands_of(names: Sequence[str], sensor: str, what: str) -> list[Band]:
    """Return the bands of a sensor by name, to read `what` from them."""
    table = find_sensor(sensor)
    known_as, bands = table.known_as(), {band.name: band for band in table.bands}
    for name in names:
        if name.lower() not in known_as:
            known = ", ".join("/".join((known.name, *known.aliases)) for known in table.bands)
            raise UserError(
                f"config.bands: the {what} of {name!r} is not known for the sensor {sensor} "
                f"(it has {known}): give config.sensor, or config.model.visual.{what}s in micrometres"
            )
    return [bands[known_as[name.lower()]] for name in names]


def stored_reflectance(sensor: str | None) -> tuple[float | None, float]:
    """Return scale and offset of reflectance in a sensor's files; no scale if it is not known."""
    if sensor is None:
        return None, 0.0
    found = find_sensor(sensor)
    return found.scale, found.offset
