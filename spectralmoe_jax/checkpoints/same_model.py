"""The settings that two runs must share to share checkpoints, and how they differ.

A checkpoint stores them, so that it cannot be restored into another model unnoticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from spectralmoe_jax.config.given import flatten
from spectralmoe_jax.config.overrides import CHOICES
from spectralmoe_jax.config.presets import FAMILIES, kind_of

_MODEL_SECTIONS = ("bands", "classes", "model")
# Keys that decide how the model is computed, not what it computes: they may differ between runs.
_COMPUTATION_KEYS = ("model.dtype", "model.remat", "model.weights", "model.visual.weights",
                     "model.depth.weights", "model.adapter.strategy")  # fmt: skip
_DEFAULT_KINDS = {f"{section}.kind": next(iter(kinds)) for section, kinds in CHOICES.items()}
# Keys of the sensor: they may differ as well if the encoder takes the bands of any sensor.
_SENSOR_KEYS = (
    "bands",
    "model.pixel_mean",
    "model.pixel_std",
    "model.pixel_statistics",
    "model.visual.wavelengths",
    "model.visual.stored_as",
    "model.visual.resolution",
    "model.visual.month",
    "model.visual.location",
    "model.visual.days",
    "model.visual.bandwidths",
    "model.depth.bands",
)


def model_part(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that runs must share to share checkpoints: bands, classes and model.

    Precision (`model.dtype`), rematerialisation (`model.remat`) and the weight files are left out: they do
    not change what the parameters mean, and files move. The bands are also left out if the visual encoder
    takes those of any sensor (dofa, copernicus_fm, galileo).

    Args:
      given: the configuration as given; default values are not compared.

    Returns:
      JSON values by dotted key.
    """
    sections = {key: given[key] for key in _MODEL_SECTIONS if key in given}
    free = _COMPUTATION_KEYS + (_SENSOR_KEYS if _takes_any_bands(given) else ())
    flat = {key: value for key, value in flatten(sections).items() if key not in free}
    for key, default in _DEFAULT_KINDS.items():
        if flat.get(key) == default:
            del flat[key]  # the same model as without the key
    return json.loads(json.dumps(flat))


def _takes_any_bands(given: Mapping[str, Any]) -> bool:
    """Return True if the visual encoder takes the bands of any sensor."""
    model = given.get("model")
    visual = model.get("visual") if isinstance(model, Mapping) else None
    kind = kind_of(visual if isinstance(visual, Mapping) else {}) or ""
    return kind == "galileo" or (kind in FAMILIES and FAMILIES[kind].wavelengths)


def fingerprint(given: Mapping[str, Any]) -> str:
    """Return a hexadecimal digest of `model_part`, equal for configurations that may share checkpoints."""
    return hashlib.sha256(json.dumps(model_part(given), sort_keys=True).encode()).hexdigest()[:16]


def describe_differences(there: Mapping[str, Any], here: Mapping[str, Any], at_most: int = 6) -> str:
    """List the keys that differ between two flat configurations, in one line; empty if none does."""
    keys = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    listed = [f"config.{key} is {there.get(key)!r} there, {here.get(key)!r} here" for key in keys[:at_most]]
    return "; ".join(listed + [f"and {len(keys) - at_most} more"] * (len(keys) > at_most))
