"""Names of the bands of images and their sensor, from names, tags, wavelengths or hundreds of bands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.readers.file_records import find_channels
from data_pipelines.readers.raster_file import read_values
from data_pipelines.readers.raster_header import Header, read_header, stated_wavelengths
from data_pipelines.sensors import SENSORS, find_sensor, is_band_name, mentioned_sensors
from data_pipelines.survey.ambiguity import Ambiguous
from spectralmoe_jax.errors import UserError

_COLOURS = ("red", "green", "blue")
_HYPERSPECTRAL = 30  # bands beyond which their number alone tells a sensor
_CLOSE = 0.005  # um, largest difference between the wavelengths of a file and those of its sensor


@dataclass(frozen=True)
class Bands:
    """Bands of the images of a folder.

    Attributes:
      names: names of the bands, in the order of the files.
      file_bands: the same where the files do not have these names; None where they do.
      sensor: sensor of the images; None if it is not known.
      sensors: sensor of each domain where these differ.
      origin: where the names come from, in words.
      sensor_origin: where the sensor comes from.
    """

    names: tuple[str, ...]
    file_bands: tuple[str, ...] | None
    sensor: str | None
    sensors: Mapping[str, str]
    origin: str
    sensor_origin: str


def find_bands(
    root: Path, domains: Mapping[str, Sequence[Path]], names: Sequence[str] = (), sensor: str = ""
) -> Bands:
    """Find names of bands, and the sensor.

    Args:
      root: the folder, whose name may mention a sensor.
      domains: images of each domain, those to train on first.
      names: names of the bands to use, or of all bands of a file in their order; empty to find them.
      sensor: name of the sensor; empty to find it.

    Raises:
      Ambiguous: the names of the bands cannot be told, or several sensors can be meant.
      UserError: bands or sensor do not fit the files.
    """
    first = next(iter(domains.values()))[0]
    header = read_header(first)
    if sensor:
        find_sensor(sensor)
        sensors, sensor_origin = dict.fromkeys(domains, sensor), "as given"
    else:
        sensors, sensor_origin = _mentioned(root, domains)
    chosen = next(iter(sensors.values()), None)
    if chosen is None and header.states_wavelengths and (found := _by_wavelengths(first)):
        sensors, sensor_origin = dict.fromkeys(domains, found), "by the wavelengths in the files"
        chosen = found
    if chosen is None and not names and (found := _by_count(header)):
        sensors, sensor_origin = dict.fromkeys(domains, found), f"the one with {header.count} bands"
        chosen = found
    alpha = _alpha(first, header)
    held = [place for place in range(header.count) if place not in alpha]
    own, file_bands, origin = _names(first, header, held, tuple(names), chosen)
    if chosen is None and (found := _by_names(own)):
        sensors, sensor_origin = dict.fromkeys(domains, found), "by the names of the bands"
        chosen = found
    if chosen and not set(map(str.lower, own)) <= set(find_sensor(chosen).known_as()):
        if sensor:
            unknown = next(n for n in own if n.lower() not in find_sensor(sensor).known_as())
            raise UserError(f"{first}: {sensor} has no band {unknown!r}: correct --sensor or --bands")
        sensors, chosen, sensor_origin = {}, None, f"not {chosen}, which has no such bands"
    bands = Bands(
        names=own,
        file_bands=file_bands,
        sensor=chosen,
        sensors=sensors if len(set(sensors.values())) > 1 else {},
        origin=origin,
        sensor_origin=sensor_origin if chosen or sensor_origin.startswith("not") else "not known",
    )
    for domain, paths in domains.items():
        own_sensor = sensors.get(domain, chosen)
        find_channels(paths[0], read_header(paths[0]), own, own_sensor, file_bands, domain)
    return bands


def _mentioned(root: Path, domains: Mapping[str, Sequence[Path]]) -> tuple[dict[str, str], str]:
    """Return the sensor of each domain that its names and tags mention, or else the folder's name."""
    found: dict[str, str] = {}
    for domain, paths in domains.items():
        texts = [domain, *(path.stem for path in paths), *read_header(paths[0]).platforms]
        mentioned = sorted(mentioned_sensors(texts))
        if len(mentioned) > 1:
            raise Ambiguous(
                "--sensor", f"{paths[0]}: of {' or '.join(mentioned)} by its name and tags", mentioned
            )
        if mentioned:
            found[domain] = mentioned[0]
    if found and len(found) < len(domains):
        lacking = next(domain for domain in domains if domain not in found)
        raise Ambiguous(
            "--sensor",
            f"{root}: {next(iter(found))} is of {next(iter(found.values()))}, {lacking} does not say",
            remedy="give that of all images with",
        )
    if found:
        return found, "by names or tags of the files"
    mentioned = sorted(mentioned_sensors([root.resolve().name]))
    if len(mentioned) == 1:
        return dict.fromkeys(domains, mentioned[0]), "by the name of the folder"
    return {}, ""


def _alpha(image: Path, header: Header) -> tuple[int, ...]:
    """Return the positions of bands that are masks, not bands of their own.

    Raises:
      Ambiguous: the file calls one alpha, but it holds other values than 0 and the largest.
    """
    found = []
    for place, (colour, name) in enumerate(zip(header.colours, header.descriptions, strict=True)):
        if colour != "alpha" or is_band_name(name):
            continue
        pixels, _ = read_values(image, None, [place])
        if len(np.unique(pixels)) > 2:
            raise Ambiguous(
                "--bands",
                f"{image}: its band {place + 1} is called alpha, but holds {len(np.unique(pixels))} values",
                remedy=f"name all {header.count} bands, as in red,green,blue,nir, with",
            )
        found.append(place)
    return tuple(found)


def _names(
    image: Path, header: Header, held: Sequence[int], given: tuple[str, ...], sensor: str | None
) -> tuple[tuple[str, ...], tuple[str, ...] | None, str]:
    """Return names of the bands, the same for `file_bands` if the files need them, and their origin."""
    own = [re.sub(r"\s*\([^()]*\)\s*$", "", header.descriptions[place] or "").strip() for place in held]
    colours, count = tuple(header.colours[place] for place in held), len(held)
    if given:
        return given, _file_bands(image, header, given, sensor), "as given"
    if all(map(is_band_name, own)):
        return tuple(own), None, "as the files call them"
    if sorted(colours) == sorted(_COLOURS):
        return colours, None, "by the colours of the files"
    of_sensor = [] if sensor is None else [band.name for band in find_sensor(sensor).bands]
    if sensor and len(of_sensor) == count:
        return tuple(of_sensor), _file_bands(image, header, of_sensor, sensor), f"those of {sensor}, in order"
    if header.states_wavelengths:
        numbered = tuple(f"band {number}" for number in range(1, count + 1))
        return (
            numbered,
            _file_bands(image, header, numbered, sensor),
            "numbers, with wavelengths in the files",
        )
    if count == 1:
        return ("gray",), None, "a single band"
    fitting = _with_count(count)
    if fitting and not sensor:
        raise Ambiguous(
            "--sensor",
            f"{image}: {count} bands without names, as many as known sensors have",
            fitting,
            remedy="name them in their order, as in red,green,blue,nir, with --bands, or the sensor with",
        )
    raise Ambiguous(
        "--bands",
        f"{image}: {count} bands without names"
        + (f", and {sensor} has {len(of_sensor)}" if sensor else ", and no sensor that is known by them"),
        remedy="name them in their order, as in red,green,blue,nir, with",
    )


def _file_bands(
    image: Path, header: Header, names: Sequence[str], sensor: str | None
) -> tuple[str, ...] | None:
    """Return names that have to be given to the bands of a file; None if it has them itself.

    Raises:
      UserError: it has not, and they are not as many.
    """
    try:
        find_channels(image, header, names, sensor, None)
        named = all(map(is_band_name, header.descriptions)) or len(set(header.descriptions)) > 1
        return None if named or tuple(names) == header.colours else tuple(names)
    except UserError:
        if len(names) not in (header.count, header.count - header.colours.count("alpha")):
            raise  # the file has to name some of its bands
        find_channels(image, header, names, sensor, tuple(names))
        return tuple(names)


def _by_wavelengths(image: Path) -> str:
    """Return the sensor whose wavelengths a file states, or ""."""
    stated = stated_wavelengths(image)
    for name, sensor in SENSORS.items():
        if not sensor.nominal and len(sensor.bands) == len(stated):
            pairs = zip(sensor.bands, stated, strict=True)
            if all(centre is not None and abs(band.centre - centre) < _CLOSE for band, centre in pairs):
                return name
    return ""


def _by_count(header: Header) -> str:
    """Return the only hyperspectral sensor with as many bands as a file without names, or "".

    Fewer bands can be of anything, in any order.
    """
    if header.count <= _HYPERSPECTRAL or header.states_wavelengths:
        return ""
    fitting = [] if any(map(is_band_name, header.descriptions)) else _with_count(header.count)
    return fitting[0] if len(fitting) == 1 else ""


def _with_count(count: int) -> list[str]:
    """Return the sensors with a number of bands."""
    return [name for name, sensor in SENSORS.items() if len(sensor.bands) == count]


def _by_names(names: Sequence[str]) -> str:
    """Return the only sensor that has bands of all these names, or ""."""
    wanted = {name.lower() for name in names}
    fitting = [name for name, sensor in SENSORS.items() if wanted <= set(sensor.known_as())]
    return fitting[0] if len(fitting) == 1 else ""
