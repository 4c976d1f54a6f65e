"""SpectralMoE in JAX: segmentation that holds on unseen sensors, places and seasons.

Every subcommand of the command line is a function of this package as well, for example
`spectralmoe_jax.train(config, workdir)`. Importing the package loads neither JAX nor any of its own modules;
a function is loaded when it is first used, so data workers and `spectralmoe --help` start fast.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_FUNCTIONS = {
    "quickstart": "spectralmoe_jax.quick_start",
    "train": "spectralmoe_jax.training.train",
    "evaluate": "spectralmoe_jax.evaluation.evaluate",
    "calibrate": "spectralmoe_jax.evaluation.calibrate",
    "probe": "spectralmoe_jax.evaluation.probe",
    "ablate": "spectralmoe_jax.ablation.ablate",
    "report": "spectralmoe_jax.reporting.page",
    "load": "spectralmoe_jax.inference.model",
    "Model": "spectralmoe_jax.inference.model",
    "predict": "spectralmoe_jax.inference.model",
    "view": "spectralmoe_jax.reporting.viewer",
    "serve": "spectralmoe_jax.serving.serve",
    "verify": "spectralmoe_jax.parity.verify",
    "params": "spectralmoe_jax.models.build:count_parameters",
    "convert": "spectralmoe_jax.conversion.convert",
    "export": "spectralmoe_jax.ahead_of_time.exported_program",
    "push": "spectralmoe_jax.sharing.push",
    "load_config": "spectralmoe_jax.config.load",
    "show_config": "spectralmoe_jax.config.reference",
    "prepare": "data_pipelines.prepare.prepare",
    "check": "data_pipelines.prepare.prepare",
    "init_config": "spectralmoe_jax.project_setup.init",
    "show_data": "data_pipelines.inspect:show",
    "compile_steps": "spectralmoe_jax.ahead_of_time.compile",
}

__all__ = ["__version__", *_FUNCTIONS]


def __getattr__(name: str) -> Any:
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, function = _FUNCTIONS[name].partition(":")
    return getattr(import_module(module), function or name)


def __dir__() -> list[str]:
    return sorted(__all__)
