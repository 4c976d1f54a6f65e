"""Small raster and vector files for tests."""

import json
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

PLACE = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 10, 10)}


def write_raster(path: Path, pixels: np.ndarray, descriptions=(), driver="GTiff", **profile) -> Path:
    """Writes (H, W, C) or (H, W) as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, count = pixels.shape
    shape = {"height": height, "width": width, "count": count, "dtype": pixels.dtype}
    with rasterio.open(path, "w", driver=driver, **shape, **profile) as dataset:
        dataset.write(np.moveaxis(pixels, -1, 0))
        for band, name in enumerate(descriptions, 1):
            if name:
                dataset.set_band_description(band, name)
    return path


def write_polygons(path: Path, polygons, attribute: str, epsg: int) -> Path:
    """Writes [(value, [(x, y), ...])] as GeoJSON in a CRS of choice."""
    features = [
        {
            "type": "Feature",
            "properties": {attribute: value},
            "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
        }
        for value, ring in polygons
    ]
    crs = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{epsg}"}}
    path.write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    return path
