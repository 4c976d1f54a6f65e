"""Choice of the bands of a file that a configuration names, and checks that they are the bands meant.

Bands are found by name, by colour or by position. Two checks follow: numbered bands must have the same
meaning on the sensor that the file states, and wavelengths that the file states must agree with the
configuration's.
"""

from __future__ import annotations

import difflib
import logging
import re
import threading
from collections.abc import Iterable, Sequence

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.sensors import Sensor, find_sensor

log = logging.getLogger(__name__)
_warned: set[tuple[str, ...]] = set()  # bands that were assumed for files without names
_lock = threading.Lock()
_ABBREVIATIONS = {"r": "red", "g": "green", "b": "blue", "n": "nir", "nir1": "nir", "near infrared": "nir"}
_NOT_A_NAME = re.compile(r"(band|channel|layer)?[ _-]?\d*", re.IGNORECASE)
_VISIBLE = ("red", "green", "blue")
_TOLERANCE = 0.01  # um, between the wavelengths of a configuration and of a file
_OF_WIDTH = 0.25  # or this share of a known band's width, by which sensors of one series differ, if larger
_OF_SPACING = 0.5  # share of the distance to the file's next band, beyond which that one is nearer

# A sensor's name, or the start of its products' names, in lower case with _ as -.
_EDGE, _END = r"(?<![a-z0-9])", r"(?![a-z0-9])"
_SENSOR_SIGNS = {
    **{f"landsat{n}": rf"landsat[ -]?{n}(?!\d)|{_EDGE}l[a-z]0{n}{_END}" for n in (5, 7, 8, 9)},
    **{f"gaofen{n}": rf"gaofen[ -]?{n}(?!\d)|{_EDGE}gf[ -]?{n}{_END}" for n in (1, 2)},
    "sentinel2": rf"sentinel[ -]?2|{_EDGE}s2[abc]{_END}|{_EDGE}t\d\d[a-z]{{3}}-\d{{8}}t\d{{6}}",
    "planetscope": rf"planetscope|psscene|{_EDGE}ps2{_END}",
    "orbita_ohs": rf"orbita|{_EDGE}ohs",
    "enmap": "enmap",
    "prisma": f"prisma|{_EDGE}prs-l",
    "aviris": "aviris",
}
_NUMBERED = re.compile(r"b(?:and)?[ _-]?0*(\d+)(a?)")
_SAME_BAND = 0.5  # share of a band's width, within which two sensors' bands of one number are the same


def choose_bands(
    file: str,
    wanted: Sequence[str],
    descriptions: Sequence[str | None],
    colours: Sequence[str],
    *,
    sensor: str | None = None,
    file_bands: Sequence[str] | None = None,
    texts: Iterable[str] = (),
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Find bands in a file that may have alpha bands, and check numbered ones.

    A band in any place is an alpha if the file marks it so, it has no other name, and it is not wanted.

    Args:
      file: name of the file, for error messages.
      wanted: names of the bands.
      descriptions: names of all bands in the file, None for a band without.
      colours: colour interpretation of all bands in the file.
      sensor: as for `select_bands`.
      file_bands: as for `select_bands`.
      texts: as for `check_numbers`.

    Returns:
      Positions of the wanted bands, and of alpha bands beside them.

    Raises:
      UserError: as for `select_bands` and `check_numbers`; or a band is stored as numbers of a colour table.
    """
    count = len(descriptions)
    own = file_bands if file_bands is not None and len(file_bands) == count else descriptions
    alpha = tuple(i for i in range(count) if colours[i] == "alpha" and _may_be_alpha(own[i]))
    others = [i for i in range(count) if i not in alpha]
    lengths = {len(wanted), len(wanted if file_bands is None else file_bands)}
    searched = others if alpha and len(others) in lengths else list(range(count))
    if file_bands is not None and len(file_bands) == count:
        file_bands = [file_bands[i] for i in searched]
    found = select_bands(
        file,
        wanted,
        len(searched),
        [descriptions[i] for i in searched],
        colours=[colours[i] for i in searched],
        sensor=sensor,
        file_bands=file_bands,
    )
    channels = tuple(searched[place] for place in found)
    for name, channel in zip(wanted, channels, strict=True):
        if colours[channel] == "palette":
            raise UserError(
                f"{file}: its band {channel + 1}, read as {name}, holds numbers of a colour table and not "
                "values (a paletted image): convert the image to RGB or grey"
            )
    if file_bands is None:
        check_numbers(file, wanted, channels, descriptions, sensor, texts)
    return channels, tuple(i for i in alpha if i not in channels)


def _may_be_alpha(name: str | None) -> bool:
    """Return whether a band that is marked as alpha has no name that says otherwise."""
    return (name or "alpha").strip().lower() in ("alpha", "a")


def select_bands(
    file: str,
    wanted: Sequence[str],
    count: int,
    descriptions: Sequence[str | None],
    *,
    colours: Sequence[str] = (),
    sensor: str | None = None,
    file_bands: Sequence[str] | None = None,
) -> tuple[int, ...]:
    """Find bands in a file.

    Names are compared without case, without a trailing part in brackets, and with the aliases of `sensor`:
    "B04", "red" and "Red (665 nm)" are one band of Sentinel-2. In a file that names none of its bands, or
    calls them "Band 1" and so on, red, green and blue are found by the file's colour interpretation if all
    three are wanted. Otherwise such a file is read by position if it has as many bands as are wanted; this is
    logged once.

    Args:
      file: name of the file, for error messages.
      wanted: names of the bands.
      count: number of bands in the file.
      descriptions: their names in the file, None for a band without.
      colours: their colour interpretation in the file.
      sensor: name of the sensor whose aliases are known.
      file_bands: names of all bands in order, for a file with other names or none.

    Returns:
      Positions, from 0, of the wanted bands in their order.

    Raises:
      UserError: the file lacks a band; a band is named twice; a file without names has another number of
        bands, or colours in other positions than the names leave open; `file_bands` contradicts the file; or
        the sensor is unknown.
    """
    known_as = {} if sensor is None else find_sensor(sensor).known_as()
    _require_once(wanted, known_as, "config.bands")
    names = [_normal(name, known_as) for name in descriptions]
    searched = [_normal(name, known_as) for name in wanted]
    # 1. names that the configuration gives to the file's bands
    if file_bands is not None and (len(file_bands) == count or not set(searched) <= set(names)):
        _check_file_bands(file, file_bands, descriptions, names, known_as)
        descriptions, names = file_bands, [_normal(name, known_as) for name in file_bands]
    # 2. by name
    if set(searched) <= set(names):
        for name, band in zip(searched, wanted, strict=True):
            if names.count(name) > 1:
                raise UserError(
                    f"{file}: {names.count(name)} of its bands are called {band}: name them apart in "
                    "the file, or all of them in data.file_bands"
                )
        return tuple(names.index(name) for name in searched)
    if any(not _NOT_A_NAME.fullmatch(name) for name in names):
        missing = next(band for band, name in zip(wanted, searched, strict=True) if name not in names)
        raise UserError(f"{file}: no band {missing!r}, {_available(missing, descriptions)}")
    # 3. by colour or position
    if count != len(wanted):
        raise UserError(
            f"{file}: {count} bands without names{_in_colours(colours)}, the configuration names "
            f"{len(wanted)} ({', '.join(wanted)}): set bands to what the file holds, or name its bands in "
            "data.file_bands"
        )
    return _by_colour(file, wanted, searched, colours, known_as) or _by_position(file, wanted)


def check_wavelengths(
    file: str,
    bands: Sequence[str],
    channels: Sequence[int],
    stated: Sequence[float | None],
    wanted: Sequence[float],
    sensor: str | None = None,
) -> None:
    """Compare the wavelengths that a file states with the configuration's.

    They may differ by 10 nm, or by a quarter of the band's width on `sensor` if that is more, but never by
    more than half the distance to the file's next band, which would then be nearer.

    Args:
      file: name of the file, for error messages.
      bands: names of the bands.
      channels: their positions in the file.
      stated: wavelengths of all bands of the file in micrometres; None for a band without, which is not
        compared.
      wanted: wavelengths of `bands` in the configuration, in micrometres.
      sensor: name of the sensor whose band widths are known.

    Raises:
      UserError: two wavelengths differ too much, or there is not one for each band.
    """
    if len(wanted) != len(bands):
        raise UserError(
            f"config.model.visual.wavelengths has {len(wanted)} entries for {len(bands)} bands: give one each"
        )
    table = None if sensor is None else find_sensor(sensor)
    for band, channel, of_config in zip(bands, channels, wanted, strict=True):
        of_file = stated[channel]
        if of_file is None:
            continue
        known = table.named(band) if table else None
        allowed = max(_TOLERANCE, _OF_WIDTH * known.width if known else 0.0)
        beside = [stated[i] for i in (channel - 1, channel + 1) if 0 <= i < len(stated)]
        distances = [abs(other - of_file) for other in beside if other is not None and other != of_file]
        if abs(of_file - of_config) > min([allowed, *(_OF_SPACING * distance for distance in distances)]):
            raise UserError(
                f"{file}: band {band} lies at {of_file:.4g} um, the configuration takes it to be at "
                f"{of_config:.4g} um: correct config.bands, config.sensor or config.model.visual.wavelengths"
            )


def check_numbers(
    file: str,
    bands: Sequence[str],
    channels: Sequence[int],
    descriptions: Sequence[str | None],
    sensor: str | None,
    texts: Iterable[str],
) -> None:
    """Refuse bands that were found by number in a file of a sensor that numbers its bands differently.

    Args:
      file: name of the file, for error messages.
      bands: names of the bands.
      channels: their positions in the file.
      descriptions: names of all bands in the file.
      sensor: name of the sensor that the file is read as; None for bands found by their own names.
      texts: may tell the sensor of the file: its name, its domain, values of its tags.

    Raises:
      UserError: a number has another meaning on the sensor that the file states, or `sensor` does not have
        it.
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
                f"{file}: has a band {name!r}, {sensor} has none of this number, so its numbers may mean "
                f"other bands: {remedy}"
            )
    others = mentioned_sensors(texts)
    for other in () if sensor in others else sorted(others):
        for band, channel in zip(bands, channels, strict=True):
            number = of_file[channel]
            if number and not _same_band(table, find_sensor(other), number):
                raise UserError(
                    f"{file}: is of {other} by its name or tags, where {descriptions[channel]} is not "
                    f"{band}: {remedy}"
                )


def is_band_name(description: str | None) -> bool:
    """Return whether a file's description of a band names it, unlike none or "Band 1"."""
    return not _NOT_A_NAME.fullmatch(_without_brackets(description or ""))


def mentioned_sensors(texts: Iterable[str]) -> set[str]:
    """Return the sensors that names of files or domains, or values of tags, mention."""
    joined = " ; ".join(texts).lower().replace("_", "-")
    return {name for name, sign in _SENSOR_SIGNS.items() if re.search(sign, joined)}


def _number(name: str) -> str:
    """Return the number of a band that has no other name ("8a" for B8A), or ""."""
    match = _NUMBERED.fullmatch(_without_brackets(name))
    return "" if match is None else "".join(match.groups())


def _same_band(table: Sensor, other: Sensor, number: str) -> bool:
    """Return whether a number means the same band on two sensors, or nothing on the other one."""
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
    return abs(ours.centre - theirs.centre) <= _SAME_BAND * min(ours.width, theirs.width)


def _in_colours(colours: Sequence[str]) -> str:
    """Return what few bands without names are in their file, in brackets; or "" if it says nothing."""
    if len(colours) > 4 or not set(colours) - {"undefined"}:
        return ""
    kind = "CMYK: " if "cyan" in colours else ""
    return f" ({kind}{', '.join(colours)})"


def _by_colour(
    file: str,
    wanted: Sequence[str],
    searched: Sequence[str],
    colours: Sequence[str],
    known_as: dict[str, str],
) -> tuple[int, ...] | None:
    """Find the bands of a file without names by their colour interpretation.

    Colours decide only if red, green and blue are all wanted and each is there once. A single band beside
    them is then the remaining one, unless the file marks it as alpha: for four 8-bit bands without colours,
    GDAL calls the first three red, green and blue and the fourth alpha.

    Returns:
      Positions of the bands; None if the colours do not decide.
    """
    held = {_normal(name, known_as): colours.index(name) for name in _VISIBLE if colours.count(name) == 1}
    if len(held) < len(_VISIBLE) or not held.keys() <= set(searched):
        return None
    left = [number for number in range(len(colours)) if number not in held.values()]
    if not left or (len(left) == 1 and colours[left[0]] != "alpha"):
        return tuple(held.get(name, *left) if left else held[name] for name in searched)
    if all(searched[number] == name for name, number in held.items()):
        return None
    raise UserError(
        f"{file}: says that its bands are {', '.join(colours)}, the configuration takes them to be "
        f"{', '.join(wanted)}: name the file's bands in data.file_bands, in their order"
    )


def _by_position(file: str, wanted: Sequence[str]) -> tuple[int, ...]:
    """Return all bands in their order, and warn once for each choice of bands."""
    with _lock:
        if tuple(wanted) not in _warned:
            _warned.add(tuple(wanted))
            log.warning(
                "%s and others like it do not name their bands: they are taken to be %s, in this order",
                file,
                ", ".join(wanted),
            )
    return tuple(range(len(wanted)))


def _normal(name: str | None, known_as: dict[str, str]) -> str:
    """Return the single spelling that all names of a band become."""
    bare = _without_brackets(name or "")
    spelt = _ABBREVIATIONS.get(bare, bare)
    return known_as.get(bare, known_as.get(spelt, spelt)).lower()


def _without_brackets(name: str) -> str:
    """Return a name in lower case without a trailing part in brackets."""
    return re.sub(r"\s*\([^()]*\)\s*$", "", name).strip().lower()


def _require_once(names: Sequence[str], known_as: dict[str, str], key: str) -> None:
    """Raise UserError if two names mean the same band."""
    seen: dict[str, str] = {}
    for name in names:
        normal = _normal(name, known_as)
        if normal in seen:
            other = f" (as {seen[normal]!r})" if seen[normal].lower() != name.lower() else ""
            raise UserError(f"{key} names {name.lower()!r} twice{other}: name each band once")
        seen[normal] = name


def _check_file_bands(
    file: str,
    file_bands: Sequence[str],
    descriptions: Sequence[str | None],
    names: Sequence[str],
    known_as: dict[str, str],
) -> None:
    """Raise UserError if `file_bands` cannot be the names of a file's bands."""
    if len(file_bands) != len(names):
        raise UserError(f"{file}: {len(names)} bands, data.file_bands names {len(file_bands)}: name them all")
    _require_once(file_bands, known_as, "data.file_bands")
    given = [_normal(name, known_as) for name in file_bands]
    for number, (own, name) in enumerate(zip(names, given, strict=True)):
        if own in given and own != name:
            raise UserError(
                f"{file}: its band {number + 1} is called {descriptions[number]!r}, data.file_bands calls "
                f"it {file_bands[number]!r}: correct data.file_bands, or leave it out"
            )


def _available(missing: str, descriptions: Sequence[str | None]) -> str:
    """Return the end of an error message on a missing band: the nearest name, and the bands of the file."""
    there = [name or "(no name)" for name in descriptions]
    near = difflib.get_close_matches(missing, there, n=1)
    listed = ", ".join(there[:20]) + (f" and {len(there) - 20} more" if len(there) > 20 else "")
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}it has {listed}: correct config.bands, or name the file's bands in data.file_bands"
