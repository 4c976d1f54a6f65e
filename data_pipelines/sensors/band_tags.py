"""Wavelengths that stand in the band tags of a raster, as hyperspectral products and ENVI carry them."""

import os

import rasterio
from rasterio.errors import RasterioError

from spectralmoe_jax.errors import UserError

_PER_MICROMETRE = {"micrometers": 1.0, "micrometer": 1.0, "um": 1.0, "µm": 1.0,
                   "nanometers": 1000.0, "nanometer": 1000.0, "nm": 1000.0}  # fmt: skip


def wavelengths_of_file(path: str | os.PathLike[str]) -> tuple[float, ...]:
    """The centre of every band in micrometres, from the tags `wavelength` and `wavelength_units`.

    A file without units is taken to be in nanometres where its numbers are above 100.

    Raises UserError where the file cannot be read, or naming the band without a usable wavelength.
    """
    try:
        with rasterio.open(path) as dataset:
            tags = [dataset.tags(band) for band in dataset.indexes]
    except RasterioError as problem:
        raise UserError(f"{path}: cannot be opened as an image ({problem})") from None
    return tuple(_micrometres(f"{path}: band {number}", tag) for number, tag in enumerate(tags, 1))


def _micrometres(place: str, tags: dict[str, str]) -> float:
    lower = {key.lower(): value for key, value in tags.items()}
    remedy = "give config.model.visual.wavelengths in micrometres"
    if "wavelength" not in lower:
        raise UserError(f"{place} has no tag `wavelength`: {remedy}")
    try:
        value = float(lower["wavelength"])
    except ValueError:
        raise UserError(f"{place} has the wavelength {lower['wavelength']!r}, no number: {remedy}") from None
    units = lower.get("wavelength_units", "nm" if value > 100 else "um").lower()
    if units not in _PER_MICROMETRE:
        raise UserError(f"{place} has its wavelength in {units!r}: {remedy}")
    return value / _PER_MICROMETRE[units]
