"""Image files of a configuration: opening them, and the wavelengths that they state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.readers.address import as_path
from data_pipelines.readers.file_records import find_channels
from data_pipelines.readers.file_search import find_images
from data_pipelines.readers.image_files import GeoTiffTiles, ImageFolder
from data_pipelines.readers.label_codes import ColourCode, ValueCode
from data_pipelines.readers.labels import Labels, RasterLabels, VectorLabels
from data_pipelines.readers.raster_header import (
    read_header,
    require_complete,
    stated_bandwidths,
    stated_wavelengths,
)
from data_pipelines.readers.unreadable import map_files
from data_pipelines.readers.vector_file import VECTOR_FORMATS
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError, choose
from spectralmoe_jax.sensors import SENSORS, find_sensor, wavelengths

_SAME = 0.001  # um, largest difference between the wavelengths of the files of one configuration


def open_image_folder(config: RunConfig, domains: Sequence[str]) -> ImageFolder:
    """Open the images of a configuration with `data.kind` "image_folder".

    Truncated files are found here, unless `data.corrupt` is "skip".

    Args:
      config: the configuration.
      domains: domains of the images.

    Raises:
      UserError: names the file or the key.
    """
    data = config.data
    source = ImageFolder(
        data.needs("root"),
        palette=config.classes.colours,
        bands=config.bands,
        domains=domains,
        image_glob=data.needs("image_glob"),
        mask_template=data.needs("mask_template"),
        ignore_colours=data.ignore_colours,
        label_values=_label_values(config),
        ignore_values=data.ignore_values,
        sensor=config.sensor,
        file_bands=data.file_bands,
        corrupt=data.corrupt,
        cache_bytes=data.cache_bytes,
    )
    _require_complete(source)
    return source


def open_geotiff(config: RunConfig, domains: Sequence[str]) -> GeoTiffTiles:
    """Open the images of a configuration with `data.kind` "geotiff"; see `open_image_folder`."""
    data = config.data
    source = GeoTiffTiles(
        data.needs("root"),
        bands=config.bands,
        labels=_labels(config),
        classes=len(config.classes.names),
        domains=domains,
        image_glob=data.needs("image_glob"),
        mask_template=data.needs("mask_template"),
        tile=data.tile,
        sensor=config.sensor,
        sensors=domain_sensors(config),
        file_bands=data.file_bands,
        wavelengths=(
            config.model.visual.wavelengths or _wavelengths_of_sensor(config) or config.wavelengths_of_files
        ),
        corrupt=data.corrupt,
        cache_bytes=data.cache_bytes,
    )
    _require_complete(source)
    return source


def _require_complete(source: GeoTiffTiles) -> None:
    if source.corrupt == "stop":
        require_complete(dict.fromkeys(record.image for record in source.records))


def domain_sensors(config: RunConfig) -> dict[str, str]:
    """Return the sensors of single domains by domain, from `data.sensors`.

    Raises:
      UserError: an entry is not of the form DOMAIN=SENSOR, or the sensor is unknown.
    """
    entries = [entry.rpartition("=") for entry in config.data.sensors or ()]
    for entry in entries:
        if not all(entry):
            raise UserError(
                f"config.data.sensors: {''.join(entry)!r} is not of the form DOMAIN=SENSOR, as in "
                "landsat8=landsat8"
            )
    given = {domain.strip(): sensor.strip() for domain, _, sensor in entries}
    for domain, sensor in given.items():
        choose(f"config.data.sensors, {domain}", sensor, SENSORS)
    return given


def _labels(config: RunConfig) -> Labels:
    """Return the reader of `geotiff` labels: values if `data.label_values` is given, else colours."""
    data = config.data
    values = _label_values(config)
    is_vector = Path(data.needs("mask_template")).suffix.lower() in VECTOR_FORMATS
    if values is None:
        if is_vector:
            raise UserError(
                f"config.data.mask_template = {data.mask_template!r}: polygons need "
                "config.data.label_values, the attribute's value of each class"
            )
        return RasterLabels(ColourCode(config.classes.colours, data.ignore_colours))
    code = ValueCode(values, data.ignore_values)
    if not is_vector:
        return RasterLabels(code)
    if not data.label_attribute:
        raise UserError(
            "config.data.label_attribute: name the attribute of the polygons that says their class"
        )
    return VectorLabels(code, data.label_attribute, data.label_layer)


def _label_values(config: RunConfig) -> tuple[Any, ...] | None:
    """Return the stored values of the classes, or None.

    Raises:
      UserError: they are not one for each class, or values that mean "no label" are given without them.
    """
    data = config.data
    values = data.label_values
    if values is None:
        if data.ignore_values:
            raise UserError(
                "config.data.ignore_values is for stored values, which config.data.label_values has to name: "
                "give the value of each class there"
            )
        return None
    if len(values) != len(config.classes.names):
        raise UserError(
            f"config.data.label_values has {len(values)} entries for {len(config.classes.names)} classes: "
            "give one value, or a tuple of values, for each"
        )
    return values


def _wavelengths_of_sensor(config: RunConfig) -> tuple[float, ...] | None:
    """Return the wavelengths of the bands on `config.sensor`, in micrometres.

    None without a sensor, or with one whose wavelengths are nominal: those of the files then hold.
    """
    name = config.sensor
    return None if not name or find_sensor(name).nominal else wavelengths(config.bands, name)


def read_wavelengths(config: RunConfig, domains: Sequence[str]) -> tuple[float, ...] | None:
    """Read the wavelengths that files state for a configuration's bands; opens files, but reads no pixels.

    Args:
      config: a configuration with `data.kind` "geotiff".
      domains: domains of the files.

    Returns:
      One wavelength for each band, in micrometres; None if no file states them for all bands.

    Raises:
      UserError: two files differ by more than 1 nm, or a file cannot be read.
    """
    stating = _stating_files(config, domains, stated_wavelengths)
    _require_one_grid(config.bands, stating)
    return stating[0][1] if stating else None


def read_bandwidths(config: RunConfig, domains: Sequence[str]) -> tuple[float, ...] | None:
    """Read the bandwidths that files state beside wavelengths, those of the first file that states them.

    Arguments are those of `read_wavelengths`.
    """
    stating = _stating_files(config, domains, stated_bandwidths)
    return stating[0][1] if stating else None


def read_acquisition(config: RunConfig, domains: Sequence[str]) -> tuple[int | None, float | None]:
    """Read month and ground resolution of the files of some domains; opens files, but reads no pixels.

    Returns:
      The most frequent month of those that files state, and the median resolution in metres of those that
      are georeferenced; None for what no file states.

    Raises:
      UserError: a file cannot be read.
    """
    data = config.data
    found = find_images(as_path(data.needs("root")), data.needs("image_glob"), tuple(domains))
    headers = [h for h in map_files(lambda file: read_header(file[1]), found, data.corrupt) if h is not None]
    months = [header.month for header in headers if header.month is not None]
    resolutions = [header.resolution for header in headers if header.resolution is not None]
    month = max(sorted(set(months)), key=months.count) if months else None
    return month, float(np.median(resolutions)) if resolutions else None


def _stating_files(
    config: RunConfig, domains: Sequence[str], read_tags: Callable[[Path], tuple[float | None, ...]]
) -> list[tuple[Path, tuple[float, ...]]]:
    """Return the files that state a length for every band, each with these."""
    data, sensors = config.data, domain_sensors(config)

    def read(file: tuple[str, Path]) -> tuple[float, ...] | None:
        """Read the lengths that one file states; None if it states none."""
        domain, image = file
        header = read_header(image)
        if not header.states_wavelengths:
            return None
        sensor = sensors.get(domain, config.sensor)
        channels, _ = find_channels(image, header, config.bands, sensor, data.file_bands, domain)
        stated = read_tags(image)
        chosen = [stated[channel] for channel in channels]
        return None if None in chosen else tuple(length for length in chosen if length is not None)

    found = find_images(as_path(data.needs("root")), data.needs("image_glob"), tuple(domains))
    return [
        (image, lengths)
        for (_, image), lengths in zip(found, map_files(read, found, data.corrupt), strict=True)
        if lengths is not None
    ]


def _require_one_grid(bands: Sequence[str], files: Sequence[tuple[Path, tuple[float, ...]]]) -> None:
    """Raise UserError if files differ in their wavelengths."""
    for image, centres in files[1:]:
        first, wanted = files[0]
        for band, centre, other in zip(bands, centres, wanted, strict=True):
            if abs(centre - other) > _SAME:
                raise UserError(
                    f"{image}: band {band} lies at {centre:.4g} um, in {first} at {other:.4g} um: use images "
                    "of one wavelength grid, or give config.model.visual.wavelengths"
                )
