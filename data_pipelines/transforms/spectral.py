"""Changes along the spectrum: what calibration, air and light do to the same ground, and normalisation.

A pixel that is zero in every band is nodata: it stays zero and takes no part in any statistic.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.transforms.geometry import Example


class Jitter(NamedTuple):
    """What `jitter` does, one value a band: `pixel * factor + offset * (the band's std)`, or the mean.

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
    """The random part of `spectral_jitter`, for so many `bands`.

    Args:
      rng: the source of chance; takes the same number of draws whatever the other arguments are.
      bands: how many there are.
      gain: of a factor of all bands, and of one of each band, both uniform in 1 - gain .. 1 + gain.
      offset: of a summand of each band, uniform in -offset .. offset standard deviations.
      drop_bands: chance of each band to be dropped; if all would be, one at random stays.
      tilt: of a factor linear in the band's place, from 1 - t at the first band to 1 + t at the last,
        t uniform in -tilt .. tilt. A single band is in the middle, where the factor is 1.
    """
    common, slope = rng.uniform(-1, 1, 2)
    own, shift = rng.uniform(-1, 1, (2, bands))
    dropped = rng.random(bands) < drop_bands
    saved = rng.integers(bands)
    if dropped.all():
        dropped[saved] = False
    place = np.linspace(-1, 1, bands) if bands > 1 else np.zeros(1)
    factor = (1 + gain * common) * (1 + gain * own) * (1 + tilt * slope * place)
    return Jitter(factor, offset * shift, dropped)


def jitter(image: np.ndarray, change: Jitter) -> np.ndarray:
    """`image` (H, W, C) after `change`, in its own dtype: integers are rounded and cut to their range.

    Mean and std are those of the image's own pixels, nodata left out, before the change.
    """
    factor, offset, dropped = change
    still = not (offset.any() or dropped.any())
    mean, std = (np.zeros_like(factor),) * 2 if still else _moments(image)
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
    if not still:
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
    """A random `jitter` of an example's image; `draw_jitter` says what the arguments mean."""
    image = example["image"]
    change = draw_jitter(rng, image.shape[-1], gain=gain, offset=offset, drop_bands=drop_bands, tilt=tilt)
    return {**example, "image": jitter(image, change)}


def normalise(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Raw pixels (..., C) of any dtype -> (pixel - mean) / std in float32, as the model does on the device.

    Args:
      image: raw pixels.
      mean, std: one value a band, in raw pixel units.
    """
    wide = image.astype(np.float32)
    wide -= np.asarray(mean, np.float32)
    wide /= np.asarray(std, np.float32)
    return wide


def _moments(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of each band, (C,) float64, nodata left out; 0 where there is nothing else."""
    pixels = image.reshape(-1, image.shape[-1])
    number = max(len(pixels) - np.count_nonzero(_nodata(image)), 1)  # nodata adds nothing to the sums below
    if image.dtype == np.uint8:
        counts = np.stack([np.bincount(band, minlength=256) for band in pixels.T])
        levels = np.arange(256.0)
        total, squares = counts @ levels, counts @ levels**2
    else:
        total = pixels.sum(axis=0, dtype=np.float64)
        squares = np.einsum("pc,pc->c", pixels, pixels, dtype=np.float64)
    mean = total / number
    return mean, np.sqrt(np.maximum(squares / number - mean**2, 0))


def _nodata(image: np.ndarray) -> np.ndarray:
    """Where all bands are zero, (H, W) bool."""
    zero = image[..., 0] == 0
    if zero.any():
        zero[zero] = ~image[zero].any(axis=-1)
    return zero


def _through_tables(image: np.ndarray, factor: np.ndarray, summand: np.ndarray) -> np.ndarray:
    """uint8 `image` * factor + summand, rounded and cut to 0..255, through a table a band."""
    changed = np.empty_like(image, order="C")
    for band, (times, plus) in enumerate(zip(factor, summand, strict=True)):
        table = np.clip(np.rint(np.arange(256) * times + plus), 0, 255).astype(np.uint8)
        changed[..., band] = table[image[..., band]]
    return changed
