"""Bands of known sensors: names, wavelengths and widths in micrometres, and how products store values.

Sources: Sentinel-2 from the mission's spectral response functions (ESA, COPE-GSEG-EOPG-TN-15-0007,
Sentinel-2A) and its product specification; Landsat from the USGS data users' handbooks (centre and width from
the published band edges for TM and ETM+) and the Collection 2 scale factors; Gaofen and PlanetScope (PS2)
from their operators' specifications; `generic` from the settings that SpectralMoE was published with, and
round numbers for other bands. Aerial cameras have the broad bands of digital mapping cameras, rounded.
For imaging spectrometers, see the comments at their tables.

The wavelengths of imaging spectrometers differ by some nanometres between instruments, dates and processors:
where a file states its own, those are better (`data_pipelines.readers.raster_header`).

Sentinel-2 products of processing baseline 04.00 and later (from 25 January 2022) store 1000 more than `scale`
and `offset` give here, and their files do not state it. Mixing both kinds shifts reflectance by 0.1 (ESA,
Sentinel-2 Products Specification Document, RADIO_ADD_OFFSET).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RGB = ("red", "green", "blue")
_NM_PER_UM = 1000.0


class Band(NamedTuple):
    """A spectral band.

    Attributes:
      name: name as in files of the sensor.
      centre: wavelength in micrometres.
      width: full width at half maximum in micrometres.
      aliases: other names of the band.
    """

    name: str
    centre: float
    width: float
    aliases: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sensor:
    """A sensor, and how its products commonly store values.

    Attributes:
      name: name as in `config.sensor`.
      bands: bands in the order of its files.
      rgb: bands to show as red, green and blue, to give to a depth encoder, and to distort as colours.
      scale: reflectance per stored unit, reflectance = scale * value + offset; None where products differ or
        hold no reflectance. Models get pixels as stored; `spectralmoe data` uses scale and offset to find
        statistics that cannot be reflectance.
      offset: reflectance of the stored value 0.
      nodata: value of pixels without data where a file states none; None if there is no convention.
      dtype: NumPy name of the type that values are commonly stored in; None if there is no convention.
        `spectralmoe data` reports files in another type, for which scale and offset do not hold.
      resolution: metres on the ground along a pixel's edge in common products; None if they differ.
      nominal: the wavelengths are nominal ones, which the instruments keep only roughly; those that a file
        states are used instead.
    """

    name: str
    bands: tuple[Band, ...]
    rgb: tuple[str, str, str]
    scale: float | None = None
    offset: float = 0.0
    nodata: float | None = None
    dtype: str | None = None
    resolution: float | None = None
    nominal: bool = False

    def known_as(self) -> dict[str, str]:
        """Return the name of the band by each of its names and aliases, in lower case."""
        return {name.lower(): band.name for band in self.bands for name in (band.name, *band.aliases)}

    def named(self, name: str) -> Band | None:
        """Return the band with this name or alias, in any case, or None."""
        own = self.known_as().get(name.lower())
        return next((band for band in self.bands if band.name == own), None)


def numbered(centres: Sequence[float], widths: Sequence[float]) -> tuple[Band, ...]:
    """Return bands "band 1", "band 2", ... (also B1, B2, ...) from centres and widths in nanometres."""
    return tuple(
        Band(f"band {number}", centre / _NM_PER_UM, width / _NM_PER_UM, (f"B{number}",))
        for number, (centre, width) in enumerate(zip(centres, widths, strict=True), 1)
    )


def _even(start: float, stop: float, count: int) -> list[float]:
    """Return evenly spaced wavelengths in nanometres."""
    return np.linspace(start, stop, count).round(1).tolist()


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
    resolution=10.0,
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
    resolution=30.0,
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
    resolution=30.0,
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
    resolution=30.0,
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
    resolution=3.0,
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

# Centres in nm of the 32 bands that WHU-OHS keeps; 2.5 nm is the stated spectral resolution of Orbita.
_OHS_CENTRES = (
    466, 480, 500, 520, 536, 550, 566, 580, 596, 610, 626, 640, 656, 670, 686, 700,
    716, 730, 746, 760, 776, 790, 806, 820, 836, 850, 866, 880, 896, 910, 926, 940,
)  # fmt: skip
ORBITA_OHS = Sensor(
    "orbita_ohs",
    numbered(_OHS_CENTRES, (2.5,) * 32),
    ("band 14", "band 7", "band 2"),
    scale=1e-4,
    dtype="int16",
)

# Centre and full width at half maximum in nm, from the tags of the mission's L2A products. The ranges of the
# two spectrometers overlap: from band 92 on, wavelengths start again.
_ENMAP = (
    (418.2, 7.0), (423.9, 6.7), (429.3, 6.4), (434.5, 6.3), (439.6, 6.1), (444.5, 6.1), (449.4, 6.0),
    (454.2, 6.0), (458.9, 6.0), (463.6, 5.9), (468.3, 5.9), (472.9, 5.9), (477.6, 5.8), (482.3, 5.8),
    (486.9, 5.8), (491.6, 5.8), (496.3, 5.8), (501.1, 5.8), (505.9, 5.9), (510.7, 5.9), (515.5, 6.0),
    (520.4, 6.0), (525.3, 6.1), (530.3, 6.1), (535.3, 6.2), (540.3, 6.2), (545.4, 6.3), (550.5, 6.4),
    (555.7, 6.4), (560.9, 6.5), (566.2, 6.5), (571.6, 6.6), (577.0, 6.6), (582.5, 6.7), (588.0, 6.8),
    (593.6, 6.8), (599.3, 6.9), (605.0, 6.9), (610.8, 7.0), (616.7, 7.1), (622.7, 7.2), (628.8, 7.3),
    (634.9, 7.3), (641.1, 7.4), (647.3, 7.5), (653.6, 7.5), (660.0, 7.6), (666.4, 7.7), (672.9, 7.8),
    (679.5, 7.8), (686.1, 7.9), (692.8, 8.0), (699.6, 8.0), (706.4, 8.1), (713.3, 8.2), (720.3, 8.3),
    (727.3, 8.4), (734.4, 8.5), (741.6, 8.6), (748.8, 8.6), (756.1, 8.7), (763.5, 8.8), (770.9, 8.9),
    (778.3, 9.0), (785.8, 9.0), (793.4, 9.1), (801.0, 9.2), (808.7, 9.2), (816.4, 9.3), (824.1, 9.4),
    (831.9, 9.4), (839.7, 9.5), (847.6, 9.6), (855.5, 9.7), (863.5, 9.7), (871.4, 9.8), (879.4, 9.9),
    (887.5, 10.0), (895.5, 10.1), (903.6, 10.2), (911.7, 10.3), (919.8, 10.3), (928.0, 10.4), (936.1, 10.5),
    (944.2, 10.6), (952.4, 10.7), (960.5, 10.7), (968.6, 10.8), (976.8, 10.8), (984.9, 10.7), (993.1, 10.6),
    (902.3, 9.2), (911.9, 9.3), (921.6, 9.5), (931.5, 9.6), (941.5, 9.7), (951.7, 9.8), (961.9, 9.9),
    (972.3, 10.1), (982.9, 10.2), (993.5, 10.3), (1004.2, 10.4), (1015.0, 10.5), (1026.0, 10.6),
    (1037.0, 10.7), (1048.2, 10.8), (1059.4, 10.9), (1070.7, 10.9), (1082.1, 11.0), (1093.6, 11.1),
    (1105.2, 11.1), (1116.8, 11.2), (1128.5, 11.2), (1140.2, 11.3), (1152.0, 11.3), (1163.8, 11.3),
    (1175.7, 11.4), (1187.6, 11.4), (1199.5, 11.4), (1211.4, 11.4), (1223.4, 11.4), (1235.3, 11.4),
    (1247.3, 11.4), (1259.3, 11.4), (1271.3, 11.4), (1283.3, 11.4), (1295.3, 11.4), (1307.3, 11.4),
    (1319.2, 11.4), (1331.2, 11.4), (1343.2, 11.4), (1355.1, 11.3), (1367.1, 11.3), (1379.0, 11.3),
    (1390.8, 11.3), (1461.5, 11.1), (1473.1, 11.1), (1484.7, 11.0), (1496.2, 11.0), (1507.8, 10.9),
    (1519.2, 10.9), (1530.6, 10.9), (1542.0, 10.8), (1553.4, 10.8), (1564.7, 10.7), (1575.9, 10.7),
    (1587.1, 10.6), (1598.3, 10.6), (1609.4, 10.6), (1620.4, 10.5), (1631.4, 10.5), (1642.4, 10.4),
    (1653.3, 10.4), (1664.2, 10.3), (1675.0, 10.3), (1685.8, 10.2), (1696.5, 10.2), (1707.2, 10.1),
    (1717.8, 10.1), (1728.4, 10.1), (1738.9, 10.0), (1749.4, 10.0), (1759.8, 9.9), (1939.4, 9.2),
    (1949.0, 9.1), (1958.5, 9.1), (1968.0, 9.0), (1977.4, 9.0), (1986.7, 9.0), (1996.1, 8.9), (2005.4, 8.9),
    (2014.6, 8.9), (2023.8, 8.8), (2033.0, 8.8), (2042.1, 8.7), (2051.2, 8.7), (2060.2, 8.7), (2069.2, 8.6),
    (2078.2, 8.6), (2087.1, 8.6), (2096.0, 8.5), (2104.9, 8.5), (2113.7, 8.4), (2122.4, 8.4), (2131.2, 8.4),
    (2139.9, 8.3), (2148.5, 8.3), (2157.2, 8.3), (2165.7, 8.2), (2174.3, 8.2), (2182.8, 8.2), (2191.3, 8.1),
    (2199.7, 8.1), (2208.1, 8.1), (2216.5, 8.0), (2224.8, 8.0), (2233.1, 8.0), (2241.4, 7.9), (2249.7, 7.9),
    (2257.9, 7.9), (2266.0, 7.8), (2274.2, 7.8), (2282.3, 7.8), (2290.4, 7.8), (2298.4, 7.7), (2306.4, 7.7),
    (2314.4, 7.7), (2322.4, 7.6), (2330.3, 7.6), (2338.2, 7.6), (2346.1, 7.6), (2353.9, 7.5), (2361.7, 7.5),
    (2369.4, 7.5), (2377.2, 7.4), (2384.9, 7.4), (2392.6, 7.4), (2400.2, 7.4), (2407.8, 7.3), (2415.4, 7.3),
    (2423.0, 7.3), (2430.6, 7.2), (2438.1, 7.2), (2445.5, 7.2),
)  # fmt: skip
ENMAP = Sensor(
    "enmap",
    numbered(*zip(*_ENMAP, strict=True)),
    ("band 47", "band 28", "band 14"),
    scale=1e-4,
    nodata=-32768.0,
    dtype="int16",
    resolution=30.0,
)

# Nominal: 66 bands of the VNIR and 173 of the SWIR instrument (Italian Space Agency, PRISMA product
# specification), evenly spaced; every product states its own.
PRISMA = Sensor(
    "prisma",
    numbered(_even(400, 1010, 66) + _even(920, 2505, 173), (12.0,) * 239),
    ("band 29", "band 18", "band 11"),
    dtype="uint16",
    resolution=30.0,
    nominal=True,
)

# Nominal: 224 bands from 366 to 2496 nm, 10 nm wide (JPL, AVIRIS instrument description).
AVIRIS = Sensor(
    "aviris",
    numbered(_even(366, 2496, 224), (10.0,) * 224),
    ("band 32", "band 21", "band 14"),
    scale=1e-4,
    nodata=-9999.0,
    dtype="int16",
    nominal=True,
)
