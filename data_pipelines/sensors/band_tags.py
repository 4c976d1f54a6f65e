"""Wavelengths that stand in the band tags of a raster, as hyperspectral products and ENVI carry them."""

import os
from typing import Any

import rasterio
from rasterio.errors import RasterioError

from data_pipelines.sensors.identity import PLATFORM_TAGS
from spectralmoe_jax.errors import UserError

_PER_MICROMETRE = {"micrometers": 1.0, "micrometer": 1.0, "um": 1.0, "µm": 1.0,
                   "nanometers": 1000.0, "nanometer": 1000.0, "nm": 1000.0}  # fmt: skip
_REMEDY = "give config.model.visual.wavelengths in micrometres"


def wavelengths_of_file(path: str | os.PathLike[str]) -> tuple[float, ...]:
    """The centre of every band in micrometres, as `stated_wavelengths`.

    Raises UserError where the file cannot be read, or naming the band without a usable wavelength.
    """
    stated = stated_wavelengths(path)
    for number, centre in enumerate(stated, 1):
        if centre is None:
            raise UserError(f"{path}: band {number} has no tag `wavelength`: {_REMEDY}")
    return tuple(centre for centre in stated if centre is not None)


def stated_wavelengths(path: str | os.PathLike[str]) -> tuple[float | None, ...]:
    """The centre of each band in micrometres, None for one whose tags state none.

    Read are the tags `wavelength` and `wavelength_units`, and GDAL's `CENTRAL_WAVELENGTH_UM` in the domain
    IMAGERY. A file without units is taken to be in nanometres where its numbers are above 100.

    Raises UserError where the file cannot be read, or naming the band whose wavelength is no positive number.
    """
    try:
        with rasterio.open(path) as dataset:
            tags = [band_tags(dataset, band) for band in dataset.indexes]
    except RasterioError as problem:
        raise UserError(f"{path}: cannot be opened as an image ({problem})") from None
    return tuple(_micrometres(f"{path}: band {number}", tag) for number, tag in enumerate(tags, 1))


def stated_platforms(dataset: Any) -> tuple[str, ...]:
    """What the tags of an open file say took it: values such as "LANDSAT_8"."""
    return tuple(value for key, value in dataset.tags().items() if key.lower() in PLATFORM_TAGS)


def states_wavelengths(dataset: Any) -> bool:
    """Whether the tags of any band of an open file state its wavelength."""
    return any("wavelength" in band_tags(dataset, band) for band in dataset.indexes)


def band_tags(dataset: Any, band: int) -> dict[str, str]:
    """Tags of a band of an open file, by name in lower case; GDAL's own wavelength as if in these."""
    tags = {key.lower(): value for key, value in dataset.tags(band).items()}
    known = dataset.tags(band, ns="IMAGERY").get("CENTRAL_WAVELENGTH_UM")
    return tags if known is None else {**tags, "wavelength": known, "wavelength_units": "um"}


def _micrometres(place: str, tags: dict[str, str]) -> float | None:
    if "wavelength" not in tags:
        return None
    try:
        value = float(tags["wavelength"])
    except ValueError:
        raise UserError(f"{place} has the wavelength {tags['wavelength']!r}, no number: {_REMEDY}") from None
    if not 0 < value < float("inf"):
        raise UserError(f"{place} has the wavelength {value}, not a positive number: {_REMEDY}")
    units = tags.get("wavelength_units", "nm" if value > 100 else "um").lower()
    if units not in _PER_MICROMETRE:
        raise UserError(f"{place} has its wavelength in {units!r}: {_REMEDY}")
    return value / _PER_MICROMETRE[units]
