"""Brightness, contrast, saturation and hue, in the 8-bit arithmetic the published training used.

The operations, their order, ranges and chances are those of mmsegmentation's PhotoMetricDistortion
(itself after SSD, Liu et al. 2016): every step ends by cutting to 0..255 and dropping the fraction, and
hue is counted in OpenCV's half degrees, 0..179.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import cv2
import numpy as np

from spectralmoe_jax.errors import UserError

BRIGHTNESS = 32
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18
_LEVELS = np.arange(256)
T = TypeVar("T")


class Distortion(NamedTuple):
    """What `distort` does; a field that leaves the image as it is is None."""

    brightness: float | None = None  # added, in grey levels
    contrast: float | None = None  # factor of all values
    contrast_last: bool = False  # after saturation and hue instead of before them
    saturation: float | None = None  # factor of HSV's S
    hue: int | None = None  # added to HSV's H, in half degrees, around the circle


def draw_distortion(rng: np.random.Generator) -> Distortion:
    """Each of the four with probability 1/2; contrast before or after the colours, with 1/2 each."""
    return Distortion(
        brightness=_perhaps(rng, rng.uniform(-BRIGHTNESS, BRIGHTNESS)),
        contrast=_perhaps(rng, rng.uniform(*CONTRAST)),
        contrast_last=bool(rng.integers(2)),
        saturation=_perhaps(rng, rng.uniform(*SATURATION)),
        hue=_perhaps(rng, int(rng.integers(-HUE, HUE))),
    )


def distort(rgb: np.ndarray, distortion: Distortion) -> np.ndarray:
    """`rgb` (H, W, 3) uint8 after brightness, contrast, saturation, hue, in this order or contrast last."""
    brightness, contrast, contrast_last, saturation, hue = distortion
    first = _linear(1.0, brightness or 0.0)
    if contrast is not None and not contrast_last:
        first = _linear(contrast)[first]
    rgb = _through(first, rgb)
    if saturation is not None:
        hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
        cv2.insertChannel(_through(_linear(saturation), cv2.extractChannel(hsv, 1)), hsv, 1)
        rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if hue is not None:  # a round trip of its own, rounded to 8 bits in between, as published
        hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
        turned = ((_LEVELS + hue) % 180).astype(np.uint8)
        cv2.insertChannel(_through(turned, cv2.extractChannel(hsv, 0)), hsv, 0)
        rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrast is not None and contrast_last:
        rgb = _through(_linear(contrast), rgb)
    return rgb


def photometric_distortion(
    example: dict[str, np.ndarray], rng: np.random.Generator, bands: Sequence[int] = (0, 1, 2)
) -> dict[str, np.ndarray]:
    """A random `distort` of the red, green and blue `bands` of an example; other bands stay.

    Raises:
      UserError: the image is not 8-bit, where these grey levels mean nothing.
    """
    image = example["image"]
    if image.dtype != np.uint8:
        raise UserError(f"augment.photometric needs 8-bit images, these are {image.dtype}: set it to False")
    distortion = draw_distortion(rng)
    if image.shape[-1] == 3 and tuple(bands) == (0, 1, 2):
        return {**example, "image": distort(np.ascontiguousarray(image), distortion)}
    image = np.array(image, order="C")  # a copy: the example stays as it is
    rgb = np.empty((*image.shape[:2], 3), np.uint8)
    there = [number for place, band in enumerate(bands) for number in (band, place)]
    cv2.mixChannels([image], [rgb], there)
    cv2.mixChannels([distort(rgb, distortion)], [image], there[::-1])
    return {**example, "image": image}


def _perhaps(rng: np.random.Generator, value: T) -> T | None:
    return value if rng.integers(2) else None


def _linear(factor: float, offset: float = 0.0) -> np.ndarray:
    """What each level becomes, (256,) uint8: times `factor`, plus `offset`, cut, the fraction dropped."""
    return np.clip(_LEVELS.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


def _through(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """uint8 `values` through a table of all 256; themselves where it changes none."""
    return values if (table == _LEVELS).all() else cv2.LUT(values, table)
