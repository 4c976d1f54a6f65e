"""A trained model, ready to predict, from the folder of its run."""

from __future__ import annotations

import logging
import os
import pathlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from spectralmoe_jax.checkpoints.encoder_file import read_encoder
from spectralmoe_jax.checkpoints.released import ENCODERS, is_segmenter, part_of, parts_of, stream_segmenter
from spectralmoe_jax.checkpoints.sources import open_source
from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.build import abstract_segmenter, random_leaves, segmenter_config
from spectralmoe_jax.models.encoder import EncoderConfig
from spectralmoe_jax.models.segmenter import Segmenter, SegmenterConfig
from spectralmoe_jax.models.state import Path, join, leaves, split, with_values
from spectralmoe_jax.parallel import Layout
from spectralmoe_jax.parallel.layout import put

log = logging.getLogger(__name__)


def initial_segmenter(config: ConfigDict, layout: Layout | None = None) -> Segmenter:
    """The segmenter a run starts from.

    Weights come from `config.model.weights` (a segmenter or parts of one; several files separated by commas,
    as a backbone and the checkpoint trained on it), `config.model.visual.weights` and
    `config.model.depth.weights`; see `sources.open_source` for what each may be. Whatever none of them holds
    is random; a warning says so where it is frozen. Files are read leaf by leaf: there is one copy in memory.
    With a layout every leaf goes where it belongs as soon as it is read, and is made there if it is random.

    Raises UserError naming the key or file that is wrong, or the two that hold the same part.
    """
    settings = segmenter_config(config)
    abstract = abstract_segmenter(settings)
    return with_values(abstract, _initial_values(config, settings, leaves(abstract), layout=layout))


def _initial_values(
    config: ConfigDict,
    settings: SegmenterConfig,
    abstract: dict,
    known: Collection[Path] = (),
    layout: Layout | None = None,
) -> dict[Path, jax.Array]:
    """Every leaf but the `known` ones, which come from elsewhere."""
    values: dict[Path, jax.Array] = {}
    shardings = None if layout is None else layout.of_parameters(abstract)
    for stream in _streams(config, settings, {path: tuple(leaf.shape) for path, leaf in abstract.items()}):
        for path, value in stream:
            if path not in known:
                leaf = np.asarray(value, abstract[path].dtype)
                values[path] = jax.numpy.asarray(leaf) if shardings is None else put(leaf, shardings[path])
    missing = abstract.keys() - values.keys() - set(known)
    _report_random(config, settings, {part_of(path) for path in missing})
    return values | random_leaves(settings, config.seed, missing, shardings)


def _streams(
    config: ConfigDict, settings: SegmenterConfig, shapes: dict[Path, tuple[int, ...]]
) -> Iterator[Iterator[tuple[Path, np.ndarray]]]:
    """The leaves of every file that the configuration names, one file after the other."""
    filled: dict[str, str] = {}  # part -> the key and file that fill it
    for key, spec, encoder in _specs(config, settings):
        source = open_source(spec)
        parts = {encoder.name} if encoder else parts_of(source)
        if not encoder and not is_segmenter(source):
            raise UserError(
                f"{key} = {spec}: holds no part of a segmenter; give an encoder's weights as "
                "config.model.visual.weights or config.model.depth.weights"
            )
        for part in parts:
            if part in filled:
                raise UserError(
                    f"{key} = {spec} holds the {part} part, which {filled[part]} holds too: give one"
                )
            filled[part] = f"{key} = {spec}"
        if encoder and not is_segmenter(source):
            root = ENCODERS[encoder.name][1]
            yield (((*root, *path), leaf) for path, leaf in read_encoder(source, encoder))
        else:
            yield stream_segmenter(source, settings, shapes, parts)


def _specs(config: ConfigDict, settings: SegmenterConfig) -> Iterator[tuple[str, str, EncoderConfig | None]]:
    """(key, file, the encoder that the key is for) of everything that is to be read."""
    given = config.model.get("weights") or ()
    for spec in given.split(",") if isinstance(given, str) else given:
        yield "config.model.weights", spec.strip(), None
    for encoder in (settings.visual, settings.depth if settings.adapter.use_depth else None):
        if encoder is not None and config.model[encoder.name].get("weights"):
            yield f"config.model.{encoder.name}.weights", config.model[encoder.name].weights, encoder


def _report_random(config: ConfigDict, settings: SegmenterConfig, parts: set[str]) -> None:
    for encoder in (settings.visual, settings.depth):
        if encoder is None or encoder.trainable or encoder.name not in parts:
            continue
        if config.model.get("weights"):
            raise UserError(
                f"config.model.weights = {config.model.weights} does not hold the {encoder.name} encoder, "
                f"which is frozen: give config.model.{encoder.name}.weights, or the merged backbone file "
                "before it, as in config.model.weights=BACKBONE,CHECKPOINT"
            )
        log.warning(
            "config.model.%s is frozen and has random weights: nothing useful can be learnt on top; "
            "give config.model.%s.weights, or set config.model.%s.trainable",
            *[encoder.name] * 3,
        )


def load_trained(
    workdir: str | os.PathLike[str], config: ConfigDict, layout: Layout | None = None
) -> Segmenter:
    """The segmenter of a run's best checkpoint, or of its last where none was judged, spread by a layout.

    Frozen weights are not in a checkpoint: they come from the configuration again.

    Raises UserError where the folder holds no checkpoint, or one of another configuration.
    """
    settings = segmenter_config(config)
    abstract = abstract_segmenter(settings)
    trainable, _ = split(abstract)
    if layout is not None:
        trainable = jax.tree.map(_placed, trainable, layout.of_parameters(trainable))
    if not pathlib.Path(workdir).is_dir():
        raise UserError(f"{workdir}: no such folder; give one that `spectralmoe train` wrote")
    with CheckpointStore(pathlib.Path(workdir), config) as store:
        step = store.best if store.best is not None else store.last
        if step is None:
            raise UserError(f"{workdir}: holds no checkpoint yet; train first, or give the folder of a run")
        trainable = store.restore_params(step, trainable)
    frozen = _initial_values(
        config, settings, leaves(abstract), traverse_util.flatten_dict(trainable), layout
    )
    return with_values(abstract, frozen | traverse_util.flatten_dict(trainable))


def _placed(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def make_predict(segmenter: Segmenter, layout: Layout | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """Raw tiles (B, T, T, C) -> scores (B, T, T, classes) float32, compiled once a shape.

    With a layout the tiles are spread over its devices; several hosts all give the same tiles and get all
    scores.
    """
    trainable, frozen = split(segmenter)
    scores = make_scores(segmenter, layout)
    return lambda pixels: scores(trainable, frozen, pixels)


def make_scores(
    structure: Segmenter, layout: Layout | None = None
) -> Callable[[Any, Any, np.ndarray], np.ndarray]:
    """(trainable, frozen, tiles) -> scores, as `make_predict`; `structure` may be abstract."""

    def scores(trainable: Any, frozen: Any, pixels: jax.Array) -> jax.Array:
        return join(structure, trainable, frozen).scores(pixels)

    if layout is None:
        compiled = jax.jit(scores)
        return lambda trainable, frozen, pixels: np.asarray(compiled(trainable, frozen, pixels))
    spread = jax.jit(layout.traced(scores), out_shardings=layout.sharding())
    where, parts = layout.sharding(("batch", None, None, None)), layout.size("batch")

    def padded(trainable: Any, frozen: Any, pixels: np.ndarray) -> np.ndarray:
        missing = -len(pixels) % parts
        filled = np.pad(pixels, ((0, missing), (0, 0), (0, 0), (0, 0)), mode="edge")
        return np.asarray(spread(trainable, frozen, put(filled, where)))[: len(pixels)]

    return padded
