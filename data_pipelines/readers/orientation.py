"""Images stored turned or mirrored, with a tag that says how to show them upright.

Cameras and phones write the tag 274 (Orientation) of EXIF, in JPEG, PNG and WebP; TIFF has it as well. GDAL
leaves such images as they are stored. Here they are read as they are meant, images and masks alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from rasterio.transform import Affine
from rasterio.windows import Window as RasterWindow

from data_pipelines.readers.address import is_remote
from spectralmoe_jax.errors import UserError

_TAG, _SHORT = 274, 3
_ENTRIES = 4096  # of a TIFF directory, at most; TIFF sorts them, and 274 comes early
_SEGMENTS = 1 << 18  # of a file, at most; a PNG of 1 GB has about as many
_EXIF = b"Exif\0\0"
_SCAN = 0xDA
# Read as stored by `Turned`, nothing that depends on the grid among them.
_SAME = frozenset(
    (
        "closed", "close", "colorinterp", "colormap", "count", "crs", "descriptions", "driver", "dtypes",
        "files", "gcps", "get_tag_item", "indexes", "interleaving", "mask_flag_enums", "name", "nodata",
        "nodatavals", "offsets", "rpcs", "scales", "subdatasets", "tag_namespaces", "tags", "units",
    )
)  # fmt: skip


class Turn(NamedTuple):
    """From an array as stored to the upright one: transposed, then rows and columns in reverse order."""

    transposed: bool
    rows: bool
    columns: bool


_TURNS = {
    2: Turn(False, False, True),
    3: Turn(False, True, True),
    4: Turn(False, True, False),
    5: Turn(True, False, False),
    6: Turn(True, False, True),
    7: Turn(True, True, True),
    8: Turn(True, True, False),
}


class Turned:
    """An open raster with rows and columns upright, with the part of rasterio's interface that readers use.

    Args:
      stored: the raster as stored.
      turn: what makes it upright.

    Attributes:
      stored: likewise.
    """

    def __init__(self, stored: Any, turn: Turn):
        self.stored, self._turn = stored, turn

    def __getattr__(self, name: str) -> Any:
        """Return what does not depend on rows and columns from the raster as stored."""
        if name not in _SAME:
            raise AttributeError(name)
        return getattr(self.stored, name)

    def __enter__(self) -> Turned:
        return self

    def __exit__(self, *_: object) -> None:
        self.stored.close()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self._swapped(self.stored.shape)

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.shape[1]

    @property
    def block_shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of the blocks of each band."""
        return [self._swapped(shape) for shape in self.stored.block_shapes]

    @property
    def transform(self) -> Affine:
        """From columns and rows to coordinates; the identity without georeference."""
        stored = self.stored.transform
        if stored.is_identity:
            return stored
        across, right = (-1, self.width) if self._turn.columns else (1, 0)
        down, bottom = (-1, self.height) if self._turn.rows else (1, 0)
        if self._turn.transposed:
            return stored * Affine(0, down, bottom, across, 0, right)
        return stored * Affine(across, 0, right, 0, down, bottom)

    def window_transform(self, window: RasterWindow) -> Affine:
        """Return the transform of a window."""
        return self.transform * Affine.translation(window.col_off, window.row_off)

    def read(
        self,
        indexes: int | Sequence[int] | None = None,
        out: np.ndarray | None = None,
        window: RasterWindow | None = None,
        out_shape: Sequence[int] | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Read bands, as rasterio does."""
        return self._read(self.stored.read, indexes, out, window, out_shape, options)

    def read_masks(
        self,
        indexes: int | Sequence[int] | None = None,
        out: np.ndarray | None = None,
        window: RasterWindow | None = None,
        out_shape: Sequence[int] | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Read masks of bands, as rasterio does."""
        return self._read(self.stored.read_masks, indexes, out, window, out_shape, options)

    def _read(
        self, read: Any, indexes: Any, out: Any, window: Any, out_shape: Any, options: dict[str, Any]
    ) -> np.ndarray:
        if out_shape is not None:
            options["out_shape"] = (*out_shape[:-2], *self._swapped(out_shape[-2:]))
        stored = read(indexes, window=None if window is None else self._window(window), **options)
        upright = np.swapaxes(stored, -1, -2) if self._turn.transposed else stored
        upright = upright[..., :: -1 if self._turn.rows else 1, :: -1 if self._turn.columns else 1]
        if out is None:
            return np.ascontiguousarray(upright)
        out[...] = upright
        return out

    def _window(self, window: RasterWindow) -> RasterWindow:
        """Return a window of the upright raster as one of the stored raster."""
        row, column, height, width = window.row_off, window.col_off, window.height, window.width
        row = self.height - row - height if self._turn.rows else row
        column = self.width - column - width if self._turn.columns else column
        if self._turn.transposed:
            return RasterWindow(row, column, height, width)
        return RasterWindow(column, row, width, height)

    def _swapped(self, shape: Sequence[int]) -> tuple[int, int]:
        height, width = shape
        return (width, height) if self._turn.transposed else (height, width)


def upright(dataset: Any, name: str) -> Any:
    """Return an open raster as it is, or upright if its file has a tag that says that it is not.

    Args:
      dataset: the raster.
      name: that it was opened by; the tags of remote files are read of JPEG only.

    Raises:
      UserError: the file has control points or a camera model as well, which hold for the stored grid.
    """
    turn = _TURNS.get(_orientation(dataset, name))
    if turn is None:
        return dataset
    if dataset.gcps[0] or dataset.rpcs:
        dataset.close()
        raise UserError(
            f"{name}: has an orientation tag beside control points or a camera model, which may be of either "
            "grid: remove the tag, or write the image upright"
        )
    return Turned(dataset, turn)


def _orientation(dataset: Any, name: str) -> int:
    """Return the orientation that a file states, 1 to 8, or 0."""
    if dataset.driver not in _FINDERS:
        return 0
    if is_remote(name):
        stated = dataset.tags().get("EXIF_Orientation", "") if dataset.driver == "JPEG" else ""
        return int(stated) if stated.isdecimal() else 0
    try:
        with open(name, "rb") as file:
            return _FINDERS[dataset.driver](file)
    except OSError:  # a name of GDAL's own, such as that of a page in a file
        return 0


def _of_tiff(file: BinaryIO, start: int = 0) -> int:
    """Return the orientation in the first directory of a TIFF, which starts at a place of the file, or 0."""
    file.seek(start)
    head = file.read(16)
    if head[:2] not in (b"II", b"MM"):
        return 0

    def number(data: bytes) -> int:
        return int.from_bytes(data, "little" if head[:2] == b"II" else "big")

    is_big = number(head[2:4]) == 43
    place, width, entry = (head[8:16], 8, 20) if is_big else (head[4:8], 2, 12)
    file.seek(start + number(place))
    count = min(number(file.read(width)), _ENTRIES)
    entries = file.read(count * entry)
    for at in range(0, len(entries) - entry + 1, entry):
        tag, kind = number(entries[at : at + 2]), number(entries[at + 2 : at + 4])
        if tag == _TAG:
            value = at + (12 if is_big else 8)
            return number(entries[value : value + 2]) if kind == _SHORT else 0
    return 0


def _of_jpeg(file: BinaryIO) -> int:
    """Return the orientation in the EXIF segment of a JPEG, or 0."""
    place = 2
    for _ in range(_SEGMENTS):
        file.seek(place)
        head = file.read(10)
        if len(head) < 4 or head[0] != 0xFF or head[1] == _SCAN:
            return 0
        if head[1] == 0xE1 and head[4:10] == _EXIF:
            return _of_tiff(file, place + 10)
        # a marker may be preceded by any number of fill bytes
        place += 1 if head[1] == 0xFF else 2 + int.from_bytes(head[2:4], "big")
    return 0


def _of_png(file: BinaryIO) -> int:
    """Return the orientation in the EXIF chunk of a PNG, or 0."""
    place = 8
    for _ in range(_SEGMENTS):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"eXIf":
            break
        place += 12 + int.from_bytes(head[:4], "big")
    return _of_tiff(file, place + 8)


def _of_webp(file: BinaryIO) -> int:
    """Return the orientation in the EXIF chunk of a WebP, or 0."""
    place = 12
    for _ in range(_SEGMENTS):
        file.seek(place)
        head = file.read(8 + len(_EXIF))
        if len(head) < 8 or head[:4] == b"EXIF":
            break
        length = int.from_bytes(head[4:8], "little")
        place += 8 + length + length % 2
    return _of_tiff(file, place + 8 + len(_EXIF) * (head[8:] == _EXIF))


_FINDERS = {"GTiff": _of_tiff, "JPEG": _of_jpeg, "PNG": _of_png, "WEBP": _of_webp}
