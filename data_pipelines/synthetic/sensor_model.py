"""Material spectra from 0.4 to 2.4 um, and sensors: band responses, sharpness, calibration and noise.

Spectra are generic: a few knots for each material, shaped after spectral libraries. Leaves absorb blue and
red for photosynthesis, rise steeply at the red edge (0.70 to 0.75 um), and have the absorption bands of
liquid water at 0.97, 1.20, 1.45 and 1.95 um. Soils rise smoothly, with water bands when moist and a clay band
at 2.2 um. Water darkens towards the infrared. Asphalt and slate are dark and flat.
"""

from dataclasses import dataclass

import numpy as np

WAVELENGTHS = np.linspace(0.4, 2.4, 201)
"""Grid of all spectra in micrometres, (201,): 10 nm apart."""

_SMOOTHING_UM = 0.012
_FWHM_PER_SIGMA = 2.3548200450309493

_KNOTS: dict[str, dict[float, float]] = {
    "crop": {0.40: 0.03, 0.45: 0.035, 0.50: 0.045, 0.55: 0.10, 0.60: 0.06, 0.67: 0.035, 0.69: 0.05,
             0.72: 0.20, 0.76: 0.42, 0.80: 0.46, 0.92: 0.49, 0.97: 0.47, 1.08: 0.50, 1.20: 0.43, 1.28: 0.45,
             1.38: 0.27, 1.45: 0.13, 1.55: 0.22, 1.65: 0.28, 1.80: 0.24, 1.90: 0.08, 1.95: 0.06, 2.10: 0.12,
             2.20: 0.15, 2.40: 0.07},
    "grass": {0.40: 0.035, 0.45: 0.04, 0.50: 0.06, 0.55: 0.12, 0.60: 0.085, 0.67: 0.06, 0.69: 0.075,
              0.72: 0.20, 0.76: 0.33, 0.80: 0.36, 0.92: 0.39, 0.97: 0.375, 1.08: 0.40, 1.20: 0.36, 1.28: 0.38,
              1.38: 0.26, 1.45: 0.17, 1.55: 0.25, 1.65: 0.30, 1.80: 0.26, 1.90: 0.12, 1.95: 0.10, 2.10: 0.16,
              2.20: 0.18, 2.40: 0.10},
    "broadleaf": {0.40: 0.02, 0.45: 0.024, 0.50: 0.03, 0.55: 0.068, 0.60: 0.04, 0.67: 0.024, 0.69: 0.035,
                  0.72: 0.17, 0.76: 0.38, 0.80: 0.42, 0.92: 0.45, 0.97: 0.43, 1.08: 0.46, 1.20: 0.39,
                  1.28: 0.41, 1.38: 0.23, 1.45: 0.11, 1.55: 0.19, 1.65: 0.24, 1.80: 0.20, 1.90: 0.06,
                  1.95: 0.05, 2.10: 0.09, 2.20: 0.12, 2.40: 0.05},
    "conifer": {0.40: 0.015, 0.45: 0.018, 0.50: 0.022, 0.55: 0.042, 0.60: 0.029, 0.67: 0.020, 0.69: 0.027,
                0.72: 0.10, 0.76: 0.21, 0.80: 0.24, 0.92: 0.26, 0.97: 0.245, 1.08: 0.26, 1.20: 0.21,
                1.28: 0.22, 1.38: 0.11, 1.45: 0.05, 1.55: 0.09, 1.65: 0.12, 1.80: 0.10, 1.90: 0.03,
                1.95: 0.025, 2.10: 0.04, 2.20: 0.055, 2.40: 0.02},
    "autumn leaf": {0.40: 0.03, 0.45: 0.035, 0.50: 0.045, 0.55: 0.085, 0.60: 0.15, 0.67: 0.16, 0.72: 0.26,
                    0.76: 0.34, 0.80: 0.37, 0.97: 0.40, 1.08: 0.42, 1.20: 0.40, 1.38: 0.30, 1.45: 0.22,
                    1.65: 0.34, 1.80: 0.30, 1.95: 0.16, 2.20: 0.22, 2.40: 0.14},
    "straw": {0.40: 0.07, 0.50: 0.13, 0.55: 0.17, 0.60: 0.22, 0.70: 0.29, 0.80: 0.35, 1.00: 0.41, 1.30: 0.46,
              1.45: 0.38, 1.65: 0.47, 1.80: 0.43, 1.95: 0.31, 2.10: 0.32, 2.20: 0.36, 2.40: 0.26},
    "litter": {0.40: 0.03, 0.55: 0.055, 0.67: 0.075, 0.80: 0.14, 1.00: 0.20, 1.30: 0.25, 1.45: 0.19,
               1.65: 0.26, 1.95: 0.15, 2.20: 0.19, 2.40: 0.13},
    "brown soil": {0.40: 0.05, 0.50: 0.085, 0.60: 0.135, 0.70: 0.175, 0.80: 0.21, 1.00: 0.26, 1.30: 0.32,
                   1.42: 0.29, 1.65: 0.36, 1.92: 0.30, 2.10: 0.35, 2.20: 0.32, 2.40: 0.29},
    "red soil": {0.40: 0.04, 0.50: 0.06, 0.55: 0.09, 0.60: 0.17, 0.70: 0.235, 0.87: 0.25, 1.00: 0.29,
                 1.30: 0.36, 1.42: 0.33, 1.65: 0.40, 1.92: 0.34, 2.10: 0.39, 2.20: 0.34, 2.40: 0.31},
    "sand": {0.40: 0.13, 0.50: 0.20, 0.60: 0.28, 0.70: 0.33, 0.80: 0.36, 1.00: 0.41, 1.30: 0.47, 1.42: 0.44,
             1.65: 0.50, 1.92: 0.44, 2.10: 0.49, 2.20: 0.46, 2.40: 0.42},
    "clear water": {0.40: 0.042, 0.45: 0.046, 0.50: 0.045, 0.55: 0.036, 0.60: 0.022, 0.65: 0.015, 0.70: 0.009,
                    0.75: 0.005, 0.90: 0.003, 2.40: 0.001},
    "turbid water": {0.40: 0.045, 0.50: 0.075, 0.56: 0.105, 0.60: 0.095, 0.65: 0.080, 0.70: 0.058,
                     0.75: 0.028, 0.82: 0.024, 0.90: 0.011, 1.00: 0.004, 2.40: 0.001},
    "asphalt": {0.40: 0.07, 0.50: 0.085, 0.70: 0.105, 1.00: 0.125, 1.60: 0.15, 2.20: 0.155, 2.40: 0.15},
    "worn asphalt": {0.40: 0.12, 0.50: 0.15, 0.70: 0.18, 1.00: 0.205, 1.60: 0.24, 2.20: 0.235, 2.40: 0.22},
    "concrete": {0.40: 0.18, 0.50: 0.25, 0.60: 0.29, 0.70: 0.31, 1.00: 0.34, 1.60: 0.37, 1.92: 0.33,
                 2.20: 0.35, 2.40: 0.31},
    "clay tile": {0.40: 0.05, 0.50: 0.075, 0.55: 0.105, 0.60: 0.20, 0.65: 0.26, 0.70: 0.29, 0.87: 0.30,
                  1.00: 0.34, 1.60: 0.43, 2.20: 0.41, 2.40: 0.38},
    "slate": {0.40: 0.065, 0.50: 0.075, 0.70: 0.082, 1.00: 0.09, 1.60: 0.11, 2.20: 0.105, 2.40: 0.10},
    "metal sheet": {0.40: 0.23, 0.50: 0.285, 0.70: 0.31, 1.00: 0.33, 1.60: 0.38, 2.40: 0.39},
    "roofing felt": {0.40: 0.30, 0.50: 0.39, 0.70: 0.42, 1.00: 0.44, 1.20: 0.42, 1.65: 0.40, 1.73: 0.34,
                     1.90: 0.36, 2.20: 0.31, 2.40: 0.25},
}  # fmt: skip


def material_names() -> tuple[str, ...]:
    """Return the names of all materials."""
    return tuple(_KNOTS)


def spectrum(material: str) -> np.ndarray:
    """Return the reflectance of a material on `WAVELENGTHS`, (201,) float64 in 0..1.

    Raises:
      KeyError: there is no such material.
    """
    where, value = zip(*_KNOTS[material].items(), strict=True)
    return _smooth(np.interp(WAVELENGTHS, where, value))


def perturbations(
    count: int, rng: np.random.Generator, *, brightness: float, shape: float, knots: int = 9
) -> np.ndarray:
    """Draw positive factors on `WAVELENGTHS` that make each object's spectrum its own, (count, 201).

    Args:
      count: number of objects.
      rng: random generator.
      brightness: standard deviation of the logarithm that all wavelengths have in common.
      shape: standard deviation of the logarithm at each knot of a smooth curve that is added to it.
      knots: number of knots.
    """
    where = np.linspace(WAVELENGTHS[0], WAVELENGTHS[-1], knots)
    values = rng.normal(0.0, shape, (count, knots)) + rng.normal(0.0, brightness, (count, 1))
    position = (WAVELENGTHS - where[0]) / (where[1] - where[0])
    left = np.minimum(position.astype(int), knots - 2)
    part = position - left
    part = part * part * (3 - 2 * part)  # no kinks at the knots
    return np.exp(values[:, left] * (1 - part) + values[:, left + 1] * part)


def _smooth(values: np.ndarray) -> np.ndarray:
    step = WAVELENGTHS[1] - WAVELENGTHS[0]
    reach = np.arange(-5, 6) * step
    kernel = np.exp(-0.5 * (reach / _SMOOTHING_UM) ** 2)
    return np.convolve(np.pad(values, 5, mode="edge"), kernel / kernel.sum(), mode="valid")


@dataclass(frozen=True)
class Band:
    """One spectral band with a Gaussian response.

    Attributes:
      name: colour, the same for every sensor.
      centre: wavelength of the peak in micrometres.
      width: full width at half maximum in micrometres.
      gain: calibration; the sensor reports gain * reflectance + offset.
      offset: likewise.
    """

    name: str
    centre: float
    width: float
    gain: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Sensor:
    """A camera.

    Attributes:
      name: as in the metadata of files.
      bands: in the order of files.
      blur: standard deviation of the point spread function in pixels.
      noise: standard deviation of the noise at reflectance 0.2; it grows with the square root of the signal.
    """

    name: str
    bands: tuple[Band, ...]
    blur: float
    noise: float

    def responses(self) -> np.ndarray:
        """Return the weight of every wavelength in every band, (bands, 201); each row sums to one."""
        centre = np.array([band.centre for band in self.bands])[:, None]
        sigma = np.array([band.width for band in self.bands])[:, None] / _FWHM_PER_SIGMA
        weights = np.exp(-0.5 * ((WAVELENGTHS - centre) / sigma) ** 2)
        return weights / weights.sum(axis=1, keepdims=True)

    def band_reflectance(self, spectra: np.ndarray) -> np.ndarray:
        """Integrate spectra (..., 201) over the bands, before calibration: (..., bands)."""
        return spectra @ self.responses().T

    def measure(self, reflectance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return calibrated, noisy values (H, W, bands) float32 of a blurred reflectance (H, W, bands)."""
        gain = np.array([band.gain for band in self.bands], np.float32)
        offset = np.array([band.offset for band in self.bands], np.float32)
        noise = rng.standard_normal(reflectance.shape, np.float32)
        noise *= self.noise * np.sqrt(np.maximum(reflectance, 0) / 0.2 + 0.1)
        return (reflectance + noise) * gain + offset


SENSOR_A = Sensor(
    "sensor A",
    (
        Band("blue", 0.492, 0.066),
        Band("green", 0.560, 0.036),
        Band("red", 0.665, 0.031),
        Band("nir", 0.833, 0.106),
    ),
    blur=0.45,
    noise=0.003,
)
"""Centres and widths of the 10 m bands of Sentinel-2A (ESA, Sentinel-2 Spectral Response Functions)."""

SENSOR_B = Sensor(
    "sensor B",
    (
        Band("blue", 0.470, 0.080, gain=1.05, offset=0.004),
        Band("green", 0.550, 0.080, gain=0.97, offset=0.003),
        Band("red", 0.645, 0.075, gain=1.04, offset=0.002),
        Band("nir", 0.800, 0.080, gain=0.93),
    ),
    blur=0.75,
    noise=0.006,
)
"""A cheaper camera: broad overlapping bands, a near infrared close to the red edge, calibration errors."""
