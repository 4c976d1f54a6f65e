"""The areas of a map as GeoJSON (RFC 7946): longitude and latitude on WGS 84."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError  # what transforming raises; no public module has it
from rasterio.errors import RasterioError
from rasterio.features import shapes
from rasterio.warp import transform_geom
from shapely.geometry import mapping, shape
from shapely.geometry.polygon import orient

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.scene import NODATA, reading

# What GDAL, and shapely after it, raise for coordinates without a place; SystemError is Python's own for an
# error of C code that it did not report.
_NOT_ON_EARTH = (RasterioError, CPLE_BaseError, SystemError, ValueError, OverflowError)
_PRECISION = 8  # decimals of a degree: a millimetre
_MOST_CORNERS = 500_000  # of all polygons of a map: 15 MB of text, 100 MB while it is made


def map_as_geojson(path: Path, names: Sequence[str]) -> str:
    """Return the polygons of a map, each an area of one class whose pixels share edges.

    Args:
      path: the map.
      names: of the classes.

    Returns:
      A FeatureCollection; the properties of a feature are `class` (number) and `name`.

    Raises:
      UserError: the map has no CRS, too many polygons, or no place on Earth.
    """
    with reading(str(path)), rasterio.open(path) as dataset:
        if dataset.crs is None:
            raise UserError("the image has no CRS, which GeoJSON needs; ask for tif or png")
        classes, crs, transform = dataset.read(1), dataset.crs, dataset.transform
    corners = count_corners(classes)
    if corners > _MOST_CORNERS:
        raise UserError(
            f"the areas of the map have {corners} corners, more than {_MOST_CORNERS}; ask for tif or png"
        )

    def features() -> Iterator[dict[str, Any]]:
        """Yield a feature for each area."""
        for outline, number in shapes(classes, mask=classes != NODATA, transform=transform):
            on_earth = transform_geom(crs, "EPSG:4326", outline, precision=_PRECISION)
            properties = {"class": int(number), "name": names[int(number)]}
            yield {"type": "Feature", "properties": properties, "geometry": _oriented(on_earth)}

    try:
        return json.dumps({"type": "FeatureCollection", "features": list(features())}, allow_nan=False)
    except _NOT_ON_EARTH as error:
        raise UserError(
            "the image's CRS and transform do not lead to longitudes and latitudes; ask for tif or png"
        ) from error


def count_corners(classes: np.ndarray) -> int:
    """Count the corners of the areas of one class: points whose four pixels are not two equal pairs.

    Args:
      classes: (H, W) uint8.
    """
    padded = np.pad(classes, 1, constant_values=NODATA)
    same_in_row = padded[:, 1:] == padded[:, :-1]
    same_in_column = padded[1:] == padded[:-1]
    is_side = (same_in_row[1:] & same_in_row[:-1]) | (same_in_column[:, 1:] & same_in_column[:, :-1])
    return int(is_side.size - np.count_nonzero(is_side))


def _oriented(geometry: dict[str, Any]) -> dict[str, Any]:
    """Return a polygon, or several, with outer rings counterclockwise and holes clockwise."""
    if geometry["type"] == "Polygon":
        return mapping(orient(shape(geometry)))
    parts = [mapping(orient(part))["coordinates"] for part in shape(geometry).geoms]
    return {"type": "MultiPolygon", "coordinates": parts}
