"""Sun, sky and air: shading, cast shadows and haze over a height map whose first row is north."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.synthetic.spectra import WAVELENGTHS

_MAX_SLOPE = 1.2  # walls are vertical: their slope on a grid means nothing


@dataclass(frozen=True)
class Sun:
    """Where the sun stands: azimuth in degrees clockwise from north, elevation in degrees."""

    azimuth: float
    elevation: float

    def towards(self) -> tuple[float, float]:
        """Unit step (rows, columns) on the ground towards the sun."""
        angle = np.deg2rad(self.azimuth)
        return -float(np.cos(angle)), float(np.sin(angle))


def cast_shadow(height: np.ndarray, sun: Sun, spacing: float = 1.0) -> np.ndarray:
    """Which ground the sun does not reach, (H, W) bool.

    A pixel is in shadow where the line from it to the sun passes below the surface: on flat ground the
    shadow of a wall of height h ends h / tan(elevation) away. Nothing outside the map casts shadows.

    Args:
      height: (H, W), in the unit of `spacing`.
      sun: its elevation above 0.
      spacing: side of a pixel.
    """
    rows, cols = sun.towards()
    climb = spacing * float(np.tan(np.deg2rad(sun.elevation)))
    reach = int(np.ceil(float(height.max() - height.min()) / climb))
    line = height.astype(np.float32)  # highest line of light that anything towards the sun cuts off
    shadow = np.zeros(height.shape, bool)
    for step in range(1, reach + 1):
        here, there = _shifted(height.shape, round(step * rows), round(step * cols))
        shadow[here] |= line[there] - step * climb > line[here] + 1e-3
    return shadow


def shading(height: np.ndarray, sun: Sun, spacing: float = 1.0) -> np.ndarray:
    """Direct light on each slope relative to level ground, (H, W) float32, 0 facing away (Lambert)."""
    rows, cols = sun.towards()
    height = height.astype(np.float32)
    down = np.clip(np.gradient(height, spacing, axis=0), -_MAX_SLOPE, _MAX_SLOPE)
    right = np.clip(np.gradient(height, spacing, axis=1), -_MAX_SLOPE, _MAX_SLOPE)
    elevation = np.deg2rad(sun.elevation)
    facing = 1.0 - (down * rows + right * cols) * float(1.0 / np.tan(elevation))
    return np.clip(facing / np.sqrt(1.0 + down**2 + right**2), 0.0, 2.0)


def skylight() -> np.ndarray:
    """Share of the light on open ground that comes from the blue sky, on `WAVELENGTHS`, (201,).

    Shadows keep this share alone: dark, and bluer than their surroundings.
    """
    return 0.20 * (WAVELENGTHS / 0.5) ** -1.6


def haze(amount: float) -> tuple[np.ndarray, np.ndarray]:
    """Reflectance the air adds, and the share of the ground's that it lets through, each (201,).

    `amount` is the added reflectance at 0.5 um; both effects fade as wavelength**-1.3 (Ångström's law
    with the exponent of common aerosol).
    """
    path = amount * (WAVELENGTHS / 0.5) ** -1.3
    return path, np.exp(-1.5 * path)


def _shifted(
    shape: tuple[int, ...], down: int, right: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices (here, there) that pair each pixel with the one `down` rows and `right` columns away."""

    def pair(size: int, by: int) -> tuple[slice, slice]:
        by = max(-size, min(size, by))
        return slice(max(0, -by), size - max(0, by)), slice(max(0, by), size - max(0, -by))

    (top, top2), (left, left2) = pair(shape[0], down), pair(shape[1], right)
    return (top, left), (top2, left2)
