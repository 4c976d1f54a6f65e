"""Reading polygons around an image from one vector file, with errors that name the file."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.readers.raster_file import UnreadableFile
from spectralmoe_jax.errors import UserError

log = logging.getLogger(__name__)
_mentioned: set[Path] = set()  # files with more than polygons
_lock = threading.Lock()
VECTOR_FORMATS = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".kml", ".parquet")
_MARGIN = 0.01  # of the image's extent: straight lines of one CRS are bent in another
_EDGE_POINTS = 21  # a side of the image, that are projected to find what it covers

Bounds = tuple[float, float, float, float]


def read_polygons(
    path: Path, layer: str, attribute: str, crs: Any, bounds: Bounds
) -> tuple[np.ndarray, list[Any]]:
    """The polygons around `bounds` as shapely's, and the value of an attribute for each, in the order in
    which they lie in the file. Lines and points are left out, with one warning a file.

    Args:
      layer: its name, "" for the first.
      crs: of `bounds` and of the geometries returned, which are reprojected to it; a `rasterio.crs.CRS`.
      bounds: west, south, east, north.

    Raises:
      UserError: a file that cannot be read, without CRS, without this layer or attribute.
    """
    import pyogrio
    import shapely
    from pyogrio.errors import DataLayerError, DataSourceError
    from rasterio.crs import CRS

    chosen = layer or None
    try:
        facts = pyogrio.read_info(path, layer=chosen)
        if attribute not in facts["fields"]:
            raise UserError(
                f"{path}: no attribute {attribute!r}, it has {', '.join(facts['fields'])}: "
                "correct data.label_attribute"
            )
        if not facts["crs"]:
            raise UserError(f"{path}: has no coordinate reference system: give polygons with one")
        theirs = CRS.from_user_input(facts["crs"])
        _, fids, geometries, columns = pyogrio.raw.read(
            path, layer=chosen, columns=[attribute], bbox=_around(bounds, crs, theirs), return_fids=True
        )
    except (DataLayerError, DataSourceError) as error:
        raise _unreadable(path, layer, error) from error
    order = np.arange(len(fids))
    if facts["capabilities"]["fast_spatial_filter"]:  # found through an index, in the index's order
        order = np.argsort(fids, kind="stable")
    try:
        shapes = shapely.from_wkb(geometries[order])
    except shapely.errors.ShapelyError as error:  # such as a ring that is not closed
        raise _unreadable(path, layer, error) from error
    areal = _areal(shapes)
    if not areal.all():
        _mention_others(path, int(np.count_nonzero(~areal)))
    polygons, values = shapes[areal], columns[0][order][areal].tolist()
    return (polygons if theirs == crs else _reprojected(polygons, theirs, crs)), values


def _areal(shapes: np.ndarray) -> np.ndarray:
    """Which geometries have an area to be drawn, or are missing, (n,) bool."""
    import shapely

    kinds = shapely.GeometryType
    bare = (kinds.POINT, kinds.LINESTRING, kinds.LINEARRING, kinds.MULTIPOINT, kinds.MULTILINESTRING)
    return ~np.isin(shapely.get_type_id(shapes), bare)


def _mention_others(path: Path, count: int) -> None:
    with _lock:
        if path in _mentioned:
            return
        _mentioned.add(path)
    log.warning("%s: %d lines and points among its polygons label nothing and are left out", path, count)


def _around(bounds: Bounds, crs: Any, theirs: Any) -> Bounds | None:
    """`bounds` and a margin in another CRS; None where it has no such rectangle, as across the date line."""
    from rasterio.errors import RasterioError
    from rasterio.warp import transform_bounds

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
    import shapely
    from rasterio.warp import transform

    def reproject(points: np.ndarray) -> np.ndarray:
        return np.column_stack(transform(theirs, crs, points[:, 0], points[:, 1])[:2])

    return shapely.transform(polygons, reproject)


def _unreadable(path: Path, layer: str, error: Exception) -> UserError:
    import pyogrio
    from pyogrio.errors import DataSourceError

    try:
        layers = pyogrio.list_layers(path)[:, 0].tolist()
    except DataSourceError:
        layers = []
    if layers and layer and layer not in layers:
        return UserError(f"{path}: no layer {layer!r}, it has {', '.join(layers)}: correct data.label_layer")
    reason = " ".join(str(error).split())
    return UnreadableFile(f"{path}: cannot be read as vector data ({reason}): restore the file, or mend it")
