"""Polygons around an image from a vector file, with errors that name the file."""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import shapely
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform, transform_bounds

from data_pipelines.readers.address import is_remote
from data_pipelines.readers.unreadable import UnreadableFile
from spectralmoe_jax.errors import UserError

VECTOR_FORMATS = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".kml", ".parquet")
"""Suffixes of vector files."""

Bounds = tuple[float, float, float, float]
"""West, south, east, north."""

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
    chosen = layer or None
    _check_content(path)
    try:
        info = pyogrio.read_info(path, layer=chosen)
        if attribute not in info["fields"]:
            raise UserError(
                f"{path}: no attribute {attribute!r}, it has {', '.join(info['fields'])}: "
                "correct data.label_attribute"
            )
        if not info["crs"]:
            raise UserError(f"{path}: has no coordinate reference system: give polygons with one")
        theirs = CRS.from_user_input(info["crs"])
        _, fids, geometries, columns = pyogrio.raw.read(
            path, layer=chosen, columns=[attribute], bbox=_around(bounds, crs, theirs), return_fids=True
        )
    except (DataLayerError, DataSourceError) as error:
        raise _unreadable(path, layer, error) from error
    order = np.arange(len(fids))
    if info["capabilities"]["fast_spatial_filter"]:  # found through an index, in the order of the index
        order = np.argsort(fids, kind="stable")
    try:
        shapes = shapely.from_wkb(geometries[order])
    except shapely.errors.ShapelyError as error:  # such as a ring that is not closed
        raise _unreadable(path, layer, error) from error
    areal = _areal(shapes)
    if not areal.all():
        _warn_of_others(path, int(np.count_nonzero(~areal)))
    polygons, values = shapes[areal], columns[0][order][areal].tolist()
    return (polygons if theirs == crs else _reprojected(polygons, theirs, crs)), values


def read_attributes(path: Path, layer: str = "") -> dict[str, list[Any]]:
    """Read the attributes of all features of a layer by name, without their geometry.

    Args:
      path: the file.
      layer: name of the layer, "" for the first.

    Raises:
      UserError: the file cannot be read, or lacks the layer.
    """
    _check_content(path)
    try:
        meta, _, _, columns = pyogrio.raw.read(path, layer=layer or None, read_geometry=False)
    except (DataLayerError, DataSourceError) as error:
        raise _unreadable(path, layer, error) from error
    return {name: column.tolist() for name, column in zip(meta["fields"], columns, strict=True)}


def read_layers(path: Path) -> list[str]:
    """Return the names of the layers of a vector file that have polygons.

    Raises:
      UserError: the file cannot be read.
    """
    _check_content(path)
    try:
        layers = pyogrio.list_layers(path)
    except DataSourceError as error:
        raise _unreadable(path, "", error) from error
    return [name for name, kind in layers.tolist() if kind and ("Polygon" in kind or kind == "Unknown")]


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


def _warn_of_others(path: Path, count: int) -> None:
    with _lock:
        if path in _warned:
            return
        _warned.add(path)
    log.warning("%s: %d lines and points among its polygons label nothing and are left out", path, count)


def _around(bounds: Bounds, crs: Any, theirs: Any) -> Bounds | None:
    """Return bounds and a margin in another CRS; None if they are no rectangle there, as at the date line."""
    if theirs != crs:
        try:
            bounds = transform_bounds(crs, theirs, *bounds, densify_pts=_EDGE_POINTS)
        except RasterioError:
            return None
    west, south, east, north = bounds
    if not np.isfinite(bounds).all() or west > east or south > north:
        return None
    across, up = _MARGIN * (east - west), _MARGIN * (north - south)
    return west - across, south - up, east + across, north + up


def _reprojected(polygons: np.ndarray, theirs: Any, crs: Any) -> np.ndarray:
    def reproject(points: np.ndarray) -> np.ndarray:
        """Transform points (n, 2) to the image's coordinate system."""
        return np.column_stack(transform(theirs, crs, points[:, 0], points[:, 1])[:2])

    return shapely.transform(polygons, reproject)


def _unreadable(path: Path, layer: str, error: Exception) -> UserError:
    """Return the error for a layer that does not exist, or for a file that cannot be read."""
    try:
        layers = pyogrio.list_layers(path)[:, 0].tolist()
    except DataSourceError:
        layers = []
    if layers and layer and layer not in layers:
        return UserError(f"{path}: no layer {layer!r}, it has {', '.join(layers)}: correct data.label_layer")
    reason = " ".join(str(error).split())
    return UnreadableFile(f"{path}: cannot be read as vector data ({reason}): restore the file, or mend it")
