"""The files of a trained model: the folder of a run, weight files, or a name on the hub.

A file that `spectralmoe convert` wrote from a run holds the run's configuration in its record of origin.
Nothing here loads JAX, so that commands read a configuration before they join other processes.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from spectralmoe_jax.config.given import Given, as_given, config_dict
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.model import split_files
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.config.stored import CHECKPOINTS, read_run_config, stored_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.weights.hub import HUB, INDEX, TORCH_INDEX, TORCH_WEIGHTS, WEIGHTS
from spectralmoe_jax.weights.reading import WeightFile, manifest, open_weight_file

CONFIGURATION = "configuration"  # key of the record of origin


def weight_specs(model: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the weight files that a trained model is read from; none if it is the folder of a run.

    Args:
      model: folder of a run; weight files, several separated by commas; or a name on the hub. A folder
        with config.json and weights, as on the hub, counts as a weight file.
    """
    text, path = os.fspath(model), Path(model)
    if path.is_dir() and not text.startswith(HUB):
        has_weights = any((path / name).is_file() for name in (WEIGHTS, INDEX, TORCH_WEIGHTS, TORCH_INDEX))
        return (text,) if has_weights and not (path / CHECKPOINTS).is_dir() else ()
    specs = (text,) if path.exists() else split_files(text)
    named = all(spec.startswith(HUB) or Path(spec).suffix or Path(spec).exists() for spec in specs)
    return specs if named else ()


def config_of_model(
    model: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    file: str | None = None,
    allow_code: bool = False,
) -> RunConfig:
    """Return the configuration that a trained model carries.

    Args:
      model: as in `weight_specs`.
      overrides: from the command line.
      file: `FILE[:args]` of a configuration instead of the model's own, or None.
      allow_code: whether the model's own configuration may name code.

    Raises:
      UserError: the model carries no configuration, and no file is given; or it names code.
    """
    if file is not None:
        return load_config(file, overrides)
    specs = weight_specs(model)
    if not specs:
        return read_run_config(model, overrides, allow_code)
    given = carried_configuration([open_weight_file(spec) for spec in specs])
    if given is not None:
        return stored_config(given, model, overrides, allow_code)
    raise UserError(
        f"{model}: carries no configuration, as files that `spectralmoe convert` wrote from a run do: give "
        "that of its training as --config FILE"
    )


def carried_configuration(files: Iterable[WeightFile]) -> Given | None:
    """Return the configuration that one of several weight files carries; None if none does."""
    for file in files:
        given = manifest(file).get(CONFIGURATION)
        if isinstance(given, dict):
            return as_given(given)
    return None


def with_weights(config: RunConfig, weights: tuple[str, ...] | None, parts: Collection[str]) -> RunConfig:
    """Return a copy that reads parts of the segmenter from weight files.

    Args:
      config: the configuration.
      weights: the files; None for none.
      parts: what they hold, named as in `weights.released.PARTS`; encoders among them are read from no other
        file.
    """
    encoders = {"visual": config.model.visual, "depth": config.model.depth}
    own = [name for name, encoder in encoders.items() if encoder is not None and name in parts]
    values: dict[str, Any] = {"model.weights": weights}
    values |= {f"model.{name}.weights": None for name in own}
    if config.model.weights_head != "same":
        values["model.weights_head"] = "same"  # the files hold the trained head
    return config.replaced(values)


def stored_configuration(config: RunConfig, parts: Collection[str]) -> dict[str, Any]:
    """Return a configuration for the record of a file that holds some parts of the segmenter."""
    return config_dict(with_weights(config, None, parts).given).to_dict()
