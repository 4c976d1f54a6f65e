"""A scene file to be mapped: its bands in the model's order, and where it holds data."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from data_pipelines.readers.raster_file import has_mask, open_as_stored, zero_nodata
from data_pipelines.readers.raster_header import stated_platforms
from data_pipelines.sensors import choose_bands, find_sensor
from spectralmoe_jax.errors import UserError

NODATA = 255  # of a map


@contextlib.contextmanager
def georeference_optional() -> Iterator[None]:
    """Accept images without georeference inside the block, and make a truncated PNG an error.

    By default GDAL silently fills the missing rows of a truncated PNG that is read at once.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.Env(GDAL_PNG_WHOLE_IMAGE_OPTIM=False):
            yield


@contextlib.contextmanager
def open_scene(path: Path) -> Iterator[Any]:
    """Open an image as a rasterio dataset, its samples as stored.

    Raises:
      UserError: the file is not an image.
    """
    try:
        dataset = open_as_stored(path)
    except RasterioError as error:
        raise UserError(
            f"{path}: cannot be read as an image ({' '.join(str(error).split())}); "
            "give a complete GeoTIFF, PNG or JPEG"
        ) from error
    with dataset:
        yield dataset


class Scene:
    """Rows of a scene file as pixels and a mask of where it holds data.

    Args:
      dataset: from `open_scene`.
      path: of the file, for messages.
      bands: names of the model's bands.
      sensor: gives the aliases of band names, and the nodata value of a scene that states none.
      file_bands: names of all bands of a scene that names none.

    Attributes:
      indexes: numbers in the file, from 1, of the bands of the model.
      dtype: of the pixels: uint8 if all bands of the file are, else float32.

    Raises:
      UserError: the file lacks a band; see `data_pipelines.sensors.choose_bands`.
    """

    def __init__(
        self,
        dataset: Any,
        path: Path,
        bands: Sequence[str],
        sensor: str | None,
        file_bands: Sequence[str] | None,
    ):
        self.dataset, self.path, self.bands = dataset, path, bands
        places, has_alpha = choose_bands(
            str(path),
            bands,
            dataset.descriptions,
            [colour.name for colour in dataset.colorinterp],
            sensor=sensor,
            file_bands=file_bands,
            texts=(path.stem, *stated_platforms(dataset)),
        )
        self.indexes = [place + 1 for place in places]
        known = None if sensor is None or has_mask(dataset) else find_sensor(sensor).nodata
        self.nodata = known if dataset.nodata is None else dataset.nodata
        self.height, self.width = dataset.shape
        self.dtype = np.uint8 if set(dataset.dtypes) == {"uint8"} else np.float32
        self.is_masked = has_alpha or has_mask(dataset)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the rows from `start` to before `stop`.

        Returns:
          Pixels (rows, W, bands), zero without data, and a mask (rows, W) bool of where there is data.

        Raises:
          UserError: the file is truncated, or has values that are not finite.
        """
        window = Window(0, start, self.width, stop - start)
        try:
            stored = np.moveaxis(self.dataset.read(self.indexes, window=window), 0, -1)
            masked = self.dataset.dataset_mask(window=window) == 0 if self.is_masked else False
        except RasterioError as error:
            raise UserError(
                f"{self.path}: cannot be read in rows {start} to {stop - 1}, it may be truncated; "
                "give a complete file"
            ) from error
        missing = np.zeros(stored.shape[:2], bool) | masked
        if self.nodata is not None:  # as in training: where only one band has the value, it reads as zero
            missing |= zero_nodata(stored, self.nodata)
        stored[missing] = 0
        pixels = stored.astype(self.dtype)
        if self.dtype == np.float32:
            self._check_finite(pixels, start)
        return pixels, ~missing

    def _check_finite(self, pixels: np.ndarray, start: int) -> None:
        bad = np.argwhere(~np.isfinite(pixels))
        if len(bad):
            row, column, band = bad[0]
            raise UserError(
                f"{self.path}: band {self.indexes[band]} ({self.bands[band]}) is not finite at row "
                f"{start + row}, column {column}; give it a value, or where it is NaN declare NaN "
                f"as nodata: rio edit-info --nodata nan {self.path}"
            )
