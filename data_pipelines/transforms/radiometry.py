"""Radiometric transforms: photometric distortion of RGB, spectral jitter of any bands, and normalisation.

A pixel that is zero in every band is nodata: spectral jitter keeps it zero and leaves it out of all
statistics.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import cv2
import numpy as np

from data_pipelines.transforms.geometry import Example
from spectralmoe_jax.errors import bad_value

BRIGHTNESS = 32
CONTRAST = (0.5, 1.5)
SATURATION = (0.5, 1.5)
HUE = 18
_LEVELS = np.arange(256)
T = TypeVar("T")


class Distortion(NamedTuple):
    """Parameters of `distort`; None leaves the image unchanged.

    Attributes:
      brightness: added to all values, in grey levels.
      contrast: factor of all values.
      contrast_last: apply the contrast after saturation and hue instead of before them.
      saturation: factor of HSV's S.
      hue: added to HSV's H, in OpenCV's half degrees, modulo 180.
    """

    brightness: float | None = None
    contrast: float | None = None
    contrast_last: bool = False
    saturation: float | None = None
    hue: int | None = None


def draw_distortion(rng: np.random.Generator) -> Distortion:
    """Draw each of the four changes with probability 1/2, and the order of the contrast."""
    return Distortion(
        brightness=_perhaps(rng, rng.uniform(-BRIGHTNESS, BRIGHTNESS)),
        contrast=_perhaps(rng, rng.uniform(*CONTRAST)),
        contrast_last=bool(rng.integers(2)),
        saturation=_perhaps(rng, rng.uniform(*SATURATION)),
        hue=_perhaps(rng, int(rng.integers(-HUE, HUE))),
    )


def distort(rgb: np.ndarray, distortion: Distortion) -> np.ndarray:
    """Change brightness, contrast, saturation and hue of an 8-bit image.

    Operations, order, ranges and probabilities are those of mmsegmentation's PhotoMetricDistortion (after
    SSD, Liu et al. 2016). Every step clips to 0..255 and truncates; hue is in OpenCV's half degrees, 0..179.

    Args:
      rgb: (H, W, 3) uint8.
      distortion: the changes.

    Returns:
      (H, W, 3) uint8.
    """
    brightness, contrast, contrast_last, saturation, hue = distortion
    first = _linear(1.0, brightness or 0.0)
    if contrast is not None and not contrast_last:
        first = _linear(contrast)[first]
    rgb = _lookup(first, rgb)
    if saturation is not None:
        hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
        cv2.insertChannel(_lookup(_linear(saturation), cv2.extractChannel(hsv, 1)), hsv, 1)
        rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if hue is not None:  # a second round trip through 8-bit HSV, as published
        hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
        turned = ((_LEVELS + hue) % 180).astype(np.uint8)
        cv2.insertChannel(_lookup(turned, cv2.extractChannel(hsv, 0)), hsv, 0)
        rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if contrast is not None and contrast_last:
        rgb = _lookup(_linear(contrast), rgb)
    return rgb


def photometric_distortion(
    example: Example, rng: np.random.Generator, bands: Sequence[int] = (0, 1, 2)
) -> Example:
    """Distort the red, green and blue bands of an example at random; other bands stay.

    Args:
      example: the image is uint8.
      rng: random generator.
      bands: positions of red, green and blue.

    Raises:
      UserError: the image is not 8-bit; the published grey levels have no meaning for other types.
    """
    image = example["image"]
    if image.dtype != np.uint8:
        raise bad_value("config.augment.photometric", True, f"must be False for images of type {image.dtype}")
    distortion = draw_distortion(rng)
    if image.shape[-1] == 3 and tuple(bands) == (0, 1, 2):
        return {**example, "image": distort(np.ascontiguousarray(image), distortion)}
    image = np.array(image, order="C")  # a copy: the example stays as it is
    rgb = np.empty((*image.shape[:2], 3), np.uint8)
    from_to = [number for place, band in enumerate(bands) for number in (band, place)]
    cv2.mixChannels([image], [rgb], from_to)  # (H, W, C) -> (H, W, 3)
    cv2.mixChannels([distort(rgb, distortion)], [image], from_to[::-1])  # and back
    return {**example, "image": image}


def _perhaps(rng: np.random.Generator, value: T) -> T | None:
    return value if rng.integers(2) else None


def _linear(factor: float, offset: float = 0.0) -> np.ndarray:
    """Return the table (256,) uint8 of level * factor + offset, clipped and truncated."""
    return np.clip(_LEVELS.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


def _lookup(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Map uint8 `values` through a table (256,); return them as they are if it changes none."""
    return values if (table == _LEVELS).all() else cv2.LUT(values, table)


class Jitter(NamedTuple):
    """Parameters of `jitter`, one value for each band: `pixel * factor + offset * std`, or the band's mean.

    Attributes:
      factor: (C,) float64.
      offset: (C,) float64, in standard deviations of the band over the example's own pixels.
      dropped: (C,) bool; these bands become their mean.
    """

    factor: np.ndarray
    offset: np.ndarray
    dropped: np.ndarray


def draw_jitter(
    rng: np.random.Generator,
    bands: int,
    *,
    gain: float = 0.0,
    offset: float = 0.0,
    drop_bands: float = 0.0,
    tilt: float = 0.0,
) -> Jitter:
    """Draw the parameters of a spectral jitter: calibration, illumination and atmosphere of the same ground.

    Args:
      rng: random generator; the number of draws does not depend on the other arguments.
      bands: number of bands.
      gain: range of two factors, one for all bands and one for each, both uniform in 1 - gain .. 1 + gain.
      offset: range of a summand for each band, uniform in -offset .. offset standard deviations.
      drop_bands: probability of dropping each band; if all would be dropped, a random one stays.
      tilt: range of a factor linear in the band's position, from 1 - t at the first band to 1 + t at the
        last, t uniform in -tilt .. tilt. A single band is in the middle, where the factor is 1.
    """
    common, slope = rng.uniform(-1, 1, 2)
    own, shift = rng.uniform(-1, 1, (2, bands))  # (C,) each
    dropped = rng.random(bands) < drop_bands
    saved = rng.integers(bands)
    if dropped.all():
        dropped[saved] = False
    position = np.linspace(-1, 1, bands) if bands > 1 else np.zeros(1)
    factor = (1 + gain * common) * (1 + gain * own) * (1 + tilt * slope * position)
    return Jitter(factor, offset * shift, dropped)


def jitter(image: np.ndarray, change: Jitter) -> np.ndarray:
    """Apply a spectral jitter to an image (H, W, C), in its own dtype; integers are rounded and clipped.

    Mean and std are those of the image's own pixels before the change, without nodata.
    """
    factor, offset, dropped = change
    only_gain = not (offset.any() or dropped.any())
    mean, std = (np.zeros_like(factor),) * 2 if only_gain else _moments(image)
    factor = np.where(dropped, 0.0, factor)
    summand = np.where(dropped, mean, offset * std)
    if image.dtype == np.uint8:
        changed = _through_tables(image, factor, summand)
    else:
        changed = image * factor.astype(np.float32)
        changed += summand.astype(np.float32)
        if image.dtype.kind in "iu":
            limits = np.iinfo(image.dtype)
            np.clip(np.rint(changed, out=changed), limits.min, limits.max, out=changed)
        changed = changed.astype(image.dtype, copy=False)
    if not only_gain:  # a gain keeps zero pixels zero
        changed[_nodata(image)] = 0
    return changed


def spectral_jitter(
    example: Example,
    rng: np.random.Generator,
    *,
    gain: float = 0.0,
    offset: float = 0.0,
    drop_bands: float = 0.0,
    tilt: float = 0.0,
) -> Example:
    """Apply a random `jitter` to the image of an example; see `draw_jitter` for the arguments."""
    image = example["image"]
    change = draw_jitter(rng, image.shape[-1], gain=gain, offset=offset, drop_bands=drop_bands, tilt=tilt)
    return {**example, "image": jitter(image, change)}


def normalise(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Return (pixel - mean) / std in float32, as the model does on the device.

    Args:
      image: raw pixels (..., C) of any dtype.
      mean: one value for each band, in units of the raw pixels.
      std: likewise.
    """
    wide = image.astype(np.float32)
    wide -= np.asarray(mean, np.float32)
    wide /= np.asarray(std, np.float32)
    return wide


def _moments(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and std of each band without nodata, (C,) float64 each; 0 for an image of nodata."""
    pixels = image.reshape(-1, image.shape[-1])  # (H, W, C) -> (H W, C)
    number = max(len(pixels) - np.count_nonzero(_nodata(image)), 1)  # nodata adds nothing to the sums below
    if image.dtype == np.uint8:
        counts = np.stack([np.bincount(band, minlength=256) for band in pixels.T])  # (C, 256)
        levels = np.arange(256.0)
        total, squares = counts @ levels, counts @ levels**2
    else:
        total = pixels.sum(axis=0, dtype=np.float64)
        squares = np.einsum("pc,pc->c", pixels, pixels, dtype=np.float64)
    mean = total / number
    return mean, np.sqrt(np.maximum(squares / number - mean**2, 0))


def _nodata(image: np.ndarray) -> np.ndarray:
    """Return the mask (H, W) bool of pixels that are zero in all bands."""
    zero = image[..., 0] == 0
    if zero.any():
        zero[zero] = ~image[zero].any(axis=-1)
    return zero


def _through_tables(image: np.ndarray, factor: np.ndarray, summand: np.ndarray) -> np.ndarray:
    """Return uint8 `image` * factor + summand, rounded and clipped, through a table for each band."""
    changed = np.empty_like(image, order="C")
    for band, (times, plus) in enumerate(zip(factor, summand, strict=True)):
        table = np.clip(np.rint(np.arange(256) * times + plus), 0, 255).astype(np.uint8)
        changed[..., band] = table[image[..., band]]
    return changed
