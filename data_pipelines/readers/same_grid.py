"""Grids of two rasters: whether a mask has the size and the place of its image."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from data_pipelines.readers.coordinate_systems import Bounds, crs_name, same_crs
from data_pipelines.readers.raster_header import Header, read_header
from spectralmoe_jax.errors import UserError


def header_on_same_grid(image: Path, header: Header, mask: Path) -> Header:
    """Return the header of a mask, which has the size and place of its image.

    Args:
      image: path of the image.
      header: header of the image.
      mask: path of the mask.

    Raises:
      UserError: the mask has another size, or lies elsewhere.
    """
    found = read_header(mask)
    if (found.height, found.width) != (header.height, header.width):
        raise UserError(
            f"{mask}: {found.height} x {found.width} pixels, its image {image} has "
            f"{header.height} x {header.width}: give a mask of the image's size"
        )
    bounds = grid_bounds(header.transform, header.height, header.width)
    if header.crs and found.crs and not same_crs(header.crs, found.crs, bounds):
        raise UserError(
            f"{mask}: lies in {crs_name(found.crs)}, its image {image} in {crs_name(header.crs)}: "
            "reproject the mask onto the image's grid"
        )
    if _is_placed(header) and _is_placed(found) and not _same_place(header, found):
        raise UserError(
            f"{mask}: lies elsewhere than its image {image} ({_grid(found)}, the image {_grid(header)}): "
            "give the mask of this image"
        )
    return found


def grid_bounds(transform: Any, height: int, width: int) -> Bounds:
    """Return west, south, east and north of a grid, which may be rotated."""
    corners = [_place(transform, col, row) for col in (0, width) for row in (0, height)]
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _is_placed(header: Header) -> bool:
    """Return whether a raster has a georeference; a grid of pixel numbers, as QGIS writes, is none."""
    place = header.transform
    if header.crs:
        return True
    numbered = (abs(place.a), place.b, place.d, abs(place.e)) == (1, 0, 0, 1)
    return not (numbered and place.c == 0 and place.f in (0, header.height))


def _same_place(image: Header, mask: Header) -> bool:
    """Return whether the corners of two grids of one size coincide to half a pixel."""
    side = max(abs(image.transform.a), abs(image.transform.b))
    return all(
        math.dist(_place(image.transform, *corner), _place(mask.transform, *corner)) < side / 2
        for corner in ((0, 0), (image.width, image.height))
    )


def _place(transform: Any, col: float, row: float) -> tuple[float, float]:
    """Return the coordinates of the upper left corner of a pixel."""
    return (
        transform.c + transform.a * col + transform.b * row,
        transform.f + transform.d * col + transform.e * row,
    )


def _grid(header: Header) -> str:
    """Return origin and pixel size of a grid in words."""
    place = header.transform
    return f"from {place.c:.9g}, {place.f:.9g} by {place.a:.6g}, {place.e:.6g}"
