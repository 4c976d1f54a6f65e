"""Wavelengths that the files of a run state themselves, kept in its configuration.

They are the section `config.stated_wavelengths`, which says for which bands on which sensor it holds.
"""

from __future__ import annotations

from collections.abc import Sequence

from spectralmoe_jax.config.schema import RunConfig, StatedWavelengths

KEY = "stated_wavelengths"


def stated(config: RunConfig) -> tuple[float, ...] | None:
    """Return the wavelengths in micrometres that files stated for the bands on the sensor, or None."""
    section = config.stated_wavelengths
    return section.micrometres if section is not None and _holds(section, config) else None


def with_stated(config: RunConfig, micrometres: Sequence[float]) -> RunConfig:
    """Return a configuration that keeps the wavelengths that its files state for its bands."""
    section = {"bands": config.bands, "sensor": config.sensor, "micrometres": tuple(micrometres)}
    return config.replaced({KEY: section})


def adopt_stated(config: RunConfig, run: RunConfig) -> RunConfig:
    """Return a configuration with the wavelengths that a run's files stated for its bands and sensor.

    Args:
      config: returned as it is where it has wavelengths already, or the run stated none for it.
      run: the configuration stored with the run.
    """
    if stated(config) is not None:
        return config
    for stream in (run, *run.streams.values()):
        kept = stream.stated_wavelengths
        if kept is not None and _holds(kept, config):
            return with_stated(config, kept.micrometres)
    return config


def _holds(section: StatedWavelengths, config: RunConfig) -> bool:
    """Whether a section is of the configuration's bands on its sensor."""
    return section.bands == config.bands and section.sensor == config.sensor
