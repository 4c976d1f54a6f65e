"""Find the pixels of a training batch that no model can compute with, after a loss was not finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.loader import examples_of_batch
from data_pipelines.records import Record, Window
from data_pipelines.splits import Splits, training_elements
from spectralmoe_jax.config.schema import RunConfig

_DEVIATIONS = 1e5  # from the mean, in standard deviations
_LARGEST = 1e9  # of values whose mean and deviation the configuration does not give


@dataclass(frozen=True)
class _Found:
    """The value of an image that is farthest from the others.

    Attributes:
      excess: how far it is, as a multiple of what is allowed; infinite for one that is not finite.
      text: what and where it is.
    """

    excess: float
    text: str


class _Watched:
    """A source that notes the most extreme value that is read.

    Args:
      source: the source.
      config: gives the bands, their means and deviations.
    """

    def __init__(self, source: Any, config: RunConfig):
        self._source, self._bands = source, config.bands
        self._mean, self._allowed = np.zeros(len(config.bands)), np.full(len(config.bands), _LARGEST)
        if config.model.pixel_mean and config.model.pixel_std:
            self._mean = np.asarray(config.model.pixel_mean, np.float64)
            self._allowed = _DEVIATIONS * np.asarray(config.model.pixel_std, np.float64)
        self.worst = _Found(0, "")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read_image(self, record: Record, window: Window | None = None) -> np.ndarray:
        """Read an image, as the source does."""
        image = self._source.read_image(record, window)
        with np.errstate(over="ignore", invalid="ignore"):
            excess = np.abs(image.astype(np.float64) - self._mean) / self._allowed
        excess = np.where(np.isfinite(image), excess, np.inf)
        row, column, band = np.unravel_index(int(excess.argmax()), image.shape)
        if excess[row, column, band] > self.worst.excess:
            height, width = image.shape[:2]
            # a record can be a part of its file
            top, left = getattr(record, "row", 0), getattr(record, "col", 0)
            top, left = (top, left) if window is None else (top + window.row, left + window.col)
            self.worst = _Found(
                float(excess[row, column, band]),
                f"{getattr(record, 'image', record.name)} has {image[row, column, band]:.6g} in band "
                f"{self._bands[band]} at row {top + row}, column {left + column}, in the window of rows "
                f"{top} to {top + height - 1}, columns {left} to {left + width - 1}",
            )
        return image


def extreme_pixels(
    config: RunConfig, splits: Splits, step: int, host_index: int = 0, host_count: int = 1
) -> str:
    """Name the file, the window and the place of the most extreme value in a training batch.

    The batch is read again, in this thread. Nothing of it costs anything before.

    Args:
      config: the whole configuration.
      splits: its images.
      step: number of the batch.
      host_index: number of this host.
      host_count: number of hosts.

    Returns:
      The text; empty if all values are ordinary.
    """
    watched: list[_Watched] = []

    def watch(source: Any) -> Any:
        watched.append(_Watched(source, config))
        return watched[-1]

    elements, augment = training_elements(config, splits, wrap=watch)
    batch = examples_of_batch(
        elements,
        augment,
        batch_size=config.train.images_per_step,
        seed=config.seed,
        step=step,
        host_index=host_index,
        host_count=host_count,
        corrupt=config.data.corrupt,
    )
    for _ in batch:
        pass
    worst = max((source.worst for source in watched), key=lambda found: found.excess)
    return worst.text if worst.excess > 1 else ""
