"""Wavelengths that image files state in their tags, for models whose patch embedding needs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipelines.open_source import domain_sensors
from data_pipelines.readers.file_records import find_channels
from data_pipelines.readers.file_search import find_images
from data_pipelines.readers.raster_file import read_header
from data_pipelines.readers.skipping import over_files
from data_pipelines.sensors import stated_wavelengths
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError

_SAME = 0.001  # um, by which the files of one configuration may differ


def with_stated_wavelengths(config: RunConfig) -> RunConfig:
    """Add the wavelengths that the source files of each stream state to a run's configuration.

    Raises:
      UserError: as `of_files`.
    """
    result = of_files(config, config.data.source)
    for name, stream in config.streams.items():
        resolved = of_files(stream, stream.data.source)
        if resolved.wavelengths_of_files is not None:
            result = result.replaced(
                {f"streams.{name}.stated_wavelengths": resolved.given["stated_wavelengths"]}
            )
    return result


def of_files(config: RunConfig, domains: Sequence[str]) -> RunConfig:
    """Add the wavelengths that the files of some domains state for the bands to a configuration.

    The configuration is returned as it is where the visual encoder takes no wavelengths or the configuration
    gives them, where data is not of the kind `geotiff`, and where no file states them for all bands; those of
    `config.sensor` hold then. Files are opened, their pixels are not read.

    Raises:
      UserError: two files differ by more than 1 nm, or a file cannot be read; names them.
    """
    visual, data = config.model.visual, config.data
    if (
        data.kind != "geotiff"
        or visual.wavelengths
        or not visual.takes_wavelengths
        or config.wavelengths_of_files
    ):
        return config
    sensors = domain_sensors(config)

    def read(file: tuple[str, Path]) -> tuple[float, ...] | None:
        domain, image = file
        header = read_header(image)
        if not header.states_wavelengths:
            return None
        sensor = sensors.get(domain, config.sensor)
        places, _ = find_channels(image, header, config.bands, sensor, data.file_bands, domain)
        centres = stated_wavelengths(image)
        chosen = [centres[place] for place in places]
        return None if None in chosen else tuple(centre for centre in chosen if centre is not None)

    found = find_images(Path(data.needs("root")), data.needs("image_glob"), tuple(domains))
    read_from = [
        (image, centres)
        for (_, image), centres in zip(found, over_files(read, found, data.corrupt), strict=True)
        if centres is not None
    ]
    if not read_from:
        return config
    _require_one_grid(config.bands, read_from)
    return config.with_wavelengths_of_files(read_from[0][1])


def _require_one_grid(bands: Sequence[str], files: Sequence[tuple[Path, tuple[float, ...]]]) -> None:
    first, wanted = files[0]
    for image, centres in files[1:]:
        for band, centre, other in zip(bands, centres, wanted, strict=True):
            if abs(centre - other) > _SAME:
                raise UserError(
                    f"{image}: band {band} lies at {centre:.4g} um, in {first} at {other:.4g} um: use images "
                    "of one wavelength grid, or give config.model.visual.wavelengths"
                )
