"""The polygons of a map, as a layer that GIS programs and data frames read."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyogrio
import rasterio
import shapely
from affine import Affine
from pyogrio.errors import DataLayerError, DataSourceError
from rasterio.crs import CRS
from rasterio.features import rasterize, shapes, sieve
from rasterio.warp import transform as transform_points

from data_pipelines.readers.vector_name import as_file
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.scene import NODATA, reading

DRIVERS = {".gpkg": "GPKG", ".geojson": "GeoJSON", ".fgb": "FlatGeobuf", ".parquet": "Parquet"}
"""GDAL's driver by the suffix of a file; GeoParquet is written by pyarrow."""
_GEOPARQUET = ".parquet"
_WGS84 = CRS.from_epsg(4326)
_STRIP = 1024  # rows of the map in which the confidence of polygons is summed up at once


class Outlines(NamedTuple):
    """Which polygons are written, and how coarse.

    Attributes:
      min_pixels: smaller areas go to their largest neighbour.
      simplify: a bend is left out whose area is below the square of this many pixels; 0 keeps the edges of
        the pixels.
    """

    min_pixels: int = 10
    simplify: float = 1.0


OUTLINES = Outlines()


class Polygons(NamedTuple):
    """Polygons of a map, in pixels: x is the column, y the row.

    Attributes:
      geometry: (n,) shapely polygons.
      classes: (n,) int32, numbers of classes.
      pixels: (n,) int64, areas before simplification.
      confidence: (n,) float64, means over the areas before simplification.
    """

    geometry: np.ndarray
    classes: np.ndarray
    pixels: np.ndarray
    confidence: np.ndarray


def write_polygons(
    path: Path,
    target: Path,
    map_path: Path,
    confidence: Path | None,
    names: Sequence[str],
    outlines: Outlines = OUTLINES,
) -> None:
    """Write the polygons of a map, in its CRS, as a layer `map`.

    A GeoJSON file has longitude and latitude instead. Polygons have the fields `class` (number), `name`,
    `pixels` (area) and `confidence` (mean). Common edges of simplified neighbours stay common: there are no
    gaps, and nothing overlaps.

    Args:
      path: file to write; its suffix is one of `DRIVERS`.
      target: its final name, for messages.
      map_path: the map.
      confidence: the confidence of the map, or None for none.
      names: of the classes.
      outlines: which polygons, and how coarse.

    Raises:
      UserError: the file cannot be written, or the CRS has no longitude and latitude for GeoJSON.
    """
    with reading(str(map_path)), rasterio.open(map_path) as dataset:
        classes, transform, crs = dataset.read(1), dataset.transform, dataset.crs
    suffix = target.suffix.lower()
    found = trace(classes, confidence, outlines)
    linear = np.array([[transform.a, transform.d], [transform.b, transform.e]])
    geometry = shapely.transform(found.geometry, lambda points: points @ linear + (transform.c, transform.f))
    # GDAL and GIS programs expect outer rings to be counterclockwise
    geometry = shapely.orient_polygons(geometry)
    fields: dict[str, np.ndarray] = {
        "class": found.classes,
        "name": np.array([names[i] for i in found.classes], dtype=object),
        "pixels": found.pixels,
        "confidence": found.confidence,
    }
    if confidence is None:
        del fields["confidence"]
    if suffix == ".geojson" and crs is not None:  # longitude and latitude, as RFC 7946 has them
        geometry = shapely.transform(geometry, lambda points: _to_degrees(points, crs))
        crs = None
    try:
        if suffix == _GEOPARQUET:
            _write_geoparquet(path, geometry, fields, crs)
        else:
            with as_file(path) as name:
                _write_layer(name, geometry, fields, crs, DRIVERS[suffix])
                _check_count(name, len(geometry))
    except (DataSourceError, DataLayerError, OSError) as problem:
        said = " ".join(str(problem).split())
        raise UserError(f"{target}: cannot be written ({said}); choose a folder with room") from problem


def check_vector(target: Path, scene: Any) -> None:
    """Check that polygons of a scene can be written, before it is mapped.

    Args:
      target: file to write.
      scene: the open scene.

    Raises:
      UserError: the scene has control points instead of a transform, or pyarrow is missing for GeoParquet.
    """
    if scene.transform.is_identity and scene.gcps[0]:
        raise UserError(
            f"{target}: polygons need a transform, and the scene has control points: warp it first "
            "(gdalwarp), or leave --vector out"
        )
    if target.suffix.lower() == _GEOPARQUET and find_spec("pyarrow") is None:
        raise UserError(f"{target}: GeoParquet needs pyarrow: pip install 'spectralmoe-jax[geoparquet]'")


def _to_degrees(points: np.ndarray, crs: Any) -> np.ndarray:
    """Turn points (n, 2) of a CRS into longitude and latitude (WGS 84).

    Raises:
      UserError: they have none.
    """
    try:
        found = np.column_stack(transform_points(crs, _WGS84, points[:, 0], points[:, 1]))
    except Exception as problem:  # GDAL's errors have no public base class
        raise UserError(
            f"the map's CRS has no longitude and latitude ({problem}); write a .gpkg"
        ) from problem
    if not np.isfinite(found).all():
        raise UserError("the map lies outside the area of its CRS; write a .gpkg instead of GeoJSON")
    return found


def _check_count(path: Path, count: int) -> None:
    """Read the polygons back: GDAL does not report a disk that is full when it closes a file.

    Raises:
      OSError: they are not all there.
    """
    try:
        found = len(pyogrio.raw.read(path, columns=[])[2])
    except (DataSourceError, DataLayerError) as problem:
        raise OSError("the file is not whole") from problem
    if found != count:
        raise OSError("the file is not whole")


def trace(classes: np.ndarray, confidence: Path | None = None, outlines: Outlines = OUTLINES) -> Polygons:
    """Trace the areas of one class in a map.

    Args:
      classes: (H, W) uint8, 255 = nodata.
      confidence: raster (H, W) to take means of, or None.
      outlines: which polygons, and how coarse.
    """
    valid = classes != NODATA
    # 1. join small areas to their neighbours; those without a neighbour stay
    most = min(outlines.min_pixels, classes.size - 1)
    if most > 1:
        joined = sieve(classes, most, mask=valid)
        classes = np.where(valid, joined, NODATA).astype(np.uint8)
    # 2. outlines of pixels
    traced = list(shapes(classes, mask=valid))
    geometry = np.array([shapely.geometry.shape(outline) for outline, _ in traced], dtype=object)
    numbers = np.array([value for _, value in traced], np.int32)
    # 3. confidence, before the outlines move
    pixels, sums = _sums(geometry, confidence, classes.shape)
    # 4. common edges are simplified once; they have the same points in both neighbours
    if len(geometry):
        geometry = shapely.segmentize(geometry, 1.0)
        geometry = shapely.coverage_simplify(geometry, outlines.simplify)
    return Polygons(geometry, numbers, pixels, sums / np.maximum(pixels, 1))


def _sums(
    geometry: np.ndarray, confidence: Path | None, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of pixels of outlines, and the sum of a raster over them; zero without a raster."""
    pixels, sums = np.zeros(len(geometry), np.int64), np.zeros(len(geometry))
    if not len(geometry):
        return pixels, sums
    tree = shapely.STRtree(geometry)
    for first in range(0, shape[0], _STRIP):
        rows = min(_STRIP, shape[0] - first)
        near = np.sort(tree.query(shapely.box(0, first, shape[1], first + rows)))
        if not len(near):
            continue
        numbers = rasterize(
            zip(geometry[near], near + 1, strict=True),
            (rows, shape[1]),
            transform=Affine.translation(0, first),
            dtype="int32",
        )
        pixels += np.bincount(numbers.ravel(), minlength=len(geometry) + 1)[1:]
        if confidence is not None:
            with reading(str(confidence)), rasterio.open(confidence) as dataset:
                window = rasterio.windows.Window(0, first, shape[1], rows)
                values = np.nan_to_num(dataset.read(1, window=window).astype(np.float64))
            sums += np.bincount(numbers.ravel(), values.ravel(), minlength=len(geometry) + 1)[1:]
    return pixels, sums


def _write_layer(
    path: Path, geometry: np.ndarray, fields: dict[str, np.ndarray], crs: Any, driver: str
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided")  # the scene has none
        pyogrio.raw.write(
            path,
            shapely.to_wkb(geometry),
            list(fields.values()),
            list(fields),
            geometry_type="Polygon",
            crs=crs.to_wkt() if crs else None,
            driver=driver,
            layer="map",
        )


def _write_geoparquet(path: Path, geometry: np.ndarray, fields: dict[str, np.ndarray], crs: Any) -> None:
    """Write GeoParquet 1.1, https://geoparquet.org/releases/v1.1.0."""
    import pyarrow  # an optional extra
    import pyarrow.parquet

    column: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Polygon"]}
    column["bbox"] = shapely.total_bounds(geometry).tolist() if len(geometry) else [0, 0, 0, 0]
    column["orientation"] = "counterclockwise"
    column["crs"] = crs.to_dict(projjson=True) if crs else None
    about = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    table = pyarrow.table(fields | {"geometry": shapely.to_wkb(geometry)})
    table = table.replace_schema_metadata({"geo": json.dumps(about)})
    pyarrow.parquet.write_table(table, path, compression="zstd")
