"""A scene to be mapped: its bands in the model's order, and where it holds data.

A scene is a file, or any name that GDAL opens: `https://`, `s3://` or `gs://` with an object's address, or
`/vsi...`.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import rasterio
from rasterio._err import CPLE_BaseError  # what some properties raise; no public module has it
from rasterio.errors import NotGeoreferencedWarning

from data_pipelines.readers.address import is_remote, network_options
from data_pipelines.readers.raster_file import (
    AS_STORED,
    GDAL_ERRORS,
    open_as_stored,
    read_valid,
    text_unreadable,
    warn_of_rounding,
)
from data_pipelines.readers.raster_header import (
    colours_of,
    require_one_raster,
    stated_platforms,
    stated_scaling,
)
from data_pipelines.readers.validity import validity_of
from data_pipelines.records import Window
from data_pipelines.sensors import choose_bands, find_sensor
from data_pipelines.stored_values import SceneCheck
from spectralmoe_jax.config.schema import StatedValues
from spectralmoe_jax.errors import UserError

NODATA = 255  # of a map
# By default GDAL fills the missing rows of a truncated PNG that is read at once, and caches 5 % of memory.
_OPTIONS = {"GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO", "GDAL_CACHEMAX": 2**28}
# Of reading what others sent: formats that hold all their pixels, no files beside them, and no network.
_SELF_CONTAINED = {
    b"II*\0": "GTiff", b"MM\0*": "GTiff", b"II+\0": "GTiff", b"MM\0+": "GTiff", b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
}  # fmt: skip
_CLOSED = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_PAM_ENABLED": "NO",
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": "{none}",
}  # fmt: skip
_from_others: ContextVar[bool] = ContextVar("_from_others", default=False)


def scene_stem(name: str) -> str:
    """Return the last part of a scene's name, without its suffix and without a query."""
    return PurePosixPath(name.partition("?")[0] if is_remote(name) else Path(name)).stem


def reading_options(name: str) -> dict[str, Any]:
    """Return GDAL's options for reading a scene, but for those that the environment sets."""
    options = {key: value for key, value in _OPTIONS.items() if key not in os.environ}
    return options | network_options(name)


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Set GDAL's options for a scene inside the block, in this thread, and accept a missing georeference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.Env(**reading_options(name)):
            yield


@contextlib.contextmanager
def files_of_others() -> Iterator[None]:
    """Keep scenes that are opened inside the block, in this thread, from reading anything but themselves.

    They are opened as GeoTIFF, PNG or JPEG or not at all: other formats, such as VRT, may name other files
    and addresses, whose contents would end up in the map.
    """
    token = _from_others.set(True)
    try:
        with rasterio.Env(**_CLOSED):
            yield
    finally:
        _from_others.reset(token)


@contextlib.contextmanager
def open_scene(scene: str | os.PathLike[str]) -> Iterator[Any]:
    """Open an image as a rasterio dataset, its samples as stored.

    Args:
      scene: file, or a name that GDAL opens.

    Raises:
      UserError: it is not an image, or not reachable, or has a text that cannot be decoded.
    """
    name = os.fspath(scene)
    try:
        dataset = open_as_stored(name, _driver_of(name) if _from_others.get() else None)
    except GDAL_ERRORS as error:
        said = " ".join(str(error).split())
        if is_remote(name):
            raise UserError(
                f"{name}: cannot be opened ({said}); check the address, the network and the credentials in "
                "the environment, or download the scene"
            ) from error
        raise UserError(
            f"{name}: cannot be read as an image ({said}); give a complete GeoTIFF, PNG or JPEG"
        ) from error
    with dataset:
        try:
            yield dataset
        except UnicodeDecodeError as error:
            raise text_unreadable(name) from error
        except CPLE_BaseError as error:  # of a part of the header that GDAL reads when it is asked for
            said = " ".join(str(error).split())
            raise UserError(
                f"{name}: cannot be read as an image ({said}); give a complete GeoTIFF, PNG or JPEG"
            ) from error


def _driver_of(name: str) -> str:
    """Return GDAL's driver for a file that holds all its pixels, by its first bytes.

    Raises:
      UserError: it is no such file.
    """
    with open(name, "rb") as file:
        start = file.read(4)
    for sign, driver in _SELF_CONTAINED.items():
        if start.startswith(sign):
            return driver
    raise UserError(f"{name}: is neither GeoTIFF, PNG nor JPEG; give one of these")


class Scene:
    """Rows of a scene file as pixels and a mask of where it holds data.

    Args:
      dataset: from `open_scene`.
      name: of the scene, for messages.
      bands: names of the model's bands.
      sensor: gives the aliases of band names, and the nodata value of a scene that states none.
      file_bands: names of all bands of a scene that names none.
      values: how images stored their values in training, to compare the scene with; None for no comparison.
      check_values: what to do if they differ, as `config.data.check_values`.

    Attributes:
      indexes: numbers in the file, from 1, of the bands of the model.
      dtype: of the pixels: uint8 if all these bands are, else float32.

    Raises:
      UserError: the file lacks a band, see `data_pipelines.sensors.choose_bands`, has complex values, or
        only holds other rasters.
    """

    def __init__(
        self,
        dataset: Any,
        name: str | os.PathLike[str],
        bands: Sequence[str],
        sensor: str | None,
        file_bands: Sequence[str] | None,
        values: StatedValues | None = None,
        check_values: str = "stop",
    ):
        self.dataset, self.name, self.bands = dataset, os.fspath(name), bands
        require_one_raster(dataset, self.name, "give one of them by its name, or write them to one GeoTIFF")
        places, alpha = choose_bands(
            self.name,
            bands,
            dataset.descriptions,
            colours_of(dataset),
            sensor=sensor,
            file_bands=file_bands,
            texts=(scene_stem(self.name), *stated_platforms(dataset)),
        )
        self.indexes = [place + 1 for place in places]
        known = None if sensor is None else find_sensor(sensor).nodata
        self._validity = validity_of(dataset, places, known, alpha)
        self.height, self.width = dataset.shape
        found = {dataset.dtypes[place] for place in places}
        if any("complex" in dtype for dtype in found):
            raise UserError(
                f"{self.name}: its values are complex numbers ({', '.join(sorted(found))}); give real ones, "
                "such as their amplitude"
            )
        self.dtype = np.uint8 if found == {"uint8"} else np.float32
        stored = found.pop() if len(found) == 1 else "float32"
        scaling = stated_scaling(dataset.scales, dataset.offsets, places)
        as_read = stored if np.dtype(stored) in AS_STORED else "float32"
        self._check = SceneCheck(self.name, as_read, scaling, values, check_values)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the rows from `start` to before `stop`.

        Returns:
          Pixels (rows, W, bands), zero without data, and a mask (rows, W) bool of where there is data.

        Raises:
          UserError: the file is truncated, or has values that are not finite.
        """
        window = Window(start, 0, stop - start, self.width)
        try:
            with rasterio.Env(**reading_options(self.name)):
                stored, missing = read_valid(self.dataset, self._validity, window)
        except GDAL_ERRORS as error:
            why = "the connection may be lost" if is_remote(self.name) else "it may be truncated"
            raise UserError(
                f"{self.name}: cannot be read in rows {start} to {stop - 1}, {why}; give a complete file"
            ) from error
        warn_of_rounding(Path(self.name), stored)
        pixels = stored.astype(self.dtype, copy=False)
        if stored.dtype.kind == "f":
            self._check_finite(pixels, start)
        valid = np.ones(pixels.shape[:2], bool) if missing is None else ~missing
        self._check.see(pixels, valid)
        return pixels, valid

    def _check_finite(self, pixels: np.ndarray, start: int) -> None:
        finite = np.isfinite(pixels)
        if not finite.all():
            row, column, band = np.argwhere(~finite)[0]
            raise UserError(
                f"{self.name}: band {self.indexes[band]} ({self.bands[band]}) is not finite at row "
                f"{start + row}, column {column}; give it a value, or where it is NaN declare NaN "
                f"as nodata: rio edit-info --nodata nan {self.name}"
            )
