"""Labels of images, as raster masks or polygons."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import shapely
from rasterio.features import rasterize
from rasterio.warp import transform_bounds
from rasterio.windows import Window as RasterWindow

from data_pipelines.readers.coordinate_systems import CRS_ERRORS, Bounds, crs_name, same_crs
from data_pipelines.readers.label_codes import ColourCode, ValueCode
from data_pipelines.readers.raster_file import (
    ignore_missing_georeference,
    open_image,
    read_mask,
)
from data_pipelines.readers.raster_header import Header
from data_pipelines.readers.same_grid import grid_bounds, header_on_same_grid
from data_pipelines.readers.validity import validity_of
from data_pipelines.readers.vector_file import read_extent, read_polygons
from data_pipelines.records import IGNORE, Window
from spectralmoe_jax.errors import UserError, shown

log = logging.getLogger(__name__)
LOSSY = "its compression is lossy, as that of JPEG"
_IMAGES_KEPT = 16  # images whose polygons are kept in memory


class Labels(Protocol):
    """Reads the training ids of an image from a label file.

    Attributes:
      strict: an unknown value is an error; otherwise it is counted, logged and ignored.
    """

    strict: bool

    def check(self, image: Path, header: Header, mask: Path) -> bool:
        """Check a label file against the header of its image.

        Returns:
          Whether windows of `mask` are read without decoding what precedes them.

        Raises:
          UserError: the file cannot be the labels of this image.
        """

    def read(self, image: Path, mask: Path, window: Window | None) -> tuple[np.ndarray, Counter]:
        """Read training ids.

        Args:
          image: path of the image.
          mask: path of its labels.
          window: part of the image; None for all.

        Returns:
          Ids (H, W) uint8, 255 for no label; and the pixel count of each unknown value.
        """


class RasterLabels:
    """Labels as a raster of the image's size: colours, indices into a colour table, or values.

    Args:
      code: `ColourCode` for masks of colours, with a colour table, or of training ids; `ValueCode` for one
        band of stored values.
    """

    def __init__(self, code: ColourCode | ValueCode):
        self.code = code
        self.strict = isinstance(code, ValueCode)
        self._complete: set[Path] = set()  # files that state nothing to be missing
        self._warned = False  # of masks with lossy compression

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_complete": set()}

    def check(self, image: Path, header: Header, mask: Path) -> bool:
        """Check size, place, bands and type of a mask; see `Labels.check`."""
        found = header_on_same_grid(image, header, mask)
        if isinstance(self.code, ValueCode):
            if found.count != 1 or found.dtype.kind not in "uif":
                raise UserError(
                    f"{mask}: {found.count} bands of {found.dtype}, data.label_values is for one band of "
                    "numbers: give such masks, or leave data.label_values out for masks of colours"
                )
        elif not (found.count in (3, 4) and found.dtype == np.uint8) and not (
            found.count == 1 and found.dtype.kind in "uif"
        ):
            raise UserError(
                f"{mask}: {found.count} bands of {found.dtype}: "
                "a mask has 1 band of numbers, or 3 or 4 bands of 8 bits"
            )
        if found.has_nodata:
            self._check_nodata(mask)
        if found.lossy and not self._warned:
            self._warned = True
            log.warning(
                "%s and others like it: %s, which changes the values of a mask: store masks as PNG, or as "
                "TIFF with deflate",
                mask,
                LOSSY,
            )
        return found.random_access

    def holds_255(self, mask: Path) -> bool:
        """Return whether a mask of training ids holds 255, which is no label."""
        if isinstance(self.code, ValueCode):
            return False
        pixels, table = self._read_mask(mask, None)
        return not table and pixels.shape[-1] == 1 and bool((pixels == IGNORE).any())

    def _check_nodata(self, mask: Path) -> None:
        """Raise a UserError if pixels of a class would be no label, by the nodata value of the file."""
        with open_image(mask) as dataset:
            nodata, count = dataset.nodata, dataset.count
            table = dataset.colormap(1) if dataset.colorinterp[0].name == "palette" and count == 1 else None
        if table and self._is_grey(table):
            table = None
        if nodata is None:
            return
        if isinstance(self.code, ValueCode) or (count == 1 and table is None):
            key = nodata
            stored = self.code.ids if isinstance(self.code, ValueCode) else range(len(self.code.palette))
            is_class = key in stored and (not isinstance(stored, Mapping) or stored[key] != IGNORE)
        else:
            colour = tuple(table.get(int(nodata), ())[:3]) if table else (nodata,) * 3
            is_class = colour in self.code.palette
        if is_class:
            raise UserError(
                f"{mask}: declares {nodata:g} as nodata, which means no label, but that is a class: "
                "remove the declaration (gdal_edit.py -unsetnodata), or correct the values of the classes"
            )

    def read(self, image: Path, mask: Path, window: Window | None) -> tuple[np.ndarray, Counter]:
        """Read training ids; see `Labels.read`."""
        pixels, table = self._read_mask(mask, window)  # (H, W, bands)
        missing = self._missing(mask, window, pixels)
        if isinstance(self.code, ValueCode):
            return self.code.from_values(pixels[..., 0], missing)
        if pixels.shape[-1] >= 3:
            return self.code.from_rgb(pixels, missing)
        if table:
            return self.code.from_indexed(pixels[..., 0], table, missing)
        return self.code.from_ids(pixels[..., 0], missing)

    def _read_mask(
        self, mask: Path, window: Window | None
    ) -> tuple[np.ndarray, Mapping[int, tuple[int, ...]] | None]:
        """Read a mask as stored, and its colour table unless that is one of greys for masks of numbers."""
        pixels, table = read_mask(mask, window)
        return pixels, None if table and self._is_grey(table) else table

    def _is_grey(self, table: Mapping[int, tuple[int, ...]]) -> bool:
        """Return whether a colour table has opaque greys alone, and no class or ignored colour is grey.

        Such tables, which grey BMP and TIFF files of 1 bit have, say nothing about classes.
        """
        if isinstance(self.code, ValueCode):
            return False
        coded = any(len(set(colour)) == 1 for colour in (*self.code.palette, *self.code.ignore))
        opaque = (255,), ()
        return not coded and all(len(set(c[:3])) == 1 and c[3:] in opaque for c in table.values())

    def _missing(self, mask: Path, window: Window | None, pixels: np.ndarray) -> np.ndarray | None:
        """Return where a label file has no label by its own statement, (H, W) bool; None for nowhere.

        These are pixels with the nodata value in all bands, pixels that a mask of the file leaves out, and
        NaN.

        Args:
          mask: the label file.
          window: part of it that was read; None for all.
          pixels: what was read, (H, W, bands).
        """
        missing = None if mask in self._complete else self._stated(mask, window, pixels)
        if pixels.dtype.kind == "f":
            unknown = np.asarray(np.isnan(pixels).any(axis=-1))
            missing = unknown if missing is None else missing | unknown
        return missing

    def _stated(self, mask: Path, window: Window | None, pixels: np.ndarray) -> np.ndarray | None:
        """Return where nodata values and masks of a file say that a pixel is missing."""
        part = None if window is None else RasterWindow(window.col, window.row, window.width, window.height)
        with open_image(mask) as dataset:
            validity = validity_of(dataset)
            missing = validity.masked(dataset, part)
            absent = validity.absent(dataset, part, pixels)
        if absent is None and missing is None:
            self._complete.add(mask)
        if absent is not None:
            absent = absent[..., 0] if absent.shape[-1] == 1 else np.asarray(absent.all(axis=-1))
            missing = absent if missing is None else missing | absent
        return missing


class VectorLabels:
    """Labels as polygons that are rasterised onto the grid of the image.

    A pixel has the class of the polygon that contains its centre: the last one in the file where polygons
    overlap, no label outside all. Polygons in another CRS are reprojected. One file may serve many images:
    only the polygons around each image are read, and those of the last few images are kept.

    Args:
      code: class of each attribute value.
      attribute: name of the attribute.
      layer: name of the layer; default the first.
    """

    strict = True

    def __init__(self, code: ValueCode, attribute: str, layer: str = ""):
        self.code, self.attribute, self.layer = code, attribute, layer
        self._start()

    def _start(self) -> None:
        self._polygons: OrderedDict[tuple[Path, Path], tuple[Any, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"code": self.code, "attribute": self.attribute, "layer": self.layer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def check(self, image: Path, header: Header, mask: Path) -> bool:
        """Check that the image is georeferenced, and read the polygons around it; see `Labels.check`."""
        if header.crs is None:
            raise UserError(
                f"{image}: is not georeferenced, so the polygons of {mask} cannot be placed: "
                "give a raster mask"
            )
        self._of_image(image, mask)
        return True

    def read(self, image: Path, mask: Path, window: Window | None) -> tuple[np.ndarray, Counter]:
        """Rasterise the polygons around an image; see `Labels.read`."""
        with open_image(image) as dataset:
            part = window or Window(0, 0, dataset.height, dataset.width)
            transform = dataset.window_transform(RasterWindow(part.col, part.row, part.width, part.height))
        tree, ids = self._of_image(image, mask)
        near = np.sort(tree.query(shapely.box(*grid_bounds(transform, part.height, part.width))))
        label = np.full((part.height, part.width), IGNORE, np.uint8)
        if len(near):
            shapes = [(tree.geometries[i], int(ids[i])) for i in near]
            with ignore_missing_georeference():  # it draws into a dataset of its own, which has none
                rasterize(shapes, out=label, transform=transform)
        return label, Counter()

    def _of_image(self, image: Path, mask: Path) -> tuple[Any, np.ndarray]:
        """Return the polygons around an image in its CRS, as a search tree, and the id of each."""
        key = image, mask
        with self._lock:
            if key in self._polygons:
                self._polygons.move_to_end(key)
                return self._polygons[key]
        found = self._read(image, mask)  # outside the lock: no thread waits for another's file
        with self._lock:
            self._polygons[key] = found
            if len(self._polygons) > _IMAGES_KEPT:
                self._polygons.popitem(last=False)
        return found

    def _read(self, image: Path, mask: Path) -> tuple[Any, np.ndarray]:
        with open_image(image) as dataset:
            crs, bounds = dataset.crs, grid_bounds(dataset.transform, dataset.height, dataset.width)
        polygons, values = read_polygons(mask, self.layer, self.attribute, crs, bounds)
        ids = np.array([self._id(value, mask) for value in values], np.uint8)
        drawn = ~(shapely.is_missing(polygons) | shapely.is_empty(polygons))
        return shapely.STRtree(polygons[drawn]), ids[drawn]

    def _id(self, value: Any, mask: Path) -> int:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return IGNORE
        if not isinstance(value, Hashable):
            raise UserError(
                f"{mask}: {self.attribute} holds lists, such as {shown(repr(value), 60)}: name an "
                "attribute with one number or text for each polygon, data.label_attribute"
            )
        if value not in self.code.ids:
            raise UserError(
                f"{mask}: {self.attribute} has the value {shown(repr(value), 60)}, which is neither in "
                "data.label_values nor in data.ignore_values: add it to one of them"
            )
        return self.code.ids[value]

    def elsewhere(self, image: Path, mask: Path) -> str:
        """Return where image and polygons lie if they are apart, in words, or ""."""
        with open_image(image) as dataset:
            crs, bounds = dataset.crs, grid_bounds(dataset.transform, dataset.height, dataset.width)
        theirs, extent, count = read_extent(mask, self.layer)
        if not count or extent is None:
            return f"{mask} has no polygons"
        around = extent
        if not same_crs(theirs, crs, bounds):
            try:
                around = transform_bounds(theirs, crs, *extent)
            except CRS_ERRORS:
                around = (math.inf,) * 4
        overlap = around[0] <= bounds[2] and bounds[0] <= around[2]
        if overlap and around[1] <= bounds[3] and bounds[1] <= around[3]:
            return ""
        return (
            f"the polygons of {mask} lie elsewhere ({crs_name(theirs)}, {_words(extent)}) than {image} "
            f"({crs_name(crs)}, {_words(bounds)})"
        )


def _words(bounds: Bounds) -> str:
    west, south, east, north = bounds
    return f"x {west:.8g} to {east:.8g}, y {south:.8g} to {north:.8g}"
