"""Wavelengths that the files of a run state themselves, kept in its configuration.

They are a section of their own, `config.stated_wavelengths`, which says for which bands on which sensor they
were read. So a configuration whose bands or sensor are overridden later does not keep them by mistake.
"""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import ConfigDict

KEY = "stated_wavelengths"


def stated(config: ConfigDict) -> tuple[float, ...] | None:
    """The wavelengths, in micrometres, that files stated for the configuration's bands on its sensor."""
    section = config.get(KEY)
    if not section or not _is_of(section, config):
        return None
    return tuple(section["micrometres"])


def with_stated(config: ConfigDict, micrometres: Sequence[float]) -> ConfigDict:
    """A locked copy of a configuration that keeps the wavelengths that its files state for its bands."""
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        copy[KEY] = ConfigDict({
            "bands": tuple(config.bands), "sensor": config.get("sensor"), "micrometres": tuple(micrometres),
        })  # fmt: skip
    return copy.lock()


def adopt_stated(config: ConfigDict, run: ConfigDict) -> ConfigDict:
    """`config`, or a copy with what the files of a run stated for the same bands on the same sensor."""
    if stated(config) is not None:
        return config
    for section in (run, *(run.get("streams") or {}).values()):
        kept = section.get(KEY)
        if kept and _is_of(kept, config):
            return with_stated(config, kept["micrometres"])
    return config


def _is_of(section: ConfigDict, config: ConfigDict) -> bool:
    return tuple(section["bands"]) == tuple(config.bands) and section["sensor"] == config.get("sensor")
