"""What a sensor makes of reflectance: band responses, sharpness, calibration and noise."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.synthetic.spectra import WAVELENGTHS

_FWHM_PER_SIGMA = 2.3548200450309493


@dataclass(frozen=True)
class Band:
    """One spectral band with a Gaussian response.

    Attributes:
      name: the colour, the same on every sensor.
      centre: wavelength of the peak, um.
      width: full width at half maximum, um.
      gain, offset: calibration; the sensor reports gain * reflectance + offset.
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
      name: as it appears in file metadata.
      bands: in file order.
      blur: standard deviation of the point spread function, pixels.
      noise: standard deviation of the noise of a surface of reflectance 0.2; it grows with the square
        root of the signal.
    """

    name: str
    bands: tuple[Band, ...]
    blur: float
    noise: float

    def responses(self) -> np.ndarray:
        """Weight of every wavelength in every band, (bands, 201); each row sums to one."""
        centre = np.array([band.centre for band in self.bands])[:, None]
        sigma = np.array([band.width for band in self.bands])[:, None] / _FWHM_PER_SIGMA
        weights = np.exp(-0.5 * ((WAVELENGTHS - centre) / sigma) ** 2)
        return weights / weights.sum(axis=1, keepdims=True)

    def band_reflectance(self, spectra: np.ndarray) -> np.ndarray:
        """Spectra (..., 201) as the bands see them, before calibration: (..., bands)."""
        return spectra @ self.responses().T

    def measure(self, reflectance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Calibrated, noisy values (H, W, bands) float32 of a blurred reflectance (H, W, bands)."""
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
"""A cheaper camera: broad bands that overlap, a near infrared close to the red edge, and calibration off."""
