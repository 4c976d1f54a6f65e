"""How images store their values: measured in training, and compared with other images.

A model normalises stored values by constants. Images of another type or scale, such as reflectance in 0..1
for a model of 8-bit images, give wrong maps without an error, so they are refused or warned of here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.records import Source, Window
from spectralmoe_jax.config.schema import StatedValues
from spectralmoe_jax.errors import UserError

log = logging.getLogger(__name__)
_IMAGES, _SIDE = 8, 256  # images that are looked at, and the side of the window in each
_VALUES = 1 << 20  # of a part of a scene
_EIGHT_BITS = 255
_FACTOR, _REMARKABLE = 50, 8  # between two ranges that cannot both be right, and that are warned of


def measure(source: Source[Any], bands: Sequence[str], sensor: str | None) -> StatedValues | None:
    """Read a window of a few images, and return how the source stores its values.

    Args:
      source: the images.
      bands: names of their bands.
      sensor: name of their sensor.

    Returns:
      Type and range of the values, and the scale and offset that the files state; None if no window has data.
    """
    records = source.records
    chosen = [records[i] for i in np.unique(np.linspace(0, len(records) - 1, _IMAGES).astype(int))]
    samples, dtype = [], None
    for record in chosen:
        height, width = min(_SIDE, record.height), min(_SIDE, record.width)
        window = Window((record.height - height) // 2, (record.width - width) // 2, height, width)
        try:
            pixels = source.read_image(record, window)
        except UserError:
            continue  # training meets it, and says or skips it
        dtype = pixels.dtype
        samples.append(pixels[pixels.any(axis=-1)].ravel())
    values = np.concatenate(samples) if samples else np.zeros(0)
    values = values[np.isfinite(values)]
    if dtype is None or not values.size:
        return None
    low, high = np.percentile(values, (1, 99))
    scales, offsets = getattr(source, "scaling", ((), ()))
    return StatedValues(tuple(bands), dtype.name, float(low), float(high), sensor, scales, offsets)


def check(what: str, found: StatedValues, trained: StatedValues | None, policy: str) -> None:
    """Compare how some images store their values with how those of the training did.

    Args:
      what: name of the images, for the message.
      found: of the images.
      trained: of the training; None if that is not known, as for models of earlier versions.
      policy: value of `config.data.check_values`.

    Raises:
      UserError: the images cannot be right for the model, and the policy is "stop".
    """
    if trained is None or policy == "off":
        return
    differs = f"{what}: {_words(found)}, the model was trained on {_words(trained)}"
    if _cannot_be_right(found, trained):
        problem = (
            f"{differs}: give images stored as in training, or accept these by config.data.check_values=warn"
        )
        if policy == "stop":
            raise UserError(problem)
        log.warning("%s", problem)
    elif found.dtype != trained.dtype or _apart(found, trained, _REMARKABLE):
        log.warning("%s: check that they mean the same", differs)
    if (found.scales, found.offsets) != (trained.scales, trained.offsets):
        log.warning(
            "%s: files state %s, those of the training %s: stored values of one reflectance may differ",
            what,
            scaling_words(found.scales, found.offsets),
            scaling_words(trained.scales, trained.offsets),
        )


def _cannot_be_right(found: StatedValues, trained: StatedValues) -> bool:
    if found.dtype == trained.dtype == "uint8":
        return False
    if trained.dtype == "uint8" and found.high > _EIGHT_BITS:
        return True
    if found.dtype == "uint8" and trained.high > 4 * _EIGHT_BITS:
        return True
    return _apart(found, trained, _FACTOR)


def _apart(found: StatedValues, trained: StatedValues, factor: float) -> bool:
    """Return whether the upper ends of two ranges are more than a factor apart; 8 bits are one range."""
    if found.dtype == trained.dtype == "uint8" or found.high <= 0 or trained.high <= 0:
        return False
    return not 1 / factor <= found.high / trained.high <= factor


def _words(values: StatedValues) -> str:
    return f"{values.dtype} values from {values.low:.4g} to {values.high:.4g}"


def scaling_words(scales: Sequence[float], offsets: Sequence[float]) -> str:
    """Describe the scale and offset of some files; those of the bands are in order."""
    if not scales:
        return "no scale and offset"
    lists = [", ".join(f"{value:g}" for value in dict.fromkeys(values)) for values in (scales, offsets)]
    return f"scale {lists[0]} and offset {lists[1]}"


class SceneCheck:
    """Compares the first part of a scene that has data with the training.

    Args:
      name: name of the scene.
      dtype: type in which the scene stores its values.
      scaling: scales and offsets that the file states for the bands; two empty tuples for none.
      trained: of the training; None if that is not known.
      policy: value of `config.data.check_values`.
    """

    def __init__(
        self,
        name: str,
        dtype: str,
        scaling: tuple[tuple[float, ...], tuple[float, ...]],
        trained: StatedValues | None,
        policy: str,
    ):
        self._name, self._dtype, self._scaling = name, dtype, scaling
        self._trained, self._policy = trained, policy
        self._done = trained is None or policy == "off"

    def see(self, pixels: np.ndarray, valid: np.ndarray) -> None:
        """Look at pixels (rows, W, bands) and where they have data, (rows, W) bool.

        Raises:
          UserError: they cannot be right for the model, and the policy is "stop".
        """
        if self._done or self._trained is None:
            return
        step = max(1, int(np.sqrt(pixels.size / _VALUES)))
        values = pixels[::step, ::step][valid[::step, ::step]]
        values = values[values.any(axis=-1)]
        if not values.size:
            return
        self._done = True
        low, high = map(float, np.percentile(values, (1, 99)))
        trained = self._trained
        found = StatedValues(trained.bands, self._dtype, low, high, trained.sensor, *self._scaling)
        check(self._name, found, trained, self._policy)
