"""Labels of images, as raster masks or polygons: reading, and counting in coarse cells."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import shapely
from rasterio.features import rasterize
from rasterio.warp import transform_bounds
from rasterio.windows import Window as RasterWindow

from data_pipelines.readers.coordinate_systems import CRS_ERRORS, Bounds, crs_name, same_crs, shortened
from data_pipelines.readers.file_records import FileRecord
from data_pipelines.readers.label_codes import ColourCode, ValueCode
from data_pipelines.readers.raster_file import (
    ignore_missing_georeference,
    keep_files_open,
    missing_pixels,
    open_image,
    read_mask,
)
from data_pipelines.readers.raster_header import Header, read_header
from data_pipelines.readers.validity import validity_of
from data_pipelines.readers.vector_file import read_extent, read_polygons
from data_pipelines.records import IGNORE, Window
from data_pipelines.tiles.label_grid import grid_cells
from spectralmoe_jax.errors import UserError

log = logging.getLogger(__name__)
_LOSSY = "its compression is lossy, as that of JPEG"
_IMAGES_KEPT = 16  # images whose polygons are kept in memory
_PIXELS = 1 << 23  # counted at a time
_ROWS = 256  # rows are read in multiples of this, as blocks of files have


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
    bounds = _bounds(header.transform, header.height, header.width)
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
                _LOSSY,
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
        near = np.sort(tree.query(shapely.box(*_bounds(transform, part.height, part.width))))
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
            crs, bounds = dataset.crs, _bounds(dataset.transform, dataset.height, dataset.width)
        polygons, values = read_polygons(mask, self.layer, self.attribute, crs, bounds)
        ids = np.array([self._id(value, mask) for value in values], np.uint8)
        drawn = ~(shapely.is_missing(polygons) | shapely.is_empty(polygons))
        return shapely.STRtree(polygons[drawn]), ids[drawn]

    def _id(self, value: Any, mask: Path) -> int:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return IGNORE
        if not isinstance(value, Hashable):
            raise UserError(
                f"{mask}: {self.attribute} holds lists, such as {shortened(repr(value), 60)}: name an "
                "attribute with one number or text for each polygon, data.label_attribute"
            )
        if value not in self.code.ids:
            raise UserError(
                f"{mask}: {self.attribute} has the value {shortened(repr(value), 60)}, which is neither in "
                "data.label_values nor in data.ignore_values: add it to one of them"
            )
        return self.code.ids[value]

    def elsewhere(self, image: Path, mask: Path) -> str:
        """Return where image and polygons lie if they are apart, in words, or ""."""
        with open_image(image) as dataset:
            crs, bounds = dataset.crs, _bounds(dataset.transform, dataset.height, dataset.width)
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


def _bounds(transform: Any, height: int, width: int) -> Bounds:
    """Return west, south, east and north of a grid, which may be rotated."""
    corners = [_place(transform, col, row) for col in (0, width) for row in (0, height)]
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _words(bounds: Bounds) -> str:
    west, south, east, north = bounds
    return f"x {west:.8g} to {east:.8g}, y {south:.8g} to {north:.8g}"


def _grid(header: Header) -> str:
    """Return origin and pixel size of a grid in words."""
    place = header.transform
    return f"from {place.c:.9g}, {place.f:.9g} by {place.a:.6g}, {place.e:.6g}"


def count_labels(labels: Labels, records: Sequence[FileRecord], classes: int) -> tuple[np.ndarray, Counter]:
    """Count the labels of one file in coarse cells.

    Args:
      labels: reads the labels.
      records: all records of the file.
      classes: number of classes K.

    Returns:
      Labelled pixels (cells, K) uint32, as `LabelGrid` has them, and the count of each unknown value.

    Raises:
      UserError: the labels are unreadable, or strict and have an unknown value.
    """
    mask = records[0].mask
    cells = _cells(records)
    counts = np.zeros((len(cells), classes), np.uint32)
    unknown: Counter = Counter()
    with keep_files_open():
        for rows in _bands_of_rows(records):
            label, values = labels.read(records[0].image, mask, rows)
            unknown += values
            for number in _overlapping(rows, cells):
                counts[number] += _count(label, cells[number], rows, classes)
    if unknown and labels.strict:
        value, count = unknown.most_common(1)[0]
        lossy = read_header(mask).lossy
        raise UserError(
            f"{mask}: {count} pixels hold {value}, which is neither in data.label_values nor "
            "in data.ignore_values: "
            + (f"{_LOSSY}, which changes values: store masks as PNG" if lossy else "add it to one of them")
        )
    return counts, unknown


def count_missing(labels: Labels, records: Sequence[FileRecord], labelled: np.ndarray) -> np.ndarray:
    """Count the labelled pixels of one file that are missing in the image; reads only around labelled cells.

    Args:
      labels: reads the labels.
      records: all records of the file.
      labelled: labelled pixels (cells, K), from `count_labels`.

    Returns:
      (cells, K).

    Raises:
      UserError: the image is unreadable.
    """
    image, cells = records[0].image, _cells(records)
    lost = np.zeros_like(labelled)
    with keep_files_open():
        for rows in _bands_of_rows(records):
            here = [number for number in _overlapping(rows, cells) if labelled[number].any()]
            if not here:
                continue
            part = _around([cells[number] for number in here], rows)
            first = records[0]
            missing = missing_pixels(image, part, first.channels, first.nodata, first.alpha)
            if missing is None:
                continue
            label, _ = labels.read(image, records[0].mask, part)
            label = np.where(missing, label, IGNORE)
            for number in here:
                lost[number] += _count(label, cells[number], part, lost.shape[1])
    return lost


def _cells(records: Sequence[FileRecord]) -> list[Window]:
    """Return the coarse cells of all records as windows of the file."""
    return [record.in_file(cell) for record in records for cell in grid_cells(record)]


def _bands_of_rows(records: Sequence[FileRecord]) -> Iterator[Window]:
    """Yield windows over the full width of the file, from top to bottom."""
    height, width = (max(r.row + r.height for r in records), max(r.col + r.width for r in records))
    rows = max(1, _PIXELS // width)
    rows = rows // _ROWS * _ROWS or rows
    for row in range(0, height, rows):
        yield Window(row, 0, min(rows, height - row), width)


def _overlapping(rows: Window, cells: Sequence[Window]) -> list[int]:
    """Return the numbers of the cells that overlap some rows."""
    return [
        number
        for number, cell in enumerate(cells)
        if cell.row < rows.row + rows.height and rows.row < cell.row + cell.height
    ]


def _around(cells: Sequence[Window], rows: Window) -> Window:
    """Return the smallest part of some rows that contains their share of all `cells`."""
    top = max(rows.row, min(cell.row for cell in cells))
    bottom = min(rows.row + rows.height, max(cell.row + cell.height for cell in cells))
    left, right = min(cell.col for cell in cells), max(cell.col + cell.width for cell in cells)
    return Window(top, left, bottom - top, right - left)


def _count(label: np.ndarray, cell: Window, part: Window, classes: int) -> np.ndarray:
    """Count the pixels of each class (K,) in a cell, from `label`, the ids of a part of the file."""
    top, left = max(cell.row - part.row, 0), cell.col - part.col
    inside = label[top : max(cell.row + cell.height - part.row, 0), left : left + cell.width]
    return np.bincount(inside.ravel(), minlength=IGNORE + 1)[:classes].astype(np.uint32)
