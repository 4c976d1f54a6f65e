"""Coordinate reference systems that mean the same in other words, and their names in messages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from rasterio._err import CPLE_BaseError  # what transforming raises; no public module has it
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform

from spectralmoe_jax.errors import shown

Bounds = tuple[float, float, float, float]
"""West, south, east, north."""

_LONGEST = 57  # characters of a name in a message
_TOLERANCE = 1e-5  # of the extent, for points transformed from one system to the other
_SAYS_NOTHING = re.compile(
    r"\s*$|unknown|unnamed|undefined|not specified|not_specified|user|local|arbitrary", re.IGNORECASE
)
CRS_ERRORS = (RasterioError, CPLE_BaseError, ValueError, KeyError, TypeError, AttributeError)
"""Errors of rasterio and GDAL for odd systems."""


def crs_name(crs: Any) -> str:
    """Return a short name of a coordinate reference system: its EPSG code, or else the name that it states.

    Args:
      crs: a `rasterio.crs.CRS`, or None.
    """
    if not crs:
        return "no coordinate reference system"
    try:
        code = crs.to_epsg()
    except CRS_ERRORS:
        code = None
    if code is not None:
        return f"EPSG:{code}"
    found = re.search(r'"([^"]*)"', _text(crs))
    name = found[1] if found else _text(crs)
    name = " ".join("".join(letter if letter.isprintable() else " " for letter in name).split())
    return shown(name, _LONGEST) or "an unnamed coordinate reference system"


def same_crs(one: Any, other: Any, bounds: Bounds | None = None) -> bool:
    """Return whether two coordinate reference systems place the same coordinates at the same point.

    The words do not matter: WKT of any version and dialect, PROJ, EPSG; a vertical part; the shift to another
    datum that is stated beside a system (`TOWGS84`); the order of axes, which GDAL reads as x, y. Systems of
    different datums differ, although no shift between them may be known. A system that is local and does not
    say where, by a name or otherwise, is the same as any other.

    Args:
      one: a `rasterio.crs.CRS`, or None, which is the same as None alone.
      other: another.
      bounds: place to compare them at, in coordinates of either; None for points near the origin of the map.
    """
    if not one or not other:
        return not one and not other
    if one == other and (one.is_projected or one.is_geographic):  # of local ones, only units are compared
        return True
    try:
        first, second = _horizontal(one), _horizontal(other)
        local = [part for part in (first, second) if _is_local(part)]
        if local:
            names = {_letters(part.get("name", "")) for part in (first, second)}
            return len(names) == 1 or any(_SAYS_NOTHING.match(part.get("name", "")) for part in local)
        if not _same_datum(first, second):
            return False
        systems = CRS.from_user_input(first), CRS.from_user_input(second)
        return systems[0] == systems[1] or _coincide(*systems, bounds)
    except CRS_ERRORS:
        return False


def _text(crs: Any) -> str:
    try:
        return str(crs.to_wkt())
    except CRS_ERRORS:
        return str(crs)


def _horizontal(crs: Any) -> dict[str, Any]:
    """Return the horizontal part of a system as PROJJSON, without a shift to another datum."""
    part = crs.to_dict(projjson=True)
    while part.get("type") in ("BoundCRS", "CompoundCRS"):
        part = part["source_crs"] if part["type"] == "BoundCRS" else part["components"][0]
    return part


def _is_local(part: Mapping[str, Any]) -> bool:
    return part.get("type") == "EngineeringCRS"


def _same_datum(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two systems have the same datum, or the same ellipsoid where one names no datum."""
    first, second = _datum(one), _datum(other)
    nameless = any(_SAYS_NOTHING.match(datum.get("name", "")) for datum in (first, second))
    if nameless or not {*_names(first)} & {*_names(second)}:
        same_code = _geographic_code(one) is not None and _geographic_code(one) == _geographic_code(other)
        if not nameless and not same_code:
            return False
    axes = [_semi_axes(datum["ellipsoid"]) for datum in (first, second)]
    return bool(np.allclose(axes[0], axes[1], rtol=1e-9, atol=0)) and _meridian(first) == _meridian(second)


def _geographic(part: Mapping[str, Any]) -> Mapping[str, Any]:
    while "base_crs" in part:
        part = part["base_crs"]
    return part


def _datum(part: Mapping[str, Any]) -> dict[str, Any]:
    base = _geographic(part)
    found: dict[str, Any] = base.get("datum") or base["datum_ensemble"]
    return found


def _names(datum: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of a datum and of the members of an ensemble, in letters that all writers share."""
    for name in (datum.get("name", ""), *(member.get("name", "") for member in datum.get("members", ()))):
        yield _letters(re.sub(r"^D_", "", name)).removesuffix("ensemble")


def _letters(name: str) -> str:
    return re.sub(r"[^0-9a-z]+", "", name.lower())


def _geographic_code(part: Mapping[str, Any]) -> int | None:
    try:
        return CRS.from_user_input(dict(_geographic(part))).to_epsg(confidence_threshold=70)
    except CRS_ERRORS:
        return None


def _semi_axes(ellipsoid: Mapping[str, Any]) -> tuple[float, float]:
    """Return the semi-axes of an ellipsoid in metres."""
    stated = {
        key: float(value["value"]) if isinstance(value, Mapping) else float(value)
        for key, value in ellipsoid.items()
        if key in ("radius", "semi_major_axis", "semi_minor_axis", "inverse_flattening")
    }
    large = stated.get("semi_major_axis", stated.get("radius", 0.0))
    inverse = stated.get("inverse_flattening", 0.0)
    small = stated.get("semi_minor_axis", large * (1 - 1 / inverse) if inverse else large)
    return large, small


def _meridian(datum: Mapping[str, Any]) -> float:
    """Return the longitude of the prime meridian from Greenwich, in the units that are stated."""
    found = datum.get("prime_meridian", {}).get("longitude", 0.0)
    return float(found["value"] if isinstance(found, Mapping) else found)


def _coincide(one: Any, other: Any, bounds: Bounds | None) -> bool:
    """Return whether points of one system have the same coordinates in the other."""
    if bounds is None:
        bounds = (-10.0, 40.0, 10.0, 50.0) if one.is_geographic else (400_000, 4e6, 600_000, 5e6)
    west, south, east, north = bounds
    xs, ys = (axis.ravel() for axis in np.meshgrid(np.linspace(west, east, 3), np.linspace(south, north, 3)))
    found = np.array(transform(one, other, xs.tolist(), ys.tolist())[:2])
    extent = max(abs(east - west), abs(north - south))
    return bool(np.abs(found - np.array([xs, ys])).max() <= _TOLERANCE * extent)
