"""Which bands of a file a configuration means."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.sensors import SENSORS

_LETTERS = {"r": "red", "g": "green", "b": "blue", "n": "nir", "nir1": "nir", "near infrared": "nir"}
_SAYS_NOTHING = re.compile(r"(band|channel|layer)?[ _-]?\d*", re.IGNORECASE)
_VISIBLE = ("red", "green", "blue")
_TOLERANCE = 0.01  # um, between the wavelengths of a configuration and of a file


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
    bands, or calls them "Band 1" and so on, is taken by position if it has as many as are wanted; if those
    are red, green and blue, in the order in which the file says it holds these colours.

    Args:
      place: what to call the file in errors.
      count: its number of bands.
      descriptions: its names of them.
      colours: what it says their colours are.
      sensor: whose aliases hold.
      file_bands: names of all its bands in order, for a file that names none.

    Raises:
      UserError: a band that the file does not have, a name that occurs twice, or a file that names none and
        has another number of them.
    """
    _require_once(wanted, "config.bands")
    known_as = SENSORS[sensor].known_as() if sensor in SENSORS else {}
    if file_bands is not None:
        if len(file_bands) != count:
            raise UserError(f"{place}: {count} bands, data.file_bands names {len(file_bands)}: name them all")
        _require_once(file_bands, "data.file_bands")
        descriptions = file_bands
    names = [_normal(name, known_as) for name in descriptions]
    searched = [_normal(name, known_as) for name in wanted]
    if all(name in names for name in searched):
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
    if sorted(searched) == sorted(_VISIBLE) and sorted(colours) == sorted(_VISIBLE):
        return tuple(tuple(colours).index(name) for name in searched)
    return tuple(range(count))


def check_wavelengths(
    place: str, bands: Sequence[str], stated: Sequence[float], wanted: Sequence[float]
) -> None:
    """Compares the wavelengths that a file states for its bands with the configuration's, in micrometres.

    Raises:
      UserError: two that lie more than 10 nm apart, with the band.
    """
    for band, of_file, of_config in zip(bands, stated, wanted, strict=True):
        if abs(of_file - of_config) > _TOLERANCE:
            raise UserError(
                f"{place}: band {band} lies at {of_file:.4g} um, the configuration takes it to be at "
                f"{of_config:.4g} um: correct config.bands, config.sensor or config.model.visual.wavelengths"
            )


def _normal(name: str | None, known_as: dict[str, str]) -> str:
    bare = re.sub(r"\s*\([^()]*\)\s*$", "", name or "").strip().lower()
    bare = known_as.get(bare, bare).lower()
    return _LETTERS.get(bare, bare)


def _require_once(names: Sequence[str], key: str) -> None:
    lower = [name.lower() for name in names]
    for name in lower:
        if lower.count(name) > 1:
            raise UserError(f"{key} names {name!r} twice: name each band once")


def _what_there_is(missing: str, descriptions: Sequence[str | None]) -> str:
    there = [name or "(no name)" for name in descriptions]
    near = difflib.get_close_matches(missing, there, n=1)
    listed = ", ".join(there[:20]) + (f" and {len(there) - 20} more" if len(there) > 20 else "")
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}it has {listed}: correct config.bands, or name the file's bands in data.file_bands"
