"""Multispectral sensors and aerial cameras: names, wavelengths and widths of their bands in micrometres.

Sources: Sentinel-2 of the mission's spectral response functions (ESA, COPE-GSEG-EOPG-TN-15-0007, Sentinel-2A)
and its product specification; Landsat of the USGS data users' handbooks (middle and width of the published
band edges for TM and ETM+) and the Collection 2 scale factors; Gaofen and PlanetScope (PS2) of their
operators' specifications; `generic` of the settings that SpectralMoE was published with, and round numbers
beyond those four. Aerial cameras have the broad bands of digital mapping cameras, rounded.

Sentinel-2 products of processing baseline 04.00 and later (from 25 January 2022) store 1000 more than
`scale` and `offset` say here, which their files do not tell: mixing both kinds is a shift of 0.1 in
reflectance (ESA, Sentinel-2 Products Specification Document, RADIO_ADD_OFFSET).
"""

from __future__ import annotations

import dataclasses

from spectralmoe_jax.sensors.sensor import Band, Sensor

RGB = ("red", "green", "blue")

SENTINEL2 = Sensor(
    "sentinel2",
    (
        Band("B01", 0.4427, 0.021, ("B1", "coastal")),
        Band("B02", 0.4924, 0.066, ("B2", "blue")),
        Band("B03", 0.5598, 0.036, ("B3", "green")),
        Band("B04", 0.6646, 0.031, ("B4", "red")),
        Band("B05", 0.7041, 0.015, ("B5", "rededge1")),
        Band("B06", 0.7405, 0.015, ("B6", "rededge2")),
        Band("B07", 0.7828, 0.020, ("B7", "rededge3")),
        Band("B08", 0.8328, 0.106, ("B8", "nir")),
        Band("B8A", 0.8647, 0.021, ("nir08",)),
        Band("B09", 0.9451, 0.020, ("B9", "nir09")),
        Band("B10", 1.3735, 0.031, ("cirrus",)),
        Band("B11", 1.6137, 0.091, ("swir16",)),
        Band("B12", 2.2024, 0.175, ("swir22",)),
    ),
    ("B04", "B03", "B02"),
    scale=1e-4,
    nodata=0.0,
    dtype="uint16",
)
LANDSAT5 = Sensor(
    "landsat5",
    (
        Band("blue", 0.485, 0.07, ("B1",)),
        Band("green", 0.56, 0.08, ("B2",)),
        Band("red", 0.66, 0.06, ("B3",)),
        Band("nir", 0.83, 0.14, ("B4",)),
        Band("swir16", 1.65, 0.20, ("B5",)),
        Band("thermal", 11.45, 2.1, ("B6",)),
        Band("swir22", 2.215, 0.27, ("B7",)),
    ),
    RGB,
    scale=2.75e-5,
    offset=-0.2,
    nodata=0.0,
    dtype="uint16",
)
LANDSAT7 = Sensor(
    "landsat7",
    (
        Band("blue", 0.485, 0.07, ("B1",)),
        Band("green", 0.57, 0.08, ("B2",)),
        Band("red", 0.66, 0.06, ("B3",)),
        Band("nir", 0.835, 0.13, ("B4",)),
        Band("swir16", 1.65, 0.20, ("B5",)),
        Band("thermal", 11.45, 2.1, ("B6",)),
        Band("swir22", 2.22, 0.26, ("B7",)),
        Band("pan", 0.71, 0.38, ("B8",)),
    ),
    RGB,
    scale=2.75e-5,
    offset=-0.2,
    nodata=0.0,
    dtype="uint16",
)
LANDSAT8 = Sensor(
    "landsat8",
    (
        Band("coastal", 0.443, 0.016, ("B1",)),
        Band("blue", 0.482, 0.060, ("B2",)),
        Band("green", 0.561, 0.057, ("B3",)),
        Band("red", 0.655, 0.037, ("B4",)),
        Band("nir", 0.865, 0.028, ("B5", "nir08")),
        Band("swir16", 1.609, 0.085, ("B6",)),
        Band("swir22", 2.201, 0.187, ("B7",)),
        Band("pan", 0.590, 0.172, ("B8",)),
        Band("cirrus", 1.373, 0.020, ("B9",)),
        Band("lwir11", 10.895, 0.59, ("B10",)),
        Band("lwir12", 12.005, 1.01, ("B11",)),
    ),
    RGB,
    scale=2.75e-5,
    offset=-0.2,
    nodata=0.0,
    dtype="uint16",
)
_GAOFEN = (
    Band("blue", 0.485, 0.07, ("B1",)),
    Band("green", 0.555, 0.07, ("B2",)),
    Band("red", 0.66, 0.06, ("B3",)),
    Band("nir", 0.83, 0.12, ("B4",)),
)
PLANETSCOPE = Sensor(
    "planetscope",
    (
        Band("blue", 0.485, 0.06),
        Band("green", 0.545, 0.09),
        Band("red", 0.63, 0.08),
        Band("nir", 0.82, 0.08),
    ),
    RGB,
    scale=1e-4,
    nodata=0.0,
    dtype="uint16",
)
GENERIC = Sensor(
    "generic",
    (
        Band("blue", 0.49, 0.07),
        Band("green", 0.56, 0.07),
        Band("red", 0.665, 0.06),
        Band("nir", 0.83, 0.12),
        Band("swir16", 1.61, 0.09),
        Band("swir22", 2.2, 0.18),
    ),
    RGB,
)
_RED, _GREEN, _BLUE = (Band("red", 0.65, 0.08), Band("green", 0.55, 0.09), Band("blue", 0.46, 0.08))
_NIR = Band("nir", 0.83, 0.14)
AERIAL = (
    Sensor("aerial_rgb", (_RED, _GREEN, _BLUE), RGB, dtype="uint8"),
    Sensor("aerial_rgbn", (_RED, _GREEN, _BLUE, _NIR), RGB, dtype="uint8"),
    Sensor("aerial_nirrg", (_NIR, _RED, _GREEN), ("nir", "red", "green"), dtype="uint8"),
)
GAOFEN1, GAOFEN2 = (Sensor(name, _GAOFEN, RGB, nodata=0.0, dtype="uint16") for name in ("gaofen1", "gaofen2"))
LANDSAT9 = dataclasses.replace(LANDSAT8, name="landsat9")
