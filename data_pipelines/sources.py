"""Sources of labelled images by the kind that a configuration names (`config.data.kind`).

The module of a kind is imported when the kind is first used: a run on prepared or generated tiles never
imports rasterio. A user's own kind is named by the import path of a function, `module:function` or
`file.py:function`, that takes (configuration, domains) and returns a `data_pipelines.records.Source`.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Sequence
from typing import Any

from data_pipelines.records import Source
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.import_path import load_object

KINDS = {
    "image_folder": "data_pipelines.readers.from_config:open_image_folder",
    "geotiff": "data_pipelines.readers.from_config:open_geotiff",
    "prepared": "data_pipelines.readers.prepared:open_prepared",
    "synthetic": "data_pipelines.synthetic.source:open_synthetic",
}
"""Function that opens each built-in kind."""

_WAVELENGTHS = {"geotiff": "data_pipelines.readers.from_config:read_wavelengths"}
_BANDWIDTHS = {"geotiff": "data_pipelines.readers.from_config:read_bandwidths"}
_ACQUISITION = {"geotiff": "data_pipelines.readers.from_config:read_acquisition"}
_KEY = "config.data.kind"
_METHODS = ("read_image", "read_label")


def open_source(config: RunConfig, domains: Sequence[str]) -> Source[Any]:
    """Open the images of some domains of a configuration.

    Args:
      config: the configuration.
      domains: names of domains; for prepared tiles also of splits.

    Raises:
      UserError: names the file or the key.
    """
    kind = config.data.kind
    if kind in KINDS:
        return _built_in(KINDS[kind])(config, tuple(domains))
    return _OwnSource(kind, load_object(kind, _KEY)(config, tuple(domains)))


def _built_in(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


class _OwnSource:
    """A user's own source, which worker processes can unpickle: they import its code first.

    Args:
      kind: import path of the function that opened it.
      source: the source.

    Raises:
      UserError: `source` is not a source of labelled images.
    """

    def __init__(self, kind: str, source: Any):
        missing = [name for name in _METHODS if not callable(getattr(source, name, None))]
        if not hasattr(source, "records"):
            missing.insert(0, "records")
        if missing:
            raise UserError(
                f"{_KEY} = {kind!r}: returned a {type(source).__name__} without {' and '.join(missing)}; "
                "a source has records, read_image and read_label (docs/data.md)"
            )
        if not len(source.records):
            raise UserError(f"{_KEY} = {kind!r}: returned no images for config.data.source or target")
        self._kind, self._source = kind, source

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self._kind, pickle.dumps(self._source))


def _unpickle(kind: str, pickled: bytes) -> _OwnSource:
    load_object(kind, _KEY)  # imports the module that pickle looks for
    return _OwnSource(kind, pickle.loads(pickled))


def resolve_run_wavelengths(config: RunConfig) -> RunConfig:
    """Return the configuration of a run with the wavelengths that the source files of each stream state.

    Raises:
      UserError: as for `resolve_stream_wavelengths`.
    """
    result = resolve_stream_wavelengths(config, config.data.source)
    for name, stream in config.streams.items():
        resolved = resolve_stream_wavelengths(stream, stream.data.source)
        stated = {}
        if resolved.wavelengths_of_files is not None:
            stated["stated_wavelengths"] = resolved.given["stated_wavelengths"]
        if resolved.acquisition_of_files is not None:
            stated["stated_acquisition"] = resolved.given["stated_acquisition"]
        result = result.replaced({f"streams.{name}.{key}": section for key, section in stated.items()})
    return result


def resolve_stream_wavelengths(config: RunConfig, domains: Sequence[str]) -> RunConfig:
    """Return a configuration with the wavelengths that the files of some domains state for its bands.

    Their bandwidths are added if the encoder takes them and the files state them for all bands; month and
    ground resolution likewise.

    The configuration is returned unchanged if its encoder takes no wavelengths or has its own, if data of
    this kind states none, or if no file states them for all bands; those of `config.sensor` then hold.

    Args:
      config: the configuration of one stream.
      domains: names of domains.

    Raises:
      UserError: two files differ by more than 1 nm, or a file cannot be read.
    """
    config = _with_acquisition(config, domains)
    visual, kind = config.model.visual, config.data.kind
    given = visual.wavelengths or config.wavelengths_of_files
    if kind not in _WAVELENGTHS or given or not visual.takes_wavelengths:
        return config
    found = _built_in(_WAVELENGTHS[kind])(config, domains)
    if found is None:
        return config
    widths = visual.family.bandwidths and _built_in(_BANDWIDTHS[kind])(config, domains)
    return config.with_wavelengths_of_files(found, widths or ())


def _with_acquisition(config: RunConfig, domains: Sequence[str]) -> RunConfig:
    """Return a configuration with month and ground resolution that the files of some domains state."""
    visual, kind = config.model.visual, config.data.kind
    given = (visual.month and visual.resolution) or config.acquisition_of_files is not None
    if kind not in _ACQUISITION or given or not visual.takes_acquisition:
        return config
    found = _built_in(_ACQUISITION[kind])(config, domains)
    return config.with_acquisition_of_files(*found) if any(found) else config
