"""Published pixel statistics that `config.model.pixel_statistics` names.

All are those of Sentinel-2 products in digital numbers, reflectance x 10000, without the 1000 that files of
processing baseline 04.00 and later (from 25 January 2022) add: subtract it from such files first.

Sources: SoftCon (arXiv 2405.20462) maps the window of two deviations on either side of the mean to 0..1,
with statistics of SSL4EO-S12, for Level-1C and for Level-2A products. Copernicus-FM (arXiv 2503.11849)
subtracts the mean and divides by the deviation: of its pretraining images, or of the images of its benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from spectralmoe_jax.config.presets import SENTINEL2_BANDS
from spectralmoe_jax.errors import UserError


class PixelStatistics(NamedTuple):
    """Mean and deviation of bands, as a model normalises with them.

    Attributes:
      mean: one value for each band, in raw pixel units.
      std: likewise.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


Table = dict[str, tuple[float, float]]
"""Value that becomes 0, and width of what becomes 1, by the band's name."""


def _table(mean: str, std: str, bands: Sequence[str] = SENTINEL2_BANDS) -> Table:
    """Return the mean and deviation of each band."""
    numbers = ([float(number) for number in text.split()] for text in (mean, std))
    return {band: (centre, width) for band, centre, width in zip(bands, *numbers, strict=True)}


def _window(table: Table) -> Table:
    """Return lower end and width of the window of two deviations on either side of the mean."""
    return {band: (mean - 2 * std, 4 * std) for band, (mean, std) in table.items()}


_LEVEL_2A = tuple(band for band in SENTINEL2_BANDS if band != "B10")

STATISTICS: dict[str, Table] = {
    "softcon": _window(
        _table(
            """1605.57504906 1390.78157673 1314.8729939 1363.52445545 1549.44374991 2091.74883118
            2371.7172463 2299.90463006 2560.29504086 830.06605044 22.10351321 2177.07172323 1524.06546312""",
            """786.78685367 850.34818441 875.06484736 1138.84957046 1122.17775652 1161.59187054
            1274.39184232 1248.42891965 1345.52684884 577.31607053 51.15431158 1336.09932639
            1136.53823676""",
        )
    ),
    "softcon_l2a": _window(
        _table(
            """752.40087073 884.29673756 1144.16202635 1297.47289228 1624.90992062 2194.6423161
            2422.21248945 2517.76053101 2581.64687018 2645.51888987 2368.51236873 1805.06846033""",
            """1108.02887453 1155.15170768 1183.6292542 1368.11351514 1370.265037 1355.55390699
            1416.51487101 1474.78900051 1439.3086061 1582.28010962 1455.52084939 1343.48379601""",
            _LEVEL_2A,
        )
    ),
    "copernicus_fm": _table(
        "1612.9 1397.6 1322.3 1373.1 1561.0 2108.4 2390.7 2318.7 2581.0 837.7 22.0 2195.2 1537.4",
        "791.0 854.3 878.7 1144.9 1127.5 1164.2 1276.0 1249.5 1345.9 577.5 47.5 1340.0 1142.9",
    ),
    "copernicus_bench": _table(
        "1353.7 1117.2 1041.8 946.5 1199.1 2003.0 2374.0 2301.2 2599.7 732.1 12.1 1820.6 1118.2",
        "897.3 736.0 684.8 620.0 791.9 1341.3 1595.4 1545.5 1750.1 475.1 98.3 1216.5 736.7",
    ),
}
"""The statistics by name. Bands have the names of `SENTINEL2_BANDS`."""


def published_statistics(name: str, bands: Sequence[str]) -> PixelStatistics:
    """Return published statistics of some bands.

    Args:
      name: one of `STATISTICS`.
      bands: their names as in `SENTINEL2_BANDS`.

    Raises:
      UserError: the statistics do not have a band; names it.
    """
    table = STATISTICS[name]
    for band in bands:
        if band not in table:
            raise UserError(
                f"config.model.pixel_statistics = {name!r}: has no statistics of the band {band}, only of "
                f"{', '.join(table)}: give config.model.pixel_mean and pixel_std, or other bands"
            )
    mean, std = zip(*(table[band] for band in bands), strict=True)
    return PixelStatistics(mean, std)
