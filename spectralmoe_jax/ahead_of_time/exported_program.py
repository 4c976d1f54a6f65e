"""`spectralmoe export`: a trained model as a compiled program that needs JAX alone, and not this package.

The folder holds the program in StableHLO for CPUs, NVIDIA GPUs and TPUs, for any number of windows in a call;
the weights; what a caller has to know about bands and classes; and `load.py`, which reads them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spectralmoe_jax import __version__
from spectralmoe_jax.config.load import Configuration, as_run_config
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError, bad_value
from spectralmoe_jax.inference.model_files import config_of_model
from spectralmoe_jax.inference.segmenter_weights import load_segmenter
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.parameters import join, named_leaves, split
from spectralmoe_jax.weights.writing import atomic_create

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, WEIGHTS, INFORMATION, LOADER = "program.bin", "weights.npz", "model.json", "load.py"
_LOADER = '''"""Load the model beside this file; needs jax, flatbuffers and numpy. `info` describes it."""
import hashlib
import json
from pathlib import Path

import numpy as np
from jax import export

FOLDER = Path(__file__).resolve().parent
info = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))
for name, digest in info["sha256"].items():
    if hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() != digest:
        raise ValueError(f"{FOLDER / name}: damaged")
_program = export.deserialize(bytearray((FOLDER / "program.bin").read_bytes()))
_weights = dict(np.load(FOLDER / "weights.npz"))


def scores(pixels):
    """Stored pixels (B, window, window, bands) -> scores (B, window, window, classes)."""
    return np.asarray(_program.call(_weights, np.asarray(pixels, np.float32)))
'''


def export(
    model: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    config: Configuration | None = None,
    *,
    allow_code: bool = False,
) -> Path:
    """Write a trained model as a StableHLO program with its weights.

    Args:
      model: the model, as `spectralmoe_jax.load` takes it.
      destination: folder to write; it must not exist.
      config: configuration in any form of `config.load.Configuration`; None for the model's own.
      allow_code: whether the model's own configuration may name code, as there.

    Returns:
      The folder.

    Raises:
      UserError: the model cannot be read, the folder exists, or a library is missing.
    """
    run = config_of_model(model, allow_code=allow_code) if config is None else as_run_config(config)
    target = Path(destination)
    if run.evaluate.tta != "none":
        must = "must be none: a program has the scores of its windows as they are"
        raise bad_value("config.evaluate.tta", run.evaluate.tta, must)
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("exporting needs flatbuffers: pip install 'spectralmoe-jax[export]'")
    with atomic_create(target) as folder:
        segmenter = load_segmenter(model, run)
        folder.mkdir()
        weights = {name: np.asarray(leaf) for name, leaf in named_leaves(split(segmenter)).items()}
        (folder / PROGRAM).write_bytes(_program(segmenter, run))
        np.savez(folder / WEIGHTS, **weights)  # type: ignore[arg-type]
        information = _information(segmenter, run) | {"sha256": _digests(folder)}
        (folder / INFORMATION).write_text(json.dumps(information, indent=2) + "\n", encoding="utf-8")
        (folder / LOADER).write_text(_LOADER, encoding="utf-8")
    return target


def _digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the program and of its weights, which the loader compares."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (PROGRAM, WEIGHTS)}


def _program(segmenter: Segmenter, run: RunConfig) -> bytes:
    """Serialise the function (weights by name, pixels (B, S, S, bands) float32) -> scores (B, S, S, C)."""
    parts, tree = jax.tree.flatten(split(segmenter))
    names = list(named_leaves(split(segmenter)))
    shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in zip(names, parts, strict=True)}

    def scores(weights: dict[str, jax.Array], pixels: jax.Array) -> jax.Array:
        """Predict with the given weights."""
        trainable, frozen = jax.tree.unflatten(tree, [weights[name] for name in names])
        return join(segmenter, trainable, frozen).scores(pixels)

    (batch,) = jax.export.symbolic_shape("batch")
    side, bands = run.evaluate.window, len(run.bands)
    pixels = jax.ShapeDtypeStruct((batch, side, side, bands), np.float32)
    exported = jax.export.export(jax.jit(scores), platforms=PLATFORMS)(shapes, pixels)
    return bytes(exported.serialize())


def _information(segmenter: Segmenter, run: RunConfig) -> dict[str, Any]:
    """Return what a caller has to know, as plain values."""
    return {
        "name": run.name, "bands": run.bands, "sensor": run.sensor, "window": run.evaluate.window,
        "overlap": run.evaluate.overlap, "classes": run.classes.names, "palette": run.classes.palette,
        "input": "(batch, window, window, bands) float32, as stored in the files; no data is 0",
        "output": "(batch, window, window, classes) float32, not negative; the largest decides",
        "normalisation": {
            "inside the program": True,
            "mean": np.asarray(segmenter.pixel_mean[...], float).tolist(),
            "std": np.asarray(segmenter.pixel_std[...], float).tolist(),
        },
        "platforms": PLATFORMS, "spectralmoe_jax": __version__, "jax": jax.__version__,
    }  # fmt: skip
