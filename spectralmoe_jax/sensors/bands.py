"""What is known of a sensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Band(NamedTuple):
    """name: as in files of the sensor. centre, width: micrometres. aliases: other names of the same band."""

    name: str
    centre: float
    width: float
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sensor:
    """A sensor and how its products are commonly stored.

    Attributes:
      name: as in `config.sensor`.
      bands: in the order of its files.
      rgb: the bands to show as red, green and blue, to give to a depth encoder, and to distort as colours.
      scale, offset: reflectance = scale * stored value + offset; scale None where products differ or are no
        reflectance. Pixels reach models as stored; by these, `spectralmoe data` tells of statistics that
        are no reflectance.
      nodata: value of pixels without data where a file does not say; None where there is no convention.
      dtype: NumPy's name of the type that values are commonly stored in; None where there is no convention.
        `spectralmoe data` tells of files in another one: scale and offset then do not hold for them.
      nominal: whether the wavelengths are those of a grid that the instruments keep to only roughly, so that
        a file's own are to be used where it states them.
    """

    name: str
    bands: tuple[Band, ...]
    rgb: tuple[str, str, str]
    scale: float | None = None
    offset: float = 0.0
    nodata: float | None = None
    dtype: str | None = None
    nominal: bool = False

    def known_as(self) -> dict[str, str]:
        """The band's name by each of its names and aliases, in lower case."""
        return {name.lower(): band.name for band in self.bands for name in (band.name, *band.aliases)}

    def named(self, name: str) -> Band | None:
        """The band of a name or alias in any case, or None."""
        own = self.known_as().get(name.lower())
        return next((band for band in self.bands if band.name == own), None)
