"""Rendering of a layout to an image: materials in their season, sun, sky and haze, and the sensor.

Height maps have their first row in the north.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from data_pipelines.synthetic.layout import (
    LABEL_OF_KIND,
    OVERSAMPLING,
    Habits,
    Kind,
    Layout,
    draw_layout,
    smooth_noise,
)
from data_pipelines.synthetic.sensor_model import WAVELENGTHS, Sensor, material_names, perturbations, spectrum

SCALE = 10_000
"""Factor from reflectance to pixel values, which are uint16."""

_MAX_SLOPE = 1.2  # walls are vertical: their slope on a grid has no meaning


@dataclass(frozen=True)
class Sun:
    """Position of the sun.

    Attributes:
      azimuth: in degrees clockwise from north.
      elevation: in degrees.
    """

    azimuth: float
    elevation: float

    def towards(self) -> tuple[float, float]:
        """Return the unit step (rows, columns) on the ground towards the sun."""
        angle = np.deg2rad(self.azimuth)
        return -float(np.cos(angle)), float(np.sin(angle))


@dataclass(frozen=True)
class Domain:
    """A place, seen by one sensor in one season. Ranges are (lowest, highest).

    Attributes:
      name: name of the domain.
      sensor: the camera.
      habits: land use.
      soils: probability of each soil material.
      roofs: probability of each roof material.
      greenness: range of the mean share of a scene's crops that is green rather than ripe.
      autumn: largest share by which leaves have turned, 0..1.
      turbidity: mean turbidity of the water, 0..1.
      elevation: range of the sun's elevation in degrees.
      azimuth: range of the sun's azimuth in degrees.
      haze: range of the path reflectance at 0.5 um.
      epsg: code of the place's UTM zone.
      corner: easting and northing of the north-western corner in metres.
    """

    name: str
    sensor: Sensor
    habits: Habits
    soils: Mapping[str, float]
    roofs: Mapping[str, float]
    greenness: tuple[float, float]
    autumn: float
    turbidity: float
    elevation: tuple[float, float]
    azimuth: tuple[float, float]
    haze: tuple[float, float]
    epsg: int
    corner: tuple[float, float]


class Scene(NamedTuple):
    """One rendered scene.

    Attributes:
      image: reflectance x `SCALE`, (H, W, bands) uint16.
      label: class that covers most of each pixel, (H, W) uint8.
      height: height of the surface above the lowest ground in metres, (H, W) float32.
      sun: position of the sun.
    """

    image: np.ndarray
    label: np.ndarray
    height: np.ndarray
    sun: Sun


def render_scene(domain: Domain, size: int, pixel: float, rng: np.random.Generator) -> Scene:
    """Draw and render a random scene.

    Args:
      domain: place, sensor and season.
      size: side of the scene in pixels.
      pixel: side of a pixel in metres.
      rng: random generator; with the same state it gives the same scene.
    """
    layout = draw_layout(domain.habits, size, pixel, rng)
    sun = Sun(rng.uniform(*domain.azimuth), rng.uniform(*domain.elevation))
    air = rng.uniform(*domain.haze)
    ground = _surface(layout, domain, rng)
    image = _at_sensor(ground, layout, domain.sensor, sun, air, rng)
    shares = [_shrink((LABEL_OF_KIND[layout.kind] == k).astype(np.float32)[layout.objects]) for k in range(6)]
    label = np.argmax(shares, axis=0).astype(np.uint8)
    height = _shrink(layout.height)
    values = np.clip(np.rint(image * SCALE), 0, 65535).astype(np.uint16)
    return Scene(values, label, height - height.min(), sun)


def _surface(layout: Layout, domain: Domain, rng: np.random.Generator) -> np.ndarray:
    """Return the reflectance in the sensor's bands under uniform light, (S, S, bands) float32.

    Every object has two spectra, such as a crop and the soil beneath it, and each of its pixels is a mixture
    of both. Mixing is linear, so spectra are integrated to bands before they are mixed.
    """
    first, second = (domain.sensor.band_reflectance(s) for s in _spectra(layout, domain, rng))
    part = _mixture(layout, rng)[..., None]
    objects = layout.objects
    first, second = first.astype(np.float32), second.astype(np.float32)
    ground = first[objects] + part * (second - first)[objects]
    grain = rng.standard_normal(objects.shape, np.float32) + 0.7 * smooth_noise(len(objects), 5, rng)
    roughness = np.array((0.05, 0.05, 0.10, 0.09, 0.015, 0.035, 0.03, 0.05), np.float32)
    return ground * (1 + roughness[layout.kind][objects] * grain)[..., None]


def _spectra(layout: Layout, domain: Domain, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the two spectra of every object, (O, 201) each."""
    material = dict(zip(material_names(), map(spectrum, material_names()), strict=True))
    blend = lambda a, b, share: (1 - share) * material[a] + share * material[b]
    soil_names, soil_odds = zip(*domain.soils.items(), strict=True)
    roof_names, roof_odds = zip(*domain.roofs.items(), strict=True)
    green = rng.uniform(*domain.greenness)
    local = material[str(rng.choice(soil_names, p=soil_odds))]  # common to all fields of a scene
    first, second = np.empty((2, len(layout.kind), WAVELENGTHS.size))
    tree = 0
    for i, kind in enumerate(layout.kind):
        soil = 0.6 * local + 0.4 * material[str(rng.choice(soil_names, p=soil_odds))]
        ripe = 1 - rng.beta(5 * green, 5 * (1 - green))
        if kind == Kind.CROP:
            first[i], second[i] = blend("crop", "straw", ripe), soil
        elif kind == Kind.MEADOW:
            first[i], second[i] = blend("grass", "straw", 0.6 * ripe), blend("straw", "grass", 0.4)
        elif kind == Kind.FOREST_FLOOR:
            first[i], second[i] = blend("litter", "grass", 0.3), material["litter"]
        elif kind == Kind.TREE:  # the first half of a scene's trees are conifers
            turned = rng.uniform(0, 1) * domain.autumn
            first[i] = material["conifer"] if tree < 16 else blend("broadleaf", "autumn leaf", turned)
            second[i] = 0.6 * first[i]  # leaves in each other's shade
            tree += 1
        elif kind == Kind.WATER:
            murk = np.clip(domain.turbidity + rng.normal(0, 0.15), 0, 1)
            first[i], second[i] = blend("clear water", "turbid water", murk), material["turbid water"]
        elif kind == Kind.ROAD:
            first[i], second[i] = blend("asphalt", "worn asphalt", rng.random()), material["concrete"]
        elif kind == Kind.ROOF:
            first[i] = material[str(rng.choice(roof_names, p=roof_odds))]
            second[i] = 0.6 * first[i] + 0.4 * material["slate"]  # weathered
        else:
            first[i], second[i] = soil, 0.75 * soil + 0.25 * material["straw"]
    own = perturbations(len(first), rng, brightness=0.10, shape=0.04)
    return np.clip(first * own, 0, 1), np.clip(second * own, 0, 1)


def _mixture(layout: Layout, rng: np.random.Generator) -> np.ndarray:
    """Return the share of the second spectrum in every fine pixel, (S, S) float32 in 0..1."""
    side = len(layout.objects)
    count = len(layout.kind)
    patches = smooth_noise(side, 14 / layout.spacing, rng) + 0.6 * smooth_noise(side, 4 / layout.spacing, rng)
    amount = np.array((0.09, 0.16, 0.2, 0.15, 0.12, 0.06, 0.10, 0.22), np.float32)[layout.kind]
    level = np.array((0.12, 0.20, 0.5, 0.2, 0.15, 0.10, 0.2, 0.35), np.float32)[layout.kind]
    crop = layout.kind == Kind.CROP
    level = level + np.where(crop, rng.uniform(0, 0.25, count), 0)
    furrow = np.where(crop & (rng.random(count) < 0.75), rng.uniform(0.06, 0.22, count), 0)
    wave = 2 * np.pi * layout.spacing / rng.uniform(3.2, 6.5, count)
    objects = layout.objects
    down = (wave * np.cos(layout.rows)).astype(np.float32)[objects]
    right = (-wave * np.sin(layout.rows)).astype(np.float32)[objects]
    position = np.arange(side, dtype=np.float32)
    rows = np.sin(down * position[:, None] + right * position)
    take = lambda values: values.astype(np.float32)[objects]
    return np.clip(take(level) + take(amount) * patches + take(furrow) * rows, 0, 1)


def _at_sensor(
    ground: np.ndarray, layout: Layout, sensor: Sensor, sun: Sun, air: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the image (H, W, bands) float32 of a surface reflectance (S, S, bands) under sun and haze."""
    direct = shading(layout.height, sun, layout.spacing)
    direct[cast_shadow(layout.height, sun, layout.spacing)] = 0
    water = (layout.kind == Kind.WATER)[layout.objects]
    direct[water & (direct > 0)] = 1  # level
    sky = sensor.band_reflectance(skylight()).astype(np.float32)
    path, passes = (sensor.band_reflectance(a).astype(np.float32) for a in haze(air))
    light = direct[..., None] * (passes * (1 - sky)) + passes * sky
    seen = cv2.GaussianBlur(ground * light, (0, 0), sensor.blur * OVERSAMPLING)
    return sensor.measure(_shrink(seen) + path, rng)


def cast_shadow(height: np.ndarray, sun: Sun, spacing: float = 1.0) -> np.ndarray:
    """Return the pixels that the sun does not reach, (H, W) bool.

    A pixel is in shadow if the line from it to the sun passes below the surface: on flat ground the shadow of
    a wall of height h ends at h / tan(elevation). Nothing outside the map casts shadows.

    Args:
      height: (H, W), in the unit of `spacing`.
      sun: position of the sun, with an elevation above 0.
      spacing: side of a pixel.
    """
    rows, cols = sun.towards()
    climb = spacing * float(np.tan(np.deg2rad(sun.elevation)))
    reach = int(np.ceil(float(height.max() - height.min()) / climb))
    line = height.astype(np.float32)  # (H, W)
    shadow = np.zeros(height.shape, bool)
    for step in range(1, reach + 1):
        here, there = _shifted(height.shape, round(step * rows), round(step * cols))
        shadow[here] |= line[there] - step * climb > line[here] + 1e-3
    return shadow


def shading(height: np.ndarray, sun: Sun, spacing: float = 1.0) -> np.ndarray:
    """Return the direct light on each slope relative to level ground (Lambert), (H, W) float32.

    Args:
      height: (H, W), in the unit of `spacing`.
      sun: position of the sun.
      spacing: side of a pixel.
    """
    rows, cols = sun.towards()
    height = height.astype(np.float32)
    down = np.clip(np.gradient(height, spacing, axis=0), -_MAX_SLOPE, _MAX_SLOPE)
    right = np.clip(np.gradient(height, spacing, axis=1), -_MAX_SLOPE, _MAX_SLOPE)
    elevation = np.deg2rad(sun.elevation)
    facing = 1.0 - (down * rows + right * cols) * float(1.0 / np.tan(elevation))
    return np.clip(facing / np.sqrt(1.0 + down**2 + right**2), 0.0, 2.0)


def skylight() -> np.ndarray:
    """Return the share of the light on open ground that comes from the blue sky, on `WAVELENGTHS`, (201,).

    Shadows keep only this share: they are dark, and bluer than their surroundings.
    """
    return 0.20 * (WAVELENGTHS / 0.5) ** -1.6


def haze(amount: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the path reflectance of haze and its transmittance, on `WAVELENGTHS`, (201,) each.

    Both effects fade as wavelength**-1.3 (Ångström's law with the exponent of common aerosol).

    Args:
      amount: path reflectance at 0.5 um.
    """
    path = amount * (WAVELENGTHS / 0.5) ** -1.3
    return path, np.exp(-1.5 * path)


def _shifted(
    shape: tuple[int, ...], down: int, right: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return slices (here, there) that pair each pixel with the one `down` rows and `right` columns away."""

    def pair(size: int, by: int) -> tuple[slice, slice]:
        by = max(-size, min(size, by))
        return slice(max(0, -by), size - max(0, by)), slice(max(0, by), size - max(0, -by))

    (top, top2), (left, left2) = pair(shape[0], down), pair(shape[1], right)
    return (top, left), (top2, left2)


def _shrink(fine: np.ndarray) -> np.ndarray:
    """Average OVERSAMPLING x OVERSAMPLING fine pixels: (S, S, ...) to (H, W, ...)."""
    size = fine.shape[0] // OVERSAMPLING
    return cv2.resize(fine, (size, size), interpolation=cv2.INTER_AREA)
