"""Polygons around an image from a vector file, with errors that name the file."""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyogrio
import shapely
from rasterio.crs import CRS
from rasterio.warp import transform, transform_bounds

from data_pipelines.readers.address import is_remote
from data_pipelines.readers.coordinate_systems import CRS_ERRORS, Bounds, crs_name, same_crs
from data_pipelines.readers.unreadable import UnreadableFile
from data_pipelines.readers.vector_name import as_file
from spectralmoe_jax.errors import UserError, shown

VECTOR_FORMATS = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".kml", ".parquet")
"""Suffixes of vector files."""

T = TypeVar("T")
log = logging.getLogger(__name__)
_START = 1 << 16  # bytes of a file that tell what it is
_SQLITE = b"SQLite format 3\0"
_SIGNS = (_SQLITE, b"\0\0\x27\x0a", b"fgb", b"PAR1")  # of GeoPackage, shapefile, FlatGeobuf, Parquet
_DESCRIPTIONS = re.compile(rb"<(OGR|VRT|GDAL|gdal|WFS|ogr)")
_VIRTUAL_TABLE = re.compile(
    r"create\s+virtual\s+table\b.*\busing\s+(?!\W?(rtree|fts[345])\b)", re.IGNORECASE | re.DOTALL
)
_warned: set[Path] = set()  # files with other geometries than polygons
_lock = threading.Lock()
_MARGIN = 0.01  # share of the image's extent: straight lines of one CRS are curves in another
_EDGE_POINTS = 21  # points on each side of the image that are projected to find its extent
_LARGEST = 1e12  # coordinate in any unit of a map of the Earth
_FAR = 100_000  # times the extent of the image: polygons that reach farther are cut off before they are drawn
_ERRORS = (RuntimeError, ValueError, TypeError, OverflowError)  # of pyogrio, for damaged files


def _read(path: Path, layer: str, read: Callable[..., T], **options: Any) -> T:
    """Read from a layer with a function of pyogrio.

    Raises:
      UserError: the layer does not exist, or the file cannot be read, or describes other files.
    """
    _check_content(path)
    try:
        with as_file(path) as name:
            return read(name, layer=layer or None, **options)
    except UnicodeDecodeError as error:
        raise UnreadableFile(
            f"{path}: a name in it is not UTF-8, such as that of an attribute: write the file anew as UTF-8"
        ) from error
    except _ERRORS as error:
        raise _unreadable(path, layer, error) from error


def _read_info(path: Path, layer: str, **options: Any) -> dict[str, Any]:
    """Return size, attributes and CRS of a layer, the CRS as a `rasterio.crs.CRS` at `crs`.

    Raises:
      UserError: the file cannot be read, or has no CRS.
    """
    info = _read(path, layer, pyogrio.read_info, **options)
    if not info["crs"]:
        raise UserError(f"{path}: has no coordinate reference system: give polygons with one")
    try:
        return info | {"crs": CRS.from_user_input(info["crs"])}
    except CRS_ERRORS as error:
        raise UnreadableFile(
            f"{path}: its coordinate reference system cannot be read: assign it anew, as with ogr2ogr -a_srs"
        ) from error


def read_polygons(
    path: Path, layer: str, attribute: str, crs: Any, bounds: Bounds
) -> tuple[np.ndarray, list[Any]]:
    """Read the polygons around some bounds. Lines and points are left out, with one warning for each file.

    Args:
      path: the file.
      layer: name of the layer, "" for the first.
      attribute: name of the attribute to return.
      crs: CRS of `bounds` and of the returned geometries, a `rasterio.crs.CRS`.
      bounds: west, south, east, north.

    Returns:
      Shapely geometries, reprojected to `crs`, and the attribute's value of each, in the order of the file.

    Raises:
      UserError: the file cannot be read, has no CRS, or lacks the layer or attribute.
    """
    crs = CRS.from_user_input(crs)
    info = _read_info(path, layer)
    if attribute not in info["fields"] and not len(info["fields"]) and info["features"] == 0:
        return np.zeros(0, object), []  # as GeoJSON is written for an image without a polygon
    if attribute not in info["fields"]:
        raise UserError(
            f"{path}: no attribute {attribute!r}, it has "
            f"{shown(', '.join(map(str, info['fields']))) or 'none'}: correct "
            "data.label_attribute"
        )
    theirs = info["crs"]
    same = same_crs(theirs, crs, bounds)
    _, fids, geometries, columns = _read(
        path,
        layer,
        pyogrio.raw.read,
        columns=[attribute],
        bbox=_around(bounds, None if same else crs, theirs),
        return_fids=True,
    )
    if geometries is None:
        raise UserError(
            f"{path}: its layer has no geometry: name the layer of the polygons, data.label_layer"
        )
    order = np.arange(len(fids))
    if info["capabilities"]["fast_spatial_filter"]:  # found through an index, in the order of the index
        order = np.argsort(fids, kind="stable")
    try:
        shapes = shapely.from_wkb(geometries[order])
    except (shapely.errors.ShapelyError, *_ERRORS) as error:  # such as a ring that is not closed
        raise _unreadable(path, layer, error) from error
    areal = _areal(shapes)
    if not areal.all():
        _warn_of_others(path, int(np.count_nonzero(~areal)))
    polygons, values = _without_others(shapes[areal]), columns[0][order][areal].tolist()
    _require_finite(path, polygons, "are NaN, infinite or beyond all maps: mend the geometry")
    if not same:
        try:
            polygons = _reprojected(polygons, theirs, crs)
        except CRS_ERRORS as error:
            raise UserError(
                f"{path}: polygons in {crs_name(theirs)} cannot be placed in {crs_name(crs)}, the image's: "
                "store both in one system"
            ) from error
        must = f"have no place in {crs_name(crs)}, the image's: cut the polygons to its area"
        _require_finite(path, polygons, must)
    return _near(path, polygons, bounds), values


def read_extent(path: Path, layer: str = "") -> tuple[Any, Bounds | None, int]:
    """Return the CRS of a layer, the bounds of all its features (None for none), and their number.

    Raises:
      UserError: the file cannot be read, has no CRS, or lacks the layer.
    """
    info = _read_info(path, layer, force_total_bounds=True, force_feature_count=True)
    bounds = info["total_bounds"]
    if bounds is None or not np.isfinite(bounds).all():
        return info["crs"], None, int(info["features"])
    west, south, east, north = map(float, bounds)
    return info["crs"], (west, south, east, north), int(info["features"])


def read_attributes(path: Path, layer: str = "") -> dict[str, list[Any]]:
    """Read the attributes of all features of a layer by name, without their geometry.

    Args:
      path: the file.
      layer: name of the layer, "" for the first.

    Raises:
      UserError: the file cannot be read, or lacks the layer.
    """
    meta, _, _, columns = _read(path, layer, pyogrio.raw.read, read_geometry=False)
    return {name: column.tolist() for name, column in zip(meta["fields"], columns, strict=True)}


def read_layers(path: Path) -> list[str]:
    """Return the names of the layers of a vector file that have polygons.

    Raises:
      UserError: the file cannot be read.
    """
    _check_content(path)
    try:
        with as_file(path) as name:
            layers = pyogrio.list_layers(name)
    except _ERRORS as error:
        raise _unreadable(path, "", error) from error
    return [layer for layer, kind in layers.tolist() if kind and ("Polygon" in kind or kind == "Unknown")]


def _check_content(path: Path) -> None:
    """Check that a file holds its shapes, and does not describe others, before GDAL chooses a driver for it.

    Raises:
      UnreadableFile: its first bytes are not those of a format of `VECTOR_FORMATS`.
      UserError: it is a database that reads other files.
    """
    if is_remote(str(path)) or not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(_START)
    text = start.lstrip(b"\xef\xbb\xbf\x1e \t\r\n")
    is_kml = text.startswith(b"<") and b"<kml" in start and _DESCRIPTIONS.search(start) is None
    if not (start.startswith(_SIGNS) or text[:1] in (b"{", b"[") or is_kml):
        raise UnreadableFile(
            f"{path}: cannot be read as vector data (it starts as none of {', '.join(VECTOR_FORMATS)}): "
            "restore the file, or mend it"
        )
    if start.startswith(_SQLITE) and _has_foreign_tables(path):
        raise UserError(f"{path}: has tables that read other files: copy its polygons to a new GeoPackage")


def _has_foreign_tables(path: Path) -> bool:
    """Return whether a database has virtual tables other than its own indexes."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        ) as base:
            found = base.execute("SELECT sql FROM sqlite_master WHERE sql LIKE '%virtual%'").fetchall()
    except (sqlite3.Error, UnicodeError):
        return False  # damaged, which reading it tells
    return any(_VIRTUAL_TABLE.search(str(sql)) for (sql,) in found)


def _areal(shapes: np.ndarray) -> np.ndarray:
    """Return which geometries have an area or are missing, (n,) bool."""
    kinds = shapely.GeometryType
    bare = (kinds.POINT, kinds.LINESTRING, kinds.LINEARRING, kinds.MULTIPOINT, kinds.MULTILINESTRING)
    return ~np.isin(shapely.get_type_id(shapes), bare)


def _without_others(shapes: np.ndarray) -> np.ndarray:
    """Return geometries of which collections have lost their points and lines."""
    mixed = shapely.get_type_id(shapes) == shapely.GeometryType.GEOMETRYCOLLECTION
    if mixed.any():
        shapes = shapes.copy()
        shapes[mixed] = [shapely.multipolygons(_polygons_of(shape)) for shape in shapes[mixed]]
    return shapes


def _polygons_of(shape: Any) -> list[Any]:
    """Return the polygons of a geometry, of collections inside collections too."""
    parts = list(shapely.get_parts(shape))
    while any(hasattr(part, "geoms") for part in parts):
        parts = [inner for part in parts for inner in getattr(part, "geoms", (part,))]
    return [part for part in parts if part.geom_type == "Polygon"]


def _warn_of_others(path: Path, count: int) -> None:
    with _lock:
        if path in _warned:
            return
        _warned.add(path)
    log.warning("%s: %d lines and points among its polygons label nothing and are left out", path, count)


def _around(bounds: Bounds, crs: Any, theirs: Any) -> Bounds | None:
    """Return bounds and a margin in another CRS; None if they are no rectangle there, as at the date line.

    Args:
      bounds: of the image.
      crs: their CRS; None if it is `theirs`.
      theirs: the other CRS.
    """
    if crs is not None:
        try:
            bounds = transform_bounds(crs, theirs, *bounds, densify_pts=_EDGE_POINTS)
        except CRS_ERRORS:
            return None
    west, south, east, north = bounds
    if not np.isfinite(bounds).all() or west > east or south > north:
        return None
    across, up = _MARGIN * (east - west), _MARGIN * (north - south)
    return west - across, south - up, east + across, north + up


def _require_finite(path: Path, polygons: np.ndarray, must: str) -> None:
    """Raise a UserError if a coordinate is NaN, infinite or too large; empty polygons have none."""
    near = np.abs(shapely.get_coordinates(polygons)) < _LARGEST  # false for NaN
    broken = int(np.count_nonzero(~near.all(axis=1)))
    if broken:
        raise UserError(f"{path}: {broken} coordinates of its polygons {must}")


def _near(path: Path, polygons: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Return polygons of which those that reach far beyond an image are cut off.

    GDAL draws in whole pixels of 32 bits, which far coordinates exceed.
    """
    west, south, east, north = bounds
    across, up = _FAR * (east - west), _FAR * (north - south)
    area = west - across, south - up, east + across, north + up
    reach = shapely.bounds(polygons)  # (n, 4), NaN for empty polygons
    far = (reach[:, :2] < area[:2]).any(axis=1) | (reach[:, 2:] > area[2:]).any(axis=1)
    if far.any():
        polygons = polygons.copy()
        try:
            polygons[far] = shapely.clip_by_rect(polygons[far], *area)
        except shapely.errors.ShapelyError as error:
            raise UserError(
                f"{path}: a polygon that reaches far beyond the image is not valid "
                f"({shown(' '.join(str(error).split()))}): mend the geometry, as with ogr2ogr -makevalid"
            ) from error
    return polygons


def _reprojected(polygons: np.ndarray, theirs: Any, crs: Any) -> np.ndarray:
    def reproject(points: np.ndarray) -> np.ndarray:
        """Transform points (n, 2) to the image's coordinate system."""
        return np.column_stack(transform(theirs, crs, points[:, 0], points[:, 1])[:2])

    return shapely.transform(polygons, reproject)


def _unreadable(path: Path, layer: str, error: Exception) -> UserError:
    """Return the error for a layer that does not exist, or for a file that cannot be read."""
    try:
        with as_file(path) as name:
            layers = pyogrio.list_layers(name)[:, 0].tolist()
    except _ERRORS:
        layers = []
    if layers and layer and layer not in layers:
        listed = shown(", ".join(layers))
        return UserError(f"{path}: no layer {layer!r}, it has {listed}: correct data.label_layer")
    reason = shown(" ".join(str(error).split()))
    return UnreadableFile(f"{path}: cannot be read as vector data ({reason}): restore the file, or mend it")
