"""Labelled images held in memory."""

from collections.abc import Mapping

import numpy as np

from data_pipelines.sources.records import Record, Window
from spectralmoe_jax.errors import UserError


class Arrays:
    """A source over arrays: `{(domain, name): (image (H, W, C), label (H, W) uint8)}`.

    Images become uint8 or float32 and read-only. Sizes may differ.

    Raises:
      UserError: no image, a label of another size than its image, or pixels that are not finite.
    """

    def __init__(self, images: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]]):
        if not images:
            raise UserError("the split is empty: give at least one image")
        self._arrays = {}
        records = []
        for (domain, name), (image, label) in images.items():
            if image.ndim != 3 or label.shape != image.shape[:2]:
                raise UserError(
                    f"{domain}/{name}: image {image.shape} and label {label.shape} do not fit, "
                    "give (H, W, bands) and (H, W)"
                )
            image = _frozen(image, np.uint8 if image.dtype == np.uint8 else np.float32)
            if not np.isfinite(image).all():
                raise UserError(
                    f"{domain}/{name}: pixels that are not finite, replace them and label them 255"
                )
            record = Record(domain, f"{domain}/{name}", *label.shape)
            self._arrays[record] = (image, _frozen(label, np.uint8))
            records.append(record)
        self.records = tuple(records)

    def read_image(self, record: Record, window: Window | None = None) -> np.ndarray:
        """The pixels (H, W, C) of `record`, or of its `window`."""
        return crop(self._arrays[record][0], window)

    def read_label(self, record: Record, window: Window | None = None) -> np.ndarray:
        """The training ids (H, W) of `record`, or of its `window`."""
        return crop(self._arrays[record][1], window)


def crop(array: np.ndarray, window: Window | None) -> np.ndarray:
    """A view of `array` (H, W, ...) through `window`; all of it for None."""
    if window is None:
        return array
    row, col, height, width = window
    return array[row : row + height, col : col + width]


def _frozen(array: np.ndarray, dtype: type) -> np.ndarray:
    array = np.array(array, dtype)
    array.setflags(write=False)
    return array
