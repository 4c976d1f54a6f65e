"""A trained model, ready to predict, from the folder of its run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from spectralmoe_jax.checkpoints.released import load_released
from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.build import abstract_segmenter, make_segmenter, segmenter_config
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.models.state import join, split

log = logging.getLogger(__name__)


def initial_segmenter(config: ConfigDict) -> Segmenter:
    """The segmenter a run starts from: `config.model.weights`, a safetensors file in the released names, or
    random weights where there is none. Logs a warning where frozen weights are random.

    Raises UserError naming the key or file that is wrong.
    """
    settings = segmenter_config(config)
    segmenter = make_segmenter(settings, config.seed)
    if config.model.get("weights"):
        load_released(segmenter, config.model.weights)
    elif not settings.visual.trainable:
        log.warning(
            "config.model.visual is frozen and has random weights: nothing useful can be learnt on top; "
            "give config.model.weights, or set config.model.visual.trainable"
        )
    return segmenter


def load_trained(workdir: str | os.PathLike[str], config: ConfigDict) -> Segmenter:
    """The segmenter of a run's best checkpoint, or of its last where none was judged.

    Frozen weights are not in a checkpoint: they come from the configuration again.

    Raises UserError where the folder holds no checkpoint, or one of another configuration.
    """
    settings = segmenter_config(config)
    trainable, frozen = split(initial_segmenter(config))
    if not Path(workdir).is_dir():
        raise UserError(f"{workdir}: no such folder; give one that `spectralmoe train` wrote")
    with CheckpointStore(Path(workdir), config) as store:
        step = store.best if store.best is not None else store.last
        if step is None:
            raise UserError(f"{workdir}: holds no checkpoint yet; train first, or give the folder of a run")
        trainable = store.restore_params(step, trainable)
    return join(abstract_segmenter(settings), trainable, frozen)


def make_predict(segmenter: Segmenter) -> Callable[[np.ndarray], np.ndarray]:
    """Raw tiles (B, T, T, C) -> scores (B, T, T, classes) float32, compiled once a shape."""
    trainable, frozen = split(segmenter)
    structure = segmenter

    @jax.jit
    def scores(trainable, frozen, pixels):
        return join(structure, trainable, frozen).scores(pixels)

    return lambda pixels: np.asarray(scores(trainable, frozen, pixels))
