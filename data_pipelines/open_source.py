"""Labelled images of a configuration, opened by the kind of its data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.readers.file_search import require_complete
from data_pipelines.readers.image_files import GeoTiffTiles, ImageFolder
from data_pipelines.readers.labels import ColourCode, Labels, RasterLabels, ValueCode, VectorLabels
from data_pipelines.readers.vector_file import VECTOR_FORMATS
from data_pipelines.records import Source
from data_pipelines.synthetic import open_domains
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.sensors import SENSORS, find_sensor, wavelengths


def open_source(config: RunConfig, domains: Sequence[str]) -> Source[Any]:
    """Open the images of some domains of a configuration.

    `config.data.kind` says how: `image_folder` and `geotiff` read files as they lie, `prepared` reads what
    `spectralmoe prepare` wrote, and `synthetic` generates images. Truncated image files are found here,
    unless `config.data.corrupt` says to skip what cannot be read.

    Raises:
      UserError: names the file or the key.
    """
    kind = config.data.kind
    source = KINDS[kind](config, tuple(domains))
    if kind in _FILES_AS_THEY_LIE and config.data.corrupt == "stop":
        require_complete(dict.fromkeys(record.image for record in source.records))
    return source


def _image_folder(config: RunConfig, domains: Sequence[str]) -> Source[Any]:
    data = config.data
    return ImageFolder(
        data.needs("root"),
        palette=config.classes.colours,
        bands=config.bands,
        domains=domains,
        image_glob=data.needs("image_glob"),
        mask_template=data.needs("mask_template"),
        ignore_colours=data.ignore_colours,
        sensor=config.sensor,
        file_bands=data.file_bands,
        corrupt=data.corrupt,
        cache_bytes=data.cache_bytes,
    )


def _geotiff(config: RunConfig, domains: Sequence[str]) -> Source[Any]:
    data = config.data
    return GeoTiffTiles(
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
        wavelengths=config.model.visual.wavelengths or _of_sensor(config) or config.wavelengths_of_files,
        corrupt=data.corrupt,
        cache_bytes=data.cache_bytes,
    )


def domain_sensors(config: RunConfig) -> dict[str, str]:
    """Return the sensors of single domains, of `config.data.sensors`.

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
        if sensor not in SENSORS:
            raise UserError(
                f"config.data.sensors: {domain} is of {sensor!r}, which is not known: choose from "
                f"{', '.join(SENSORS)}"
            )
    return given


def _labels(config: RunConfig) -> Labels:
    """Return the code of `geotiff` labels: stored numbers or attributes with `label_values`, else colours."""
    data = config.data
    values = data.label_values
    is_vector = Path(data.needs("mask_template")).suffix.lower() in VECTOR_FORMATS
    if values is None:
        if is_vector:
            raise UserError(
                f"config.data.mask_template = {data.mask_template!r}: polygons need "
                "config.data.label_values, the attribute's value of each class"
            )
        return RasterLabels(ColourCode(config.classes.colours, data.ignore_colours))
    if len(values) != len(config.classes.names):
        raise UserError(
            f"config.data.label_values has {len(values)} entries for {len(config.classes.names)} classes: "
            "give one value, or a tuple of values, for each"
        )
    code = ValueCode(values, data.ignore_values)
    if not is_vector:
        return RasterLabels(code)
    if not data.label_attribute:
        raise UserError(
            "config.data.label_attribute: name the attribute of the polygons that says their class"
        )
    return VectorLabels(code, data.label_attribute, data.label_layer)


def _of_sensor(config: RunConfig) -> tuple[float, ...] | None:
    """Return the wavelengths of the bands on `config.sensor`, to compare files with.

    None where no sensor is named, or one whose wavelengths are nominal: the files' own hold then.
    """
    name = config.sensor
    return None if not name or find_sensor(name).nominal else wavelengths(config.bands, name)


def _prepared(config: RunConfig, domains: Sequence[str]) -> Source[Any]:
    # with TensorFlow Datasets, which other kinds of data do not need
    from data_pipelines.readers.prepared import PreparedTiles

    return PreparedTiles(
        config.data.needs("root"),
        splits=domains,
        bands=config.bands,
        classes=config.classes.names,
        benchmark=config.data.benchmark,
        sensor=config.sensor,
    )


KINDS: dict[str, Callable[[RunConfig, Sequence[str]], Source[Any]]] = {
    "image_folder": _image_folder,
    "geotiff": _geotiff,
    "prepared": _prepared,
    "synthetic": open_domains,
}
_FILES_AS_THEY_LIE = ("image_folder", "geotiff")
