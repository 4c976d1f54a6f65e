"""Where the labels of an image lie and how they are coded.

Masks as people paint them, to training ids.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from data_pipelines.readers.raster_file import Header, opened, quiet, read_header, read_mask
from data_pipelines.readers.vector_file import read_polygons
from data_pipelines.records import IGNORE, Window
from spectralmoe_jax.errors import UserError

Colour = tuple[int, int, int]
_UNKNOWN = 254


class ColourCode:
    """Turns colours into training ids: the index in `palette`, or 255 for `ignore` and for unknown ones.

    Raises:
      UserError: more than 254 classes, a colour given twice, or one that is not three numbers 0..255.
    """

    def __init__(self, palette: Sequence[Sequence[int]], ignore: Sequence[Sequence[int]] = ()):
        self.palette = tuple(_colour(c, "classes.palette") for c in palette)
        self.ignore = tuple(_colour(c, "data.ignore_colours") for c in ignore)
        if not 1 <= len(self.palette) <= _UNKNOWN:
            raise UserError(f"classes.palette has {len(self.palette)} colours: give 1 to {_UNKNOWN}")
        repeated = [c for c, n in Counter(self.palette + tuple(set(self.ignore))).items() if n > 1]
        if repeated:
            raise UserError(f"classes.palette and data.ignore_colours name {repeated[0]} twice: keep one")

    def from_rgb(self, mask: np.ndarray) -> tuple[np.ndarray, Counter]:
        """Ids (H, W) uint8 of a mask (H, W, 3 or 4) uint8, and the pixel count of each unknown colour.

        Wholly transparent pixels are ignored.
        """
        packed = mask[..., 0].astype(np.uint32) << 16  # (H, W), 0xRRGGBB
        packed |= mask[..., 1].astype(np.uint32) << 8
        packed |= mask[..., 2]
        label = _lookup(self.palette, self.ignore)[packed]
        if mask.shape[-1] == 4:
            label[mask[..., 3] == 0] = IGNORE
        return self._settle(label, packed, lambda c: (int(c) >> 16, int(c) >> 8 & 255, int(c) & 255))

    def from_indexed(
        self, mask: np.ndarray, colours: Mapping[int, Sequence[int]]
    ) -> tuple[np.ndarray, Counter]:
        """As `from_rgb`, for a mask (H, W) of integer indices into a colour table index -> (r, g, b, a).

        An index that the table does not have is unknown, and counted by its number.
        """
        lookup = _lookup(self.palette, self.ignore)
        ids = np.full(max(int(mask.max(initial=0)), *colours) + 1, _UNKNOWN, np.uint8)
        for index, (red, green, blue, *alpha) in colours.items():
            ids[index] = IGNORE if alpha == [0] else lookup[red << 16 | green << 8 | blue]
        return self._settle(ids[mask], mask, lambda i: tuple(colours[i][:3]) if i in colours else int(i))

    def from_ids(self, mask: np.ndarray) -> tuple[np.ndarray, Counter]:
        """As `from_rgb`, for a mask (H, W) that holds training ids already, 255 for none."""
        known = ((mask >= 0) & (mask < len(self.palette))) | (mask == IGNORE)
        return self._settle(np.where(known, mask, _UNKNOWN).astype(np.uint8), mask, int)

    @staticmethod
    def _settle(label, values, name) -> tuple[np.ndarray, Counter]:
        unknown = label == _UNKNOWN
        if not unknown.any():
            return label, Counter()
        label[unknown] = IGNORE
        found, counts = np.unique(values[unknown], return_counts=True)
        total: Counter = Counter()
        for value, count in zip(found, counts, strict=True):  # several indices may have one colour
            total[name(value)] += int(count)
        return label, total


@functools.lru_cache(maxsize=4)
def _lookup(palette: tuple[Colour, ...], ignore: tuple[Colour, ...]) -> np.ndarray:
    """The id of every 24-bit colour, (2**24,) uint8. One gather a pixel, however many the classes."""
    table = np.full(1 << 24, _UNKNOWN, np.uint8)
    for label, (r, g, b) in enumerate(palette):
        table[r << 16 | g << 8 | b] = label
    for r, g, b in ignore:
        table[r << 16 | g << 8 | b] = IGNORE
    return table


def _colour(colour: Sequence[int], key: str) -> Colour:
    values = tuple(int(v) for v in colour)
    if len(values) != 3 or not all(0 <= v <= 255 for v in values):
        raise UserError(f"{key}: {tuple(colour)} is no colour, give (red, green, blue) from 0 to 255")
    return values[0], values[1], values[2]


_IMAGES_KEPT = 16  # whose polygons are in memory


class Labels(Protocol):
    """Reads the ids of an image from a file beside it.

    `strict`: whether a value that the code does not know stops everything, or is counted, logged and ignored.
    """

    strict: bool

    def check(self, image: Path, header: Header, mask: Path) -> bool:
        """Whether windows of `mask` are read without decoding what lies before them.

        Raises UserError where it cannot be the labels of an image with this header.
        """

    def read(self, image: Path, mask: Path, window: Window | None) -> tuple[np.ndarray, Counter]:
        """Ids (H, W) uint8, 255 for none, of the image or its `window`; the count of each unknown value."""


class ValueCode:
    """Turns stored values into training ids.

    Args:
      values: the stored value of each class, or several that are merged into it, in class order.
      ignore: stored values that mean "no label".

    Raises:
      UserError: no or more than 254 classes, or a value given twice.
    """

    def __init__(self, values: Sequence[Any | Sequence[Any]], ignore: Sequence[Any] = ()):
        stored: dict[Any, int] = {}
        for label, of_class in enumerate(values):
            for value in of_class if isinstance(of_class, list | tuple) else (of_class,):
                if value in stored or value in ignore:
                    raise UserError(
                        f"data.label_values and data.ignore_values name {value!r} twice: keep one"
                    )
                stored[value] = label
        if not 1 <= len(values) <= _UNKNOWN:
            raise UserError(f"data.label_values names {len(values)} classes: give 1 to {_UNKNOWN}")
        self.ids: Mapping[Any, int] = {**stored, **dict.fromkeys(ignore, IGNORE)}
        self._table = np.full(256, IGNORE, np.uint8)  # of the values that fit into 8 bits
        self._known = np.zeros(256, np.uint8)
        for value, label in self.ids.items():
            if isinstance(value, int | float) and value in range(256):
                self._table[int(value)], self._known[int(value)] = label, 1

    def from_values(self, mask: np.ndarray) -> tuple[np.ndarray, Counter]:
        """Ids (H, W) uint8 of stored numbers (H, W), and the pixel count of each unknown one."""
        if mask.dtype == np.uint8:
            mask = np.ascontiguousarray(mask)
            if cv2.countNonZero(cv2.LUT(mask, self._known)) == mask.size:
                return cv2.LUT(mask, self._table), Counter()  # counting takes several times as long
            counts = np.bincount(mask.ravel(), minlength=256)
            foreign = np.flatnonzero((counts > 0) & (self._known == 0))
            return cv2.LUT(mask, self._table), Counter({int(v): int(counts[v]) for v in foreign})
        label = np.full(mask.shape, IGNORE, np.uint8)
        unknown: Counter = Counter()
        found, counts = np.unique(mask, return_counts=True)
        for value, count in zip(found.tolist(), counts.tolist(), strict=True):
            if value in self.ids:
                label[mask == value] = self.ids[value]
            else:
                unknown[value] = count
        return label, unknown


class RasterLabels:
    """Labels as an image of the same size: colours, indices into a colour table, or values.

    Args:
      code: `ColourCode` for masks of colours, of a colour table, or of training ids; `ValueCode` for one band
        of stored values.
    """

    def __init__(self, code: ColourCode | ValueCode):
        self.code = code
        self.strict = isinstance(code, ValueCode)

    def check(self, image: Path, header: Header, mask: Path) -> bool:
        found = read_header(mask)
        if (found.height, found.width) != (header.height, header.width):
            raise UserError(
                f"{mask}: {found.height} x {found.width} pixels, its image {image} has "
                f"{header.height} x {header.width}: give a mask of the image's size"
            )
        if header.crs and found.crs and found.crs != header.crs:
            raise UserError(
                f"{mask}: lies in {_crs(found)}, its image {image} in {_crs(header)}: "
                "reproject the mask onto the image's grid"
            )
        if header.crs and found.crs and not _same_place(header, found):
            raise UserError(
                f"{mask}: lies elsewhere than its image {image} (origins {_origin(found)} and "
                f"{_origin(header)}): give the mask of this image"
            )
        if isinstance(self.code, ValueCode):
            if found.count != 1 or found.dtype.kind not in "uif":
                raise UserError(
                    f"{mask}: {found.count} bands of {found.dtype}, data.label_values is for one band of "
                    "numbers: give such masks, or leave data.label_values out for masks of colours"
                )
        elif not (found.count in (3, 4) and found.dtype == np.uint8) and not (
            found.count == 1 and found.dtype.kind in "ui"
        ):
            raise UserError(
                f"{mask}: {found.count} bands of {found.dtype}: "
                "a mask has 1 band of integers, or 3 or 4 bands of 8 bits"
            )
        return found.random_access

    def read(self, image: Path, mask: Path, window: Window | None) -> tuple[np.ndarray, Counter]:
        pixels, table = read_mask(mask, window)
        if isinstance(self.code, ValueCode):
            return self.code.from_values(pixels[..., 0])
        if pixels.shape[-1] >= 3:
            return self.code.from_rgb(pixels)
        if table:
            return self.code.from_indexed(pixels[..., 0], table)
        return self.code.from_ids(pixels[..., 0])


class VectorLabels:
    """Labels as polygons, drawn onto the grid of the image.

    A pixel is of the polygon that its centre lies in, of the last one in the file where several overlap, and
    unlabelled in none. Polygons of another CRS are reprojected to the image's. A file may serve many images:
    of each, only the polygons around it are read, and those of the last few images are kept.

    Args:
      code: which attribute values are which class.
      attribute: the name of the attribute.
      layer: of the file; default its first.
    """

    strict = True

    def __init__(self, code: ValueCode, attribute: str, layer: str = ""):
        self.code, self.attribute, self.layer = code, attribute, layer
        self._begin()

    def _begin(self) -> None:
        self._polygons: OrderedDict[tuple[Path, Path], tuple[Any, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"code": self.code, "attribute": self.attribute, "layer": self.layer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def check(self, image: Path, header: Header, mask: Path) -> bool:
        if header.crs is None:
            raise UserError(
                f"{image}: is not georeferenced, so the polygons of {mask} cannot be placed: "
                "give a raster mask"
            )
        self._of_image(image, mask)
        return True

    def read(self, image: Path, mask: Path, window: Window | None) -> tuple[np.ndarray, Counter]:
        from rasterio.features import rasterize
        from rasterio.windows import Window as RasterWindow
        from shapely import box

        with opened(image) as dataset:
            part = window or Window(0, 0, dataset.height, dataset.width)
            transform = dataset.window_transform(RasterWindow(part.col, part.row, part.width, part.height))
        tree, ids = self._of_image(image, mask)
        near = np.sort(tree.query(box(*_bounds(transform, part.height, part.width))))
        label = np.full((part.height, part.width), IGNORE, np.uint8)
        if len(near):
            shapes = [(tree.geometries[i], int(ids[i])) for i in near]
            with quiet():  # it draws into a dataset of its own, which lies nowhere
                rasterize(shapes, out=label, transform=transform)
        return label, Counter()

    def _of_image(self, image: Path, mask: Path) -> tuple[Any, np.ndarray]:
        """The polygons around an image, in its CRS, as a search tree, and the id of each."""
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
        import shapely

        with opened(image) as dataset:
            crs, bounds = dataset.crs, _bounds(dataset.transform, dataset.height, dataset.width)
        polygons, values = read_polygons(mask, self.layer, self.attribute, crs, bounds)
        ids = np.array([self._id(value, mask) for value in values], np.uint8)
        drawn = ~(shapely.is_missing(polygons) | shapely.is_empty(polygons))
        return shapely.STRtree(polygons[drawn]), ids[drawn]

    def _id(self, value: Any, mask: Path) -> int:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return IGNORE
        if value not in self.code.ids:
            raise UserError(
                f"{mask}: {self.attribute} has the value {value!r}, which is neither in data.label_values "
                "nor in data.ignore_values: add it to one of them"
            )
        return self.code.ids[value]


def _same_place(image: Header, mask: Header) -> bool:
    """Whether the corners of two grids of one size coincide to half a pixel."""
    side = max(abs(image.transform.a), abs(image.transform.b))
    return all(
        math.dist(_place(image.transform, *corner), _place(mask.transform, *corner)) < side / 2
        for corner in ((0, 0), (image.width, image.height))
    )


def _place(transform: Any, col: float, row: float) -> tuple[float, float]:
    """Coordinates of the upper left corner of a pixel."""
    return (
        transform.c + transform.a * col + transform.b * row,
        transform.f + transform.d * col + transform.e * row,
    )


def _bounds(transform: Any, height: int, width: int) -> tuple[float, float, float, float]:
    """West, south, east and north of a grid, however it is turned."""
    corners = [_place(transform, col, row) for col in (0, width) for row in (0, height)]
    xs, ys = zip(*corners, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _crs(header: Header) -> str:
    return header.crs.to_string() if header.crs.to_epsg() is None else f"EPSG:{header.crs.to_epsg()}"


def _origin(header: Header) -> str:
    return f"{header.transform.c:g}, {header.transform.f:g}"
