"""Mean and standard deviation of each band over the values of image files that are data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.readers.file_records import find_channels
from data_pipelines.readers.raster_file import keep_files_open, open_image, read_values
from data_pipelines.readers.raster_header import read_header
from data_pipelines.readers.unreadable import map_files
from data_pipelines.records import Window
from data_pipelines.sensors import find_sensor
from data_pipelines.survey.bands import Bands
from spectralmoe_jax.errors import UserError

MOST_VALUES = 1 << 30
"""Values that are read at most; of larger data, windows that are spread evenly."""

_VALUES = 1 << 21  # read at a time
_SPREAD = 16  # windows of a file of which only a part is read


@dataclass(frozen=True)
class Statistics:
    """Statistics of the images to train on.

    Attributes:
      mean: of each band, over its values that are data, (bands,).
      std: standard deviation of the population, likewise.
      data: share of values of each band that are data, (bands,).
      share: share of the pixels that were read.
      nodata: nodata values of the files.
      zeros: share of the pixels read that are data by the files, but zero in every band.
    """

    mean: np.ndarray
    std: np.ndarray
    data: np.ndarray
    share: float
    nodata: tuple[float, ...]
    zeros: float

    @property
    def used(self) -> np.ndarray:
        """Bands that have data and vary, (bands,) bool."""
        return (self.data > 0) & (self.std > 0)


@dataclass(frozen=True)
class _Moments:
    """Count, sum of values and of squared differences from their mean, of each band.

    Attributes:
      count: values that are data.
      mean: their mean.
      squares: sum of their squared differences from the mean.
      pixels: all pixels.
      zeros: pixels that are data, but zero in every band.
    """

    count: np.ndarray
    mean: np.ndarray
    squares: np.ndarray
    pixels: int
    zeros: int

    def __add__(self, other: _Moments) -> _Moments:
        """Return the moments of both (Chan, Golub and LeVeque, 1979)."""
        count = self.count + other.count
        weight = other.count / np.maximum(count, 1)
        step = other.mean - self.mean
        return _Moments(
            count=count,
            mean=self.mean + step * weight,
            squares=self.squares + other.squares + step**2 * self.count * weight,
            pixels=self.pixels + other.pixels,
            zeros=self.zeros + other.zeros,
        )


def band_statistics(
    images: Sequence[tuple[str, Path]], bands: Bands, most_values: int = MOST_VALUES
) -> Statistics:
    """Compute the statistics of image files.

    Left out are values that the file, or its sensor, marks as nodata, masked pixels, and pixels that are zero
    in every band, which training cannot tell from missing ones.

    Args:
      images: domain and path of each image.
      bands: their bands.
      most_values: values that are read at most.

    Raises:
      UserError: a file cannot be read, lacks a band, or no value is data.
    """
    headers = {path: read_header(path) for _, path in images}
    total = sum(header.height * header.width for header in headers.values())
    step = max(1, -(-total * len(bands.names) // most_values))

    def of_file(image: tuple[str, Path]) -> tuple[_Moments, float | None]:
        """Gather the moments of one file."""
        domain, path = image
        header = headers[path]
        sensor = bands.sensors.get(domain, bands.sensor)
        channels, alpha = find_channels(path, header, bands.names, sensor, bands.file_bands, domain)
        nodata = None if sensor is None else find_sensor(sensor).nodata
        empty = np.zeros(len(channels))
        moments = _Moments(empty, empty, empty, 0, 0)
        with keep_files_open():
            for window in _windows(header.height, header.width, len(channels), step):
                moments += _of_window(*read_values(path, window, channels, nodata, alpha))
        with open_image(path) as dataset:
            return moments, dataset.nodata

    found = [result for result in map_files(of_file, images, "stop") if result is not None]
    moments = found[0][0]
    for more, _ in found[1:]:
        moments += more
    if not moments.count.any():
        raise UserError(f"{images[0][1]} and the other images to train on: no pixel has data")
    return Statistics(
        mean=moments.mean,
        std=np.sqrt(moments.squares / np.maximum(moments.count, 1)),
        data=moments.count / moments.pixels,
        share=moments.pixels / total,
        nodata=tuple(sorted({value for _, value in found if value is not None})),
        zeros=moments.zeros / moments.pixels,
    )


def _windows(height: int, width: int, bands: int, step: int) -> Iterator[Window]:
    """Yield windows of whole rows, every `step`th of them, spread over the file."""
    rows = max(1, _VALUES // (width * bands))
    if step > 1:
        rows = max(1, min(rows, height // (step * _SPREAD)))
    for row in range((rows * (step // 2)) % height, height, rows * step):
        yield Window(row, 0, min(rows, height - row), width)


def _of_window(pixels: np.ndarray, is_data: np.ndarray) -> _Moments:
    """Return the moments of pixels (H, W, C) where they are data, (H, W, C) bool."""
    columns = pixels.reshape(-1, pixels.shape[-1]).astype(np.float64)
    valid = is_data.reshape(columns.shape)
    columns = np.where(valid, columns, 0.0)
    zero = (columns == 0).all(axis=1)
    zeros = int(np.count_nonzero(zero & valid.any(axis=1)))
    valid = valid & ~zero[:, None]
    count = valid.sum(axis=0).astype(np.float64)
    mean = columns.sum(axis=0) / np.maximum(count, 1)
    squares = (np.where(valid, columns - mean, 0.0) ** 2).sum(axis=0)
    return _Moments(count, mean, squares, len(columns), zeros)
