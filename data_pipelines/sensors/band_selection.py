"""Which bands of a file a configuration means."""

from __future__ import annotations

import difflib
import logging
import re
import threading
from collections.abc import Iterable, Sequence

from data_pipelines.sensors.file_tags import check_numbers
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.sensors import find_sensor

log = logging.getLogger(__name__)
_mentioned: set[tuple[str, ...]] = set()  # choices of bands that files without names were read as
_lock = threading.Lock()
_LETTERS = {"r": "red", "g": "green", "b": "blue", "n": "nir", "nir1": "nir", "near infrared": "nir"}
_SAYS_NOTHING = re.compile(r"(band|channel|layer)?[ _-]?\d*", re.IGNORECASE)
_VISIBLE = ("red", "green", "blue")
_TOLERANCE = 0.01  # um, between the wavelengths of a configuration and of a file
_OF_WIDTH = 0.25  # of a known band's width, which sensors of one series differ by: more than that is allowed
_OF_SPACING = 0.5  # of the distance to the next band in the file, beyond which that one is nearer


def select_bands(
    place: str,
    wanted: Sequence[str],
    count: int,
    descriptions: Sequence[str | None],
    *,
    colours: Sequence[str] = (),
    sensor: str | None = None,
    file_bands: Sequence[str] | None = None,
) -> tuple[int, ...]:
    """Places (from 0) of the `wanted` bands in a file, in their order.

    Names are compared without case, without what stands in brackets at their end, and by the aliases of
    `sensor`, so "B04", "red" and "Red (665 nm)" are one band of Sentinel-2. A file that names none of its
    bands, or calls them "Band 1" and so on, is taken by position if it has as many as are wanted, which is
    logged once; red, green and blue, if all are wanted, by the colours that the file says it holds.

    Args:
      place: what to call the file in errors.
      count: its number of bands.
      descriptions: its names of them.
      colours: what it says their colours are.
      sensor: whose aliases hold.
      file_bands: names of all its bands in order, for a file that names them otherwise or not at all.

    Raises:
      UserError: a band that the file does not have, one that is named twice, a file that names none and has
        another number of them or colours in other places than the rest leaves open, `file_bands` that are
        not what the file says, or an unknown sensor.
    """
    known_as = {} if sensor is None else find_sensor(sensor).known_as()
    _require_once(wanted, known_as, "config.bands")
    names = [_normal(name, known_as) for name in descriptions]
    searched = [_normal(name, known_as) for name in wanted]
    if file_bands is not None and (len(file_bands) == count or not set(searched) <= set(names)):
        _check_file_bands(place, file_bands, descriptions, names, known_as)
        descriptions, names = file_bands, [_normal(name, known_as) for name in file_bands]
    if set(searched) <= set(names):
        for name, band in zip(searched, wanted, strict=True):
            if names.count(name) > 1:
                raise UserError(
                    f"{place}: {names.count(name)} of its bands are called {band}: name them apart in "
                    "the file, or all of them in data.file_bands"
                )
        return tuple(names.index(name) for name in searched)
    if any(not _SAYS_NOTHING.fullmatch(name) for name in names):
        missing = next(band for band, name in zip(wanted, searched, strict=True) if name not in names)
        raise UserError(f"{place}: no band {missing!r}, {_what_there_is(missing, descriptions)}")
    if count != len(wanted):
        raise UserError(
            f"{place}: {count} bands without names, the configuration names {len(wanted)} "
            f"({', '.join(wanted)}): set bands to what the file holds, or name its bands in data.file_bands"
        )
    return _by_colour(place, wanted, searched, colours, known_as) or _by_position(place, wanted)


def choose_bands(
    place: str,
    wanted: Sequence[str],
    descriptions: Sequence[str | None],
    colours: Sequence[str],
    *,
    sensor: str | None = None,
    file_bands: Sequence[str] | None = None,
    texts: Iterable[str] = (),
) -> tuple[tuple[int, ...], bool]:
    """Places of the `wanted` bands as `select_bands`; whether the file's last one is an alpha beside them.

    That is so if the file says so, no other name is given to the band, and it is not one of those wanted.

    Args:
      descriptions, colours: what the file says of all its bands.
      texts: what may tell what the file is of, see `check_numbers`.

    Raises:
      UserError: as `select_bands` and `check_numbers`.
    """
    count = len(descriptions)
    own = file_bands[-1] if file_bands is not None and len(file_bands) == count else descriptions[-1]
    has_alpha = colours[-1] == "alpha" and (own or "alpha").strip().lower() in ("alpha", "a")
    apart = count - (has_alpha and len(wanted) == count - 1)
    channels = select_bands(
        place, wanted, apart, descriptions[:apart], colours=colours[:apart], sensor=sensor,
        file_bands=file_bands,
    )  # fmt: skip
    if file_bands is None:
        check_numbers(place, wanted, channels, descriptions, sensor, texts)
    return channels, has_alpha and count - 1 not in channels


def check_wavelengths(
    place: str,
    bands: Sequence[str],
    channels: Sequence[int],
    stated: Sequence[float | None],
    wanted: Sequence[float],
    sensor: str | None = None,
) -> None:
    """Compares the wavelengths that a file states for its bands with the configuration's, in micrometres.

    They may differ by 10 nm, or a quarter of the band's width on `sensor` where that is more, but by no more
    than half the distance to the file's next band: that would then be the one meant.

    Args:
      place: what to call the file in errors.
      bands: the configuration's.
      channels: their places in the file.
      stated: of all bands of the file, None for one that it states none for, which is not compared.
      wanted: of `bands`.
      sensor: whose widths hold.

    Raises:
      UserError: two that lie too far apart, with the band; or another number of wavelengths than bands.
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
                f"{place}: band {band} lies at {of_file:.4g} um, the configuration takes it to be at "
                f"{of_config:.4g} um: correct config.bands, config.sensor or config.model.visual.wavelengths"
            )


def _by_colour(
    place: str, wanted: Sequence[str], searched: Sequence[str], colours: Sequence[str],
    known_as: dict[str, str],
) -> tuple[int, ...] | None:  # fmt: skip
    """Places of the bands of a file that names none, by the colours that it says they have.

    None where these say nothing: red, green and blue are not all wanted, or not all there once. They say what
    the one band beside them is, if it is said to be no alpha: GDAL calls the fourth of four 8-bit bands so,
    and the first three red, green and blue, where whoever wrote them said nothing.
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
        f"{place}: says that its bands are {', '.join(colours)}, the configuration takes them to be "
        f"{', '.join(wanted)}: name the file's bands in data.file_bands, in their order"
    )


def _by_position(place: str, wanted: Sequence[str]) -> tuple[int, ...]:
    """All bands as they lie, which is said once for every choice of bands."""
    with _lock:
        if tuple(wanted) not in _mentioned:
            _mentioned.add(tuple(wanted))
            log.warning(
                "%s and others like it do not name their bands: they are taken to be %s, in this order",
                place,
                ", ".join(wanted),
            )
    return tuple(range(len(wanted)))


def _normal(name: str | None, known_as: dict[str, str]) -> str:
    """The one name of a band that all its names become."""
    bare = re.sub(r"\s*\([^()]*\)\s*$", "", name or "").strip().lower()
    spelt = _LETTERS.get(bare, bare)
    return known_as.get(bare, known_as.get(spelt, spelt)).lower()


def _require_once(names: Sequence[str], known_as: dict[str, str], key: str) -> None:
    seen: dict[str, str] = {}
    for name in names:
        normal = _normal(name, known_as)
        if normal in seen:
            other = f" (as {seen[normal]!r})" if seen[normal].lower() != name.lower() else ""
            raise UserError(f"{key} names {name.lower()!r} twice{other}: name each band once")
        seen[normal] = name


def _check_file_bands(
    place: str, file_bands: Sequence[str], descriptions: Sequence[str | None], names: Sequence[str],
    known_as: dict[str, str],
) -> None:  # fmt: skip
    """Raises UserError where `file_bands` cannot be the names of a file's bands."""
    if len(file_bands) != len(names):
        raise UserError(
            f"{place}: {len(names)} bands, data.file_bands names {len(file_bands)}: name them all"
        )
    _require_once(file_bands, known_as, "data.file_bands")
    given = [_normal(name, known_as) for name in file_bands]
    for number, (own, name) in enumerate(zip(names, given, strict=True)):
        if own in given and own != name:
            raise UserError(
                f"{place}: its band {number + 1} is called {descriptions[number]!r}, data.file_bands calls "
                f"it {file_bands[number]!r}: correct data.file_bands, or leave it out"
            )


def _what_there_is(missing: str, descriptions: Sequence[str | None]) -> str:
    there = [name or "(no name)" for name in descriptions]
    near = difflib.get_close_matches(missing, there, n=1)
    listed = ", ".join(there[:20]) + (f" and {len(there) - 20} more" if len(there) > 20 else "")
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}it has {listed}: correct config.bands, or name the file's bands in data.file_bands"
