"""Metadata of a raster file, read without decoding a pixel: size, bands, tags, wavelengths, completeness."""

from __future__ import annotations

import dataclasses
import logging
import mmap
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError

from data_pipelines.readers.address import Address
from data_pipelines.readers.raster_file import no_pixels, open_as_stored, open_image
from data_pipelines.readers.unreadable import unreadable
from data_pipelines.readers.validity import states_missing
from spectralmoe_jax.errors import UserError

log = logging.getLogger(__name__)
_several: set[str] = set()  # files of several rasters, for which a warning was logged
_RANDOM_ACCESS = ("GTiff", "COG", "VRT", "HDF4Image", "netCDF", "Zarr", "ENVI", "EHdr", "HFA")  # GDAL drivers
_PLATFORM_TAGS = frozenset(
    (
        "spacecraft_id",
        "spacecraft",
        "spacecraft_name",
        "satellite",
        "platform",
        "mission",
        "instrument",
        "sensor",
        "sensor_id",
        "sensor_name",
    )
)
_PER_MICROMETRE = {
    "micrometers": 1.0,
    "micrometer": 1.0,
    "um": 1.0,
    "µm": 1.0,
    "nanometers": 1000.0,
    "nanometer": 1000.0,
    "nm": 1000.0,
}
_DATE_TAGS = (
    "acquisitiondatetime", "acquisition_date", "acquisition_datetime", "acquisition_time", "date_acquired",
    "sensing_time", "datatake_sensing_start", "product_start_time", "start_time", "datetime",
)  # fmt: skip
_LISTED = 20  # names of rasters in a message
_DATE = re.compile(r"\s*(19|20)\d\d[-:/.]?(?P<month>\d\d)[-:/.]?\d\d")
_REMEDY = "give config.model.visual.{key}s in micrometres"
_IMAGERY = {"wavelength": "CENTRAL_WAVELENGTH_UM", "fwhm": "FWHM_UM"}  # GDAL's own items, in micrometres
_JPEG, _JPEG_END, _SCAN = b"\xff\xd8\xff", b"\xff\xd9", 0xDA
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class Header:
    """Header of an image file.

    Attributes:
      height: in pixels.
      width: in pixels.
      count: number of bands.
      dtype: the type that holds the values of all bands.
      dtypes: the type of each band, by rasterio's name.
      descriptions: names of the bands, None for a band without.
      colours: colour interpretation of the bands: "red", "gray", "undefined", ...
      has_nodata: pixels can be missing, by a nodata value or a mask in the file.
      random_access: a window is read without decoding everything before it.
      crs: coordinate reference system, or None.
      transform: affine transform from pixels to coordinates; the identity without georeference.
      states_wavelengths: the tags of at least one band state its wavelength.
      platforms: values of the tags that name a satellite or sensor.
      scales: scale that the file states for each band, 1 for none.
      offsets: offset that it states for each band, 0 for none.
      lossy: it is compressed by a method that changes values, such as JPEG.
      month: month of the acquisition, 1 to 12; None if no tag states its date.
    """

    height: int
    width: int
    count: int
    dtype: np.dtype
    dtypes: tuple[str, ...]
    descriptions: tuple[str | None, ...]
    colours: tuple[str, ...]
    has_nodata: bool
    random_access: bool
    crs: Any
    transform: Any
    states_wavelengths: bool
    platforms: tuple[str, ...]
    month: int | None
    scales: tuple[float, ...] = ()
    offsets: tuple[float, ...] = ()
    lossy: bool = False

    @property
    def resolution(self) -> float | None:
        """Metres on the ground along a pixel's edge; None without a projected coordinate system."""
        if self.crs is None or not self.crs.is_projected:
            return None
        factor = self.crs.linear_units_factor[1]  # metres in a unit
        return float(np.sqrt(abs(self.transform.determinant))) * factor

    def with_type_of(self, channels: Sequence[int]) -> Header:
        """Return this header with the type that holds the values of some bands, by their positions."""
        return dataclasses.replace(self, dtype=_common_type(self.dtypes[channel] for channel in channels))


def read_header(path: Path) -> Header:
    """Read the header of an image file.

    Raises:
      UnreadableFile: the file cannot be opened as an image, or has no pixels.
    """
    with open_image(path) as dataset:
        require_one_raster(dataset, str(path), "write their bands to one GeoTIFF")
        if not dataset.width or not dataset.height or not dataset.count:
            raise no_pixels(path)
        return Header(
            height=dataset.height,
            width=dataset.width,
            count=dataset.count,
            dtype=_common_type(dataset.dtypes),
            dtypes=tuple(dataset.dtypes),
            descriptions=dataset.descriptions,
            colours=colours_of(dataset),
            has_nodata=states_missing(dataset),
            random_access=dataset.driver in _RANDOM_ACCESS,
            crs=dataset.crs,
            transform=dataset.transform,
            states_wavelengths=any("wavelength" in band_tags(dataset, band) for band in dataset.indexes),
            platforms=stated_platforms(dataset),
            month=stated_month(dataset),
            scales=dataset.scales,
            offsets=dataset.offsets,
            lossy=_is_lossy(dataset),
        )


def _is_lossy(dataset: Any) -> bool:
    """Return whether an open file says that its compression changes values."""
    stated = dataset.tags(ns="IMAGE_STRUCTURE")
    if stated.get("COMPRESSION_REVERSIBILITY", "").startswith("LOSSY"):
        return True
    return dataset.driver == "JPEG" or stated.get("COMPRESSION") in ("JPEG", "YCbCr JPEG")


def require_one_raster(dataset: Any, name: str, remedy: str) -> None:
    """Refuse an open file that only holds other rasters, and warn of one that holds more than is read.

    Raises:
      UserError: lists the names of the rasters.
    """
    names = dataset.subdatasets
    if not names:
        return
    listed = ", ".join(names[:_LISTED]) + (
        f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    )
    if not dataset.count:
        raise UserError(
            f"{name}: holds {len(names)} rasters, and no bands of its own: {remedy}; they are {listed}"
        )
    if len(names) > 1 and name not in _several:
        _several.add(name)
        log.warning("%s: holds %d rasters, of which the first is read: %s", name, len(names), listed)


def colours_of(dataset: Any) -> tuple[str, ...]:
    """Return the colour interpretation of the bands of an open file: "red", "gray", "palette", ...

    A colour table of greys in their order, as grey BMP files have, counts as no table.
    """
    names = [colour.name for colour in dataset.colorinterp]
    for place, name in enumerate(names):
        if name == "palette" and all(
            colour[:3] == (value,) * 3 for value, colour in dataset.colormap(place + 1).items()
        ):
            names[place] = "gray"
    return tuple(names)


def _common_type(dtypes: Iterable[str]) -> np.dtype:
    """Return the type that holds the values of all bands; `complex_int16` is no name of NumPy's."""
    return np.result_type(*(("complex64" if name.startswith("complex") else name) for name in dtypes))


def stated_platforms(dataset: Any) -> tuple[str, ...]:
    """Return the values of an open file's tags that name a satellite or sensor, such as "LANDSAT_8"."""
    return tuple(value for key, value in dataset.tags().items() if key.lower() in _PLATFORM_TAGS)


def stated_scaling(
    scales: Sequence[float], offsets: Sequence[float], bands: Sequence[int]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the scales and offsets of some bands, from 0; two empty tuples where none is stated."""
    found = tuple(scales[band] for band in bands), tuple(offsets[band] for band in bands)
    return ((), ()) if set(found[0]) <= {1.0} and set(found[1]) <= {0.0} else found


def stated_month(dataset: Any) -> int | None:
    """Return the month in an open file's tags of the acquisition, 1 to 12; None if there is none.

    TIFF's own date is left out, since it is that of writing.
    """
    tags = {key.lower(): value for key, value in dataset.tags().items()}
    tags |= {key.lower(): value for key, value in dataset.tags(ns="IMAGERY").items()}
    for key in _DATE_TAGS:
        found = _DATE.match(tags.get(key, ""))
        if found and 1 <= int(found["month"]) <= 12:
            return int(found["month"])
    return None


def wavelengths_of_file(path: str | os.PathLike[str]) -> tuple[float, ...]:
    """Return the centre of every band in micrometres, as `stated_wavelengths` reads it.

    Raises:
      UserError: the file cannot be read, or a band has no usable wavelength.
    """
    stated = stated_wavelengths(path)
    for number, centre in enumerate(stated, 1):
        if centre is None:
            remedy = _REMEDY.format(key="wavelength")
            raise UserError(f"{path}: band {number} has no tag `wavelength`: {remedy}")
    return tuple(centre for centre in stated if centre is not None)


def stated_wavelengths(path: str | os.PathLike[str]) -> tuple[float | None, ...]:
    """Read the wavelengths in a file's band tags, as hyperspectral products and ENVI files have them.

    The tags are `wavelength` and `wavelength_units`, or GDAL's `CENTRAL_WAVELENGTH_UM` in the domain IMAGERY.
    Numbers above 100 without units are nanometres, others micrometres.

    Returns:
      The centre of each band in micrometres; None for a band whose tags state none.

    Raises:
      UserError: the file cannot be read, or a wavelength is not a positive number.
    """
    return _stated(path, "wavelength", "wavelength")


def stated_bandwidths(path: str | os.PathLike[str]) -> tuple[float | None, ...]:
    """Read the full widths at half maximum in a file's band tags, in micrometres, as `stated_wavelengths`.

    The tag is `fwhm`, in the units of the wavelength, or GDAL's `FWHM_UM` in the domain IMAGERY.
    """
    return _stated(path, "fwhm", "bandwidth")


def _stated(path: str | os.PathLike[str], tag: str, what: str) -> tuple[float | None, ...]:
    """Read a tag of every band that holds a length, in micrometres."""
    try:
        with open_as_stored(os.fspath(path)) as dataset:
            tags = [band_tags(dataset, band) for band in dataset.indexes]
    except RasterioError as problem:
        raise UserError(f"{path}: cannot be opened as an image ({problem})") from None
    return tuple(_micrometres(f"{path}: band {number}", own, tag, what) for number, own in enumerate(tags, 1))


def band_tags(dataset: Any, band: int) -> dict[str, str]:
    """Return the tags of a band by name in lower case, GDAL's own lengths as `wavelength` and `fwhm`.

    Args:
      dataset: an open file.
      band: number of the band, from 1.
    """
    tags = {key.lower(): value for key, value in dataset.tags(band).items()}
    known = dataset.tags(band, ns="IMAGERY")
    for name, item in _IMAGERY.items():
        if item in known:
            tags |= {name: known[item], f"{name}_units": "um"}
    return tags


def _micrometres(place: str, tags: dict[str, str], tag: str, what: str) -> float | None:
    """Return the length in a tag; without units of its own it has those of the wavelength."""
    if tag not in tags:
        return None
    remedy = _REMEDY.format(key=what)
    try:
        value, centre = float(tags[tag]), float(tags.get("wavelength", tags[tag]))
    except ValueError:
        raise UserError(f"{place} has the {what} {tags[tag]!r}, no number: {remedy}") from None
    if not 0 < value < float("inf"):
        raise UserError(f"{place} has the {what} {value}, not a positive number: {remedy}")
    guess = tags.get("wavelength_units", "nm" if centre > 100 else "um")
    units = tags.get(f"{tag}_units", guess).lower()
    if units not in _PER_MICROMETRE:
        raise UserError(f"{place} has its {what} in {units!r}: {remedy}")
    return value / _PER_MICROMETRE[units]


def require_complete(paths: Iterable[Path]) -> None:
    """Check that JPEG, PNG and TIFF files reach their end; files of other formats pass.

    Only truncation is found here. Damage inside a file of full length is found when it is decoded.

    Raises:
      UnreadableFile: the first truncated file, with the same message as on reading it.
    """
    paths = list(paths)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for path, reason in zip(paths, pool.map(find_truncation, paths), strict=True):
            if reason:
                raise unreadable(path, reason)


def find_truncation(path: Path) -> str:
    """Return what a JPEG, PNG or TIFF file lacks, in words, or ""; addresses are not looked at."""
    if isinstance(path, Address):
        return ""
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(_TIFF):
            return _missing_of_tiff(path)
        if not start.startswith((_JPEG, _PNG)):
            return ""
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if start.startswith(_PNG):
                return "" if content.rfind(_PNG_END) >= 0 else "no IEND chunk at its end"
            # From the first scan on: a thumbnail in the header has an end marker of its own.
            scan = _first_scan(content)
            return "" if 0 < scan <= content.rfind(_JPEG_END) else "no end-of-image marker"


def _first_scan(content: mmap.mmap) -> int:
    """Return the position of the first scan of a JPEG, or -1 if its header ends before one."""
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        if content[place + 1] == _SCAN:
            return place
        # a marker may be preceded by any number of fill bytes
        fill = content[place + 1] == 0xFF
        place += 1 if fill else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return -1


def _missing_of_tiff(path: Path) -> str:
    """Compare the end of the last block of every band with the length of the file."""
    length = path.stat().st_size
    with open_image(path) as opened:
        dataset = getattr(opened, "stored", opened)
        ends = [_end_of_last_block(dataset, band) for band in dataset.indexes]
    missing = max(ends, default=0) - length
    return f"{missing} bytes short" if missing > 0 else ""


def _end_of_last_block(dataset: rasterio.DatasetReader, band: int) -> int:
    """Return the end of a band's last strip or tile in the file; 0 if it is not stored (sparse files)."""
    height, width = dataset.block_shapes[band - 1]
    block = f"{(dataset.width - 1) // width}_{(dataset.height - 1) // height}"
    offset, size = (
        dataset.get_tag_item(f"BLOCK_{what}_{block}", "TIFF", bidx=band) for what in ("OFFSET", "SIZE")
    )
    return int(offset or 0) + int(size or 0)
