"""Rasters that read nothing but themselves, unless the user's own names say so.

Only formats that hold their pixels are opened, and virtual rasters (VRT) whose names end in .vrt; see
`virtual_raster` for what these may read. Overviews and masks beside a raster are GeoTIFFs. Nothing in
a file leads to the network.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rasterio
from rasterio.env import ensure_env_with_credentials
from rasterio.errors import RasterioError

from data_pipelines.readers.address import is_remote
from data_pipelines.readers.declared_size import check_declared_size
from data_pipelines.readers.unreadable import UnreadableFile
from data_pipelines.readers.virtual_raster import (
    FOLDERS,
    TIFF,
    check_virtual_raster,
    has_driver,
    is_description,
    shown,
    start_of,
)
from spectralmoe_jax.errors import UserError

DRIVERS = (
    "GTiff", "PNG", "JPEG", "JP2OpenJPEG", "JP2KAK", "JP2ECW", "JP2MrSID", "HFA", "ENVI", "EHdr", "netCDF",
    "HDF5", "HDF5Image", "HDF4", "HDF4Image", "BAG", "GRIB", "GIF", "BIGGIF", "BMP", "WEBP", "PNM", "JPEGXL",
    "AVIF", "HEIF", "AAIGrid", "GRASSASCIIGrid", "GSAG", "GSBG", "GS7BG", "SRTMHGT", "DTED", "USGSDEM",
    "NITF", "RMF", "SAGA", "SGI", "TGA", "GPKG", "MBTiles", "KEA",
)  # fmt: skip
"""GDAL's formats whose files hold their pixels, or have them in a file of the same name beside them."""

_VIRTUAL = ".vrt"
_ZIP = b"PK\3\4"
_SIDE_FILES = (".ovr", ".msk")
_MOST_CHECKED = 10_000  # files whose check is remembered

_lock = threading.Lock()
_checked: set[tuple[Any, ...]] = set()  # files that were checked, each with its state
_listed: dict[str, tuple[int, frozenset[str]]] = {}  # side files by folder, with the time of its last change
_ours: set[str] = set()  # virtual rasters that this process wrote


@contextmanager
def virtual_raster_of_ours(path: str) -> Iterator[None]:
    """Let a virtual raster that this process wrote name any files inside the block."""
    _ours.add(path)
    try:
        yield
    finally:
        _ours.discard(path)


def open_sealed(name: str, driver: str | None = None) -> rasterio.DatasetReader:
    """Open a raster that reads nothing but itself.

    Args:
      name: a file, or another name that GDAL opens.
      driver: GDAL's driver that may open it; None for `DRIVERS`.

    Raises:
      UserError: it would read other files, or describes others in a way that is not read.
      RasterioError: it cannot be opened.
    """
    is_virtual = driver is None and name.lower().endswith(_VIRTUAL) and not is_remote(name)
    if is_virtual and name not in _ours and os.path.isfile(name) and _is_new(name):
        check_virtual_raster(Path(name), lambda source: open_sealed(source).close())
        _remember(name)
    try:
        dataset = _open(name, _drivers(name, driver, is_virtual))
    except RasterioError as error:
        if driver is None and not is_virtual:
            _explain(name, error)
        raise
    try:
        _check_side_files(dataset, name)
        if not is_virtual:
            check_declared_size(dataset, name)
    except BaseException:
        dataset.close()
        raise
    return dataset


@ensure_env_with_credentials
def _open(name: str, drivers: list[str]) -> rasterio.DatasetReader:
    """Open a raster with any of some drivers; `rasterio.open` takes a single one."""
    return rasterio.DatasetReader(name, driver=drivers)


def _drivers(name: str, driver: str | None, is_virtual: bool) -> list[str]:
    """Return GDAL's drivers that may open a file."""
    if is_virtual:
        return ["VRT"]
    if driver is not None:
        return [driver]
    # a Zarr array is a folder; as a file, it is a list of other files
    is_zarr = name.startswith("ZARR:") or (not is_remote(name) and os.path.isdir(name))
    return [*DRIVERS, "Zarr"] if is_zarr else list(DRIVERS)


def _explain(name: str, error: RasterioError) -> None:
    """Raise a UserError for a file that describes others."""
    if is_remote(name):
        if re.search(r"\.vrt(\?|$)", name):
            raise UserError(
                f"{name}: a virtual raster (VRT) is read from a folder only: download it, and what it names"
            ) from error
        return
    start = start_of(name) if os.path.isfile(name) else b""
    if b"<VRTDataset" in start:
        raise UserError(
            f"{name}: is a virtual raster (VRT) under another name, which would read other files: let its "
            "name end in .vrt, or write its pixels into a GeoTIFF with gdal_translate"
        ) from error
    if start.startswith(_ZIP):
        raise UserError(
            f"{name}: is a ZIP archive: unpack it, or name the raster in it as "
            f"/vsizip/{os.path.abspath(name)}/NAME"
        ) from error
    if is_description(start):
        raise UnreadableFile(
            f"{name}: is a text, such as a description of other files, and no raster: write the pixels into "
            "a GeoTIFF with gdal_translate"
        ) from error


def _is_new(path: str) -> bool:
    """Return whether a file was not checked yet as it is."""
    with _lock:
        return _state(path) not in _checked


def _remember(path: str) -> None:
    with _lock:
        if len(_checked) >= _MOST_CHECKED:
            _checked.clear()
        _checked.add(_state(path))


def _state(path: str) -> tuple[Any, ...]:
    """Return what changes when a file does, or what it may read."""
    found = os.stat(path)
    return path, found.st_mtime_ns, found.st_size, found.st_ino, os.environ.get(FOLDERS)


def _check_side_files(dataset: rasterio.DatasetReader, name: str) -> None:
    """Check that overviews and masks of a raster are GeoTIFFs beside it."""
    folder, file = os.path.split(name)
    named = dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE")
    if named is not None:
        beside = named.removeprefix(":::BASE:::")
        if is_remote(name) or has_driver(beside) or beside != os.path.basename(beside):
            raise UserError(
                f"{name}: names the file {shown(named)} as its overviews, which is not beside it: write the "
                "raster anew with gdal_translate"
            )
        _check_side_file(os.path.join(folder, beside))
    if is_remote(name) or not file:
        return
    wanted = [f"{file}{suffix}".lower() for suffix in _SIDE_FILES]
    if not _side_files_in(folder).isdisjoint(wanted):
        for entry in os.listdir(folder or "."):
            if entry.lower() in wanted:
                _check_side_file(os.path.join(folder, entry))


def _check_side_file(path: str) -> None:
    """Check that a file is a GeoTIFF that reads nothing but itself, once as it is."""
    if not os.path.exists(path) or not _is_new(path):
        return
    if not start_of(path).startswith(TIFF):
        raise UserError(f"{path}: is no GeoTIFF, as overviews and masks beside a raster are: remove it")
    try:
        open_sealed(path, "GTiff").close()
    except RasterioError as error:
        said = " ".join(str(error).split())
        raise UnreadableFile(f"{path}: damaged, it cannot be read ({said}): remove it") from error
    _remember(path)


def _side_files_in(folder: str) -> frozenset[str]:
    """Return the overviews and masks in a folder, in lower case, as GDAL compares them."""
    try:
        changed = os.stat(folder or ".").st_mtime_ns
        known = _listed.get(folder)
        if known is None or known[0] != changed:
            names = (entry.lower() for entry in os.listdir(folder or "."))
            known = changed, frozenset(entry for entry in names if entry.endswith(_SIDE_FILES))
            _listed[folder] = known
    except OSError:
        return frozenset()
    return known[1]
