"""Build segmenters from configurations: settings, abstract or random modules, other bands, sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from spectralmoe_jax.adapters.registry import adapter_class
from spectralmoe_jax.config.adapters import OwnAdapterConfig, SpectralMoEConfig
from spectralmoe_jax.config.fields import build
from spectralmoe_jax.config.load import Configuration, as_run_config
from spectralmoe_jax.config.model import DEFAULT_MONTH, EncoderConfig, VisualConfig
from spectralmoe_jax.config.presets import FAMILIES
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError, bad_value
from spectralmoe_jax.layers import Statistic
from spectralmoe_jax.models.encoders.galileo import channels_of
from spectralmoe_jax.models.segmenter import Segmenter, SegmenterConfig
from spectralmoe_jax.parameters import Path, leaves, with_values
from spectralmoe_jax.sensors import (
    bandwidths,
    find_sensor,
    names_in_files,
    place_of,
    stored_reflectance,
    visible,
    wavelengths,
)


def segmenter_config(config: RunConfig) -> SegmenterConfig:
    """Return the settings of a run's segmenter, including what follows from bands, sensor and classes.

    Raises:
      UserError: parts do not fit each other, or a user's own adapter is not valid; names the key.
    """
    model, bands = config.model, config.bands
    depth: EncoderConfig | None = None
    depth_bands: tuple[int, ...] = ()
    if model.depth is not None:
        depth_bands = _depth_bands(model.depth.bands, bands, config.sensor)
        names = _band_names(model.depth, tuple(bands[index] for index in depth_bands), config.sensor)
        depth = model.depth.encoder(names)
    adapter = _adapter(model.adapter)
    visual = _visual(config)
    _check_encoder(visual, model.adapter.kind)
    pixel_mean, pixel_std = model.statistics(
        names_in_files(bands, config.sensor), stored_reflectance(config.sensor)
    )
    return SegmenterConfig(
        visual=visual,
        depth=depth,
        adapter=adapter,
        adapter_kind=model.adapter.kind,
        head=dataclasses.replace(model.head, num_classes=len(config.classes.names)),
        depth_bands=depth_bands,
        out_layers=model.out_layers,
        dtype=model.dtype,
        remat=model.remat,
        pixel_mean=pixel_mean,
        pixel_std=pixel_std,
    )


def _visual(config: RunConfig) -> EncoderConfig:
    """Return the visual encoder, including what follows from bands and sensor.

    Raises:
      UserError: the encoder does not take these bands, or their wavelengths or resolution are not known.
    """
    visual, bands = config.model.visual, config.bands
    if visual.kind != "galileo":
        return visual.encoder(
            _band_names(visual, bands, config.sensor),
            wavelengths=_wavelengths(config),
            bandwidths=_bandwidths(config),
        )
    stated = config.acquisition_of_files
    month = visual.month or (stated and stated.month) or DEFAULT_MONTH
    resolution = visual.resolution or (stated and stated.resolution)
    if not resolution and config.sensor:
        resolution = find_sensor(config.sensor).resolution
    if not resolution:
        must = f"give the metres along a pixel's edge: they are not known for config.sensor = {config.sensor}"
        raise bad_value(f"{visual.place}.resolution", visual.resolution, must)
    found = visual.encoder(
        bands,
        channels=channels_of(bands, config.sensor),
        month=month,
        resolution=resolution,
    )
    if not found.groups:
        raise UserError(
            f"config.bands = {', '.join(bands)}: galileo needs all bands of one of its groups: blue, green "
            "and red; B05, B06 and B07; nir; B8A; or swir16 and swir22 (names of Sentinel-2)"
        )
    return found


def _band_names(encoder: VisualConfig, bands: tuple[str, ...], sensor: str | None) -> tuple[str, ...]:
    """Return the names of an encoder's bands: those in the files where it finds its bands by name."""
    return names_in_files(bands, sensor) if encoder.family.bands else bands


def _depth_bands(names: Sequence[str] | None, bands: tuple[str, ...], sensor: str | None) -> tuple[int, ...]:
    """Return the indices of the bands that the depth encoder sees.

    These are the named bands, by any of their names on the sensor, or red, green and blue by default.

    Raises:
      UserError: a named band is missing, or it is not known which bands are red, green and blue.
    """
    if names is None:
        found = visible(bands, sensor)
        if found is None:
            raise UserError(
                f"config.model.depth.bands: which of {', '.join(bands)} are red, green and blue is not "
                "known: name three of them, or give config.sensor"
            )
        return found
    indices = []
    for name in names:
        index = place_of(name, bands, sensor)
        if index is None:
            raise UserError(
                f"config.model.depth.bands names {name!r}, which config.bands does not have: "
                f"choose from {', '.join(bands)}"
            )
        indices.append(index)
    return tuple(indices)


def _wavelengths(config: RunConfig) -> tuple[float, ...]:
    """Return the wavelengths of the bands, for an encoder that takes them.

    The configuration's own come first, then those that its files stated, then those of the sensor.
    """
    visual = config.model.visual
    if visual.wavelengths or not visual.takes_wavelengths:
        return visual.wavelengths
    return config.wavelengths_of_files or wavelengths(config.bands, config.sensor or "generic")


def _bandwidths(config: RunConfig) -> tuple[float, ...]:
    """Return the bandwidths of the bands, for an encoder that takes them; see `_wavelengths`."""
    visual = config.model.visual
    if visual.bandwidths or not visual.family.bandwidths:
        return visual.bandwidths
    return config.bandwidths_of_files or bandwidths(config.bands, config.sensor or "generic")


def _adapter(section: Any) -> Any:
    """Return the adapter's settings; the class of a user's own adapter defines which are valid."""
    if not isinstance(section, OwnAdapterConfig):
        return section
    return build(adapter_class(section.kind).Config, section.settings, "config.model.adapter")


def _check_encoder(visual: EncoderConfig, kind: str) -> None:
    """Check that the adapter works with the visual encoder.

    Raises:
      UserError: it does not; names the key.
    """
    adapter = adapter_class(kind)
    if adapter.adds_tokens and visual.kind == "sam":
        raise UserError(
            f"config.model.adapter.kind = {kind!r} adds tokens, for which the windows of "
            "config.model.visual.kind = 'sam' have no place: choose another of the two"
        )
    if adapter.chooses_weights() and visual.trainable and kind != "full":
        must = f"set it to False, for config.model.adapter.kind = {kind!r} chooses the weights that train"
        raise bad_value("config.model.visual.trainable", True, must)


def abstract_segmenter(config: SegmenterConfig) -> Segmenter:
    """Make a segmenter with shapes and dtypes in place of arrays; nothing is allocated."""
    return nnx.eval_shape(lambda: Segmenter(config, rngs=nnx.Rngs(0)))


def make_segmenter(config: SegmenterConfig, seed: int) -> Segmenter:
    """Make a segmenter with random weights, inside one jitted call."""
    graph = nnx.graphdef(abstract_segmenter(config))
    make = jax.jit(lambda key: nnx.state(Segmenter(config, rngs=nnx.Rngs(key))))
    return nnx.merge(graph, make(jax.random.key(seed)))


def random_leaves(
    config: SegmenterConfig,
    seed: int,
    paths: Collection[Path],
    shardings: Mapping[Path, jax.sharding.Sharding] | None = None,
) -> dict[Path, jax.Array]:
    """Make some leaves of `make_segmenter(config, seed)`, without the others.

    Args:
      config: settings of the segmenter.
      seed: seed of the weights. It is an argument of the compiled function: as a constant, it would cause a
        compilation for every seed.
      paths: paths of the leaves to make.
      shardings: sharding of every leaf; None for one device.
    """
    if not paths:
        return {}

    def make(key: jax.Array) -> dict[str, jax.Array]:
        """Initialise all leaves and return the wanted ones; the compiler drops the others."""
        found = leaves(Segmenter(config, rngs=nnx.Rngs(key)))
        return {"/".join(path): found[path] for path in paths}

    where = None if shardings is None else {"/".join(path): shardings[path] for path in paths}
    made = jax.jit(make, out_shardings=where)(jax.random.key(seed))
    return {path: made["/".join(path)] for path in paths}


def for_bands(
    segmenter: Segmenter,
    wavelengths: Sequence[float],
    *,
    bandwidths: Sequence[float] = (),
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    depth_bands: Sequence[int] = (0, 1, 2),
) -> Segmenter:
    """Make a segmenter for another sensor from the same parameters, which are shared, not copied.

    The patch embedding is generated here, once for the band set, and is a constant in every later step.

    Args:
      segmenter: segmenter whose visual encoder generates its patch embedding (dofa, copernicus_fm).
      wavelengths: wavelengths of the bands in micrometres.
      bandwidths: bandwidths of the bands in micrometres, for an encoder that takes them (copernicus_fm).
      pixel_mean: mean of each band, in raw pixel units.
      pixel_std: standard deviation of each band, in raw pixel units.
      depth_bands: indices of the bands that the depth encoder sees: red, green, blue.

    Raises:
      UserError: the encoder's patch embedding belongs to one band set, or wavelengths and statistics do not
        fit each other.
    """
    visual = segmenter.config.visual
    if not visual.family.wavelengths:
        able = " and ".join(kind for kind, family in FAMILIES.items() if family.wavelengths)
        must = (
            f"its patch embedding belongs to its own {visual.in_channels} bands; only {able} make one for "
            "any bands"
        )
        raise bad_value("config.model.visual.kind", visual.kind, must)
    config = dataclasses.replace(
        segmenter.config,
        visual=dataclasses.replace(
            visual,
            in_channels=len(wavelengths),
            wavelengths=tuple(wavelengths),
            bandwidths=tuple(bandwidths),
        ),
        depth_bands=tuple(depth_bands),
        pixel_mean=tuple(pixel_mean),
        pixel_std=tuple(pixel_std),
    )
    # kernel (p, p, bands, D), bias (D,)
    generator = segmenter.backbone.visual.generator  # type: ignore[attr-defined]
    kernel, bias = generator(config.visual.wavelengths, config.visual.bandwidths)
    replaced = {
        ("backbone", "visual", "patch_kernel"): kernel,
        ("backbone", "visual", "patch_bias"): bias,
        ("pixel_mean",): jnp.asarray(config.pixel_mean, config.param_dtype),
        ("pixel_std",): jnp.asarray(config.pixel_std, config.param_dtype),
    }
    return with_values(abstract_segmenter(config), leaves(segmenter) | replaced)


def for_sensor(segmenter: Segmenter, settings: SegmenterConfig) -> Segmenter:
    """Make the segmenter for another sensor from the same parameters, which are shared, not copied.

    Args:
      segmenter: segmenter whose visual encoder takes any bands (dofa, copernicus_fm, galileo).
      settings: its settings on the other sensor.

    Raises:
      UserError: as `for_bands`.
    """
    if segmenter.config.visual.kind != "galileo":
        return for_bands(
            segmenter,
            settings.visual.wavelengths,
            bandwidths=settings.visual.bandwidths,
            pixel_mean=settings.pixel_mean,
            pixel_std=settings.pixel_std,
            depth_bands=settings.depth_bands,
        )
    replaced: dict[Path, Any] = {
        ("pixel_mean",): jnp.asarray(settings.pixel_mean, settings.param_dtype),
        ("pixel_std",): jnp.asarray(settings.pixel_std, settings.param_dtype),
    }
    return with_values(abstract_segmenter(settings), leaves(segmenter) | replaced)


# Parts of the model by path prefix: a parameter belongs to the first prefix that its path starts with.
PARTS = {
    ("backbone", "visual"): "visual encoder",
    ("backbone", "depth"): "depth encoder",
    ("backbone", "adapter", "refinement"): "depth refinement",
    ("backbone", "adapter"): "adapter",
    ("head", "pixel_decoder"): "pixel decoder",
    ("head", "classifier"): "linear head",
    ("head",): "mask decoder",
    (): "pixel statistics",
}


class PartSize(NamedTuple):
    """Size of one part of a segmenter.

    Attributes:
      name: name of the part.
      trainable: number of trainable parameters.
      frozen: number of frozen parameters.
    """

    name: str
    trainable: int
    frozen: int


def count_parameters(config: Configuration) -> list[PartSize]:
    """Count the parameters of a configured segmenter by part, in the order data flows; allocates none.

    Args:
      config: a configuration in any form of `config.load.Configuration`.

    Raises:
      UserError: the configuration does not describe a valid model.
    """
    settings = segmenter_config(as_run_config(config))
    return part_sizes(abstract_segmenter(settings), settings)


def part_sizes(segmenter: Segmenter, config: SegmenterConfig) -> list[PartSize]:
    """Count the parameters of a segmenter, abstract or not, by part.

    Experts are stored at the largest rank; entries that a smaller expert never uses are not counted.
    """
    sums = {name: [0, 0] for name in PARTS.values()}
    for path, variable in nnx.to_flat_state(nnx.state(segmenter)):
        name = next(part for prefix, part in PARTS.items() if path[: len(prefix)] == prefix)
        trains = isinstance(variable, nnx.Param) and not isinstance(variable, Statistic)
        sums[name][0 if trains else 1] += math.prod(variable.shape)
    adapter = config.adapter
    if isinstance(adapter, SpectralMoEConfig):
        unused = max(adapter.ranks) * adapter.num_experts - sum(adapter.ranks)
        rows = adapter.num_tokens + config.visual.width
        sums["adapter"][0] -= config.visual.layers * unused * rows
    return [PartSize(name, *numbers) for name, numbers in sums.items() if any(numbers)]
