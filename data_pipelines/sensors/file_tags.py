"""Which sensor a file says it is of, for bands that are known by number alone.

Wavelengths that stand in the band tags of a raster, as hyperspectral products and ENVI carry them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import rasterio
from rasterio.errors import RasterioError

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.sensors import Sensor, find_sensor

PLATFORM_TAGS = frozenset(
    ("spacecraft_id", "spacecraft", "spacecraft_name", "satellite", "platform", "mission", "instrument",
     "sensor", "sensor_id", "sensor_name")
)  # fmt: skip
"""Names, in lower case, of tags by which files tell what took them."""

_NUMBERED = re.compile(r"b(?:and)?[ _-]?0*(\d+)(a?)")
_OF_WIDTH = 0.5  # of a band's width, which two sensors' bands of one number may lie apart and be the same

_EDGE, _END = r"(?<![a-z0-9])", r"(?![a-z0-9])"
_SIGNS = {
    **{f"landsat{n}": rf"landsat[ -]?{n}(?!\d)|{_EDGE}l[a-z]0{n}{_END}" for n in (5, 7, 8, 9)},
    **{f"gaofen{n}": rf"gaofen[ -]?{n}(?!\d)|{_EDGE}gf[ -]?{n}{_END}" for n in (1, 2)},
    "sentinel2": rf"sentinel[ -]?2|{_EDGE}s2[abc]{_END}|{_EDGE}t\d\d[a-z]{{3}}-\d{{8}}t\d{{6}}",
    "planetscope": rf"planetscope|psscene|{_EDGE}ps2{_END}",
    "orbita_ohs": rf"orbita|{_EDGE}ohs",
    "enmap": "enmap",
    "prisma": f"prisma|{_EDGE}prs-l",
    "aviris": "aviris",
}


def stated_sensors(texts: Iterable[str]) -> set[str]:
    """The sensors that names of files or domains, or values of tags, are about."""
    joined = " ; ".join(texts).lower().replace("_", "-")
    return {name for name, sign in _SIGNS.items() if re.search(sign, joined)}


def check_numbers(
    place: str,
    bands: Sequence[str],
    channels: Sequence[int],
    descriptions: Sequence[str | None],
    sensor: str | None,
    texts: Iterable[str],
) -> None:
    """Refuses bands that were found by number where the file is of another sensor, whose numbers mean others.

    Args:
      place: what to call the file.
      bands: of the configuration. channels: their places in the file.
      descriptions: names of all bands of the file.
      sensor: what it was taken for; None for bands that were found by the names they have.
      texts: what may tell what the file is of: its name, its domain, values of its tags.

    Raises:
      UserError: a number that means another band on the sensor that the file says it is of, or one that the
        sensor does not have.
    """
    if sensor is None:
        return
    table = find_sensor(sensor)
    numbers = {number for name in table.known_as() if (number := _number(name))}
    of_file = [_number(name or "") for name in descriptions]
    if not numbers or not any(of_file[channel] for channel in channels):
        return
    remedy = f"it is read as {sensor}, correct data.sensors (as in DOMAIN=landsat8) or config.sensor"
    for number, name in zip(of_file, descriptions, strict=True):
        if number and number not in numbers:
            raise UserError(
                f"{place}: has a band {name!r}, {sensor} has none of this number, so its numbers may mean "
                f"other bands: {remedy}"
            )
    others = stated_sensors(texts)
    for other in () if sensor in others else sorted(others):
        for band, channel in zip(bands, channels, strict=True):
            number = of_file[channel]
            if number and not _same(table, find_sensor(other), number):
                raise UserError(
                    f"{place}: is of {other} by its name or tags, where {descriptions[channel]} is not "
                    f"{band}: {remedy}"
                )


def _number(name: str) -> str:
    """The number of a band that is called by nothing else ("8a" for B8A), or ""."""
    match = _NUMBERED.fullmatch(re.sub(r"\s*\([^()]*\)\s*$", "", name).strip().lower())
    return "" if match is None else "".join(match.groups())


def _same(table: Sensor, other: Sensor, number: str) -> bool:
    """Whether a number means the same band on two sensors, or nothing on the other."""
    ours, theirs = (
        next((b for b in sensor.bands if number in map(_number, (b.name, *b.aliases))), None)
        for sensor in (table, other)
    )
    if theirs is None:
        return True
    if ours is None:
        return False
    if ours.name == theirs.name and not _number(ours.name):
        return True
    return abs(ours.centre - theirs.centre) <= _OF_WIDTH * min(ours.width, theirs.width)


_PER_MICROMETRE = {"micrometers": 1.0, "micrometer": 1.0, "um": 1.0, "µm": 1.0,
                   "nanometers": 1000.0, "nanometer": 1000.0, "nm": 1000.0}  # fmt: skip
_REMEDY = "give config.model.visual.wavelengths in micrometres"


def wavelengths_of_file(path: str | os.PathLike[str]) -> tuple[float, ...]:
    """The centre of every band in micrometres, as `stated_wavelengths`.

    Raises UserError where the file cannot be read, or naming the band without a usable wavelength.
    """
    stated = stated_wavelengths(path)
    for number, centre in enumerate(stated, 1):
        if centre is None:
            raise UserError(f"{path}: band {number} has no tag `wavelength`: {_REMEDY}")
    return tuple(centre for centre in stated if centre is not None)


def stated_wavelengths(path: str | os.PathLike[str]) -> tuple[float | None, ...]:
    """The centre of each band in micrometres, None for one whose tags state none.

    Read are the tags `wavelength` and `wavelength_units`, and GDAL's `CENTRAL_WAVELENGTH_UM` in the domain
    IMAGERY. A file without units is taken to be in nanometres where its numbers are above 100.

    Raises UserError where the file cannot be read, or naming the band whose wavelength is no positive number.
    """
    try:
        with rasterio.open(path) as dataset:
            tags = [band_tags(dataset, band) for band in dataset.indexes]
    except RasterioError as problem:
        raise UserError(f"{path}: cannot be opened as an image ({problem})") from None
    return tuple(_micrometres(f"{path}: band {number}", tag) for number, tag in enumerate(tags, 1))


def stated_platforms(dataset: Any) -> tuple[str, ...]:
    """What the tags of an open file say took it: values such as "LANDSAT_8"."""
    return tuple(value for key, value in dataset.tags().items() if key.lower() in PLATFORM_TAGS)


def states_wavelengths(dataset: Any) -> bool:
    """Whether the tags of any band of an open file state its wavelength."""
    return any("wavelength" in band_tags(dataset, band) for band in dataset.indexes)


def band_tags(dataset: Any, band: int) -> dict[str, str]:
    """Tags of a band of an open file, by name in lower case; GDAL's own wavelength as if in these."""
    tags = {key.lower(): value for key, value in dataset.tags(band).items()}
    known = dataset.tags(band, ns="IMAGERY").get("CENTRAL_WAVELENGTH_UM")
    return tags if known is None else {**tags, "wavelength": known, "wavelength_units": "um"}


def _micrometres(place: str, tags: dict[str, str]) -> float | None:
    if "wavelength" not in tags:
        return None
    try:
        value = float(tags["wavelength"])
    except ValueError:
        raise UserError(f"{place} has the wavelength {tags['wavelength']!r}, no number: {_REMEDY}") from None
    if not 0 < value < float("inf"):
        raise UserError(f"{place} has the wavelength {value}, not a positive number: {_REMEDY}")
    units = tags.get("wavelength_units", "nm" if value > 100 else "um").lower()
    if units not in _PER_MICROMETRE:
        raise UserError(f"{place} has its wavelength in {units!r}: {_REMEDY}")
    return value / _PER_MICROMETRE[units]
