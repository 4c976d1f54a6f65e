"""Load the initial or the trained segmenter of a run, and make its predict step.

`initial_segmenter` and `load_trained` read weights leaf by leaf, so that only one copy is in memory.
`make_predict` and its siblings compile a segmenter into functions from arrays to arrays.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import pathlib
from collections.abc import Callable, Collection, Generator, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.config.load import CONFIG_FILE, read_run_config
from spectralmoe_jax.config.model import EncoderConfig, split_files
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.sliding_window import Predict, RoutedStep
from spectralmoe_jax.models.build import abstract_segmenter, random_leaves, segmenter_config
from spectralmoe_jax.models.encoders.galileo import describe_inputs, require_reflectance
from spectralmoe_jax.models.segmenter import Segmenter, SegmenterConfig
from spectralmoe_jax.parallel import Layout
from spectralmoe_jax.parallel.mesh import put
from spectralmoe_jax.parameters import Path, join, leaves, split, with_values
from spectralmoe_jax.weights.encoder_file import read_encoder
from spectralmoe_jax.weights.formats import EncoderFile, recognise
from spectralmoe_jax.weights.reading import WeightFile, open_weight_file
from spectralmoe_jax.weights.released import (
    ENCODERS,
    encoders_of,
    is_segmenter,
    part_of,
    parts_of,
    stream_segmenter,
)

log = logging.getLogger(__name__)


def initial_segmenter(config: RunConfig, layout: Layout | None = None) -> Segmenter:
    """Make the segmenter that a run starts from.

    Weights come from `config.model.weights` (a segmenter or parts of one; several files separated by commas,
    such as a backbone and the checkpoint trained on it), `config.model.visual.weights` and
    `config.model.depth.weights`; see `weights.reading.open_weight_file` for their formats. Weights that no
    file holds are random, with a warning if they are frozen.

    Args:
      config: the run's configuration.
      layout: mesh to shard the weights over: each leaf is placed on its devices as soon as it is read, or
        created there if it is random. None for one device.

    Raises:
      UserError: names the key or file that is wrong, or the two files that hold the same part.
    """
    settings = segmenter_config(config)
    if settings.visual.kind == "galileo":
        stated = config.acquisition_of_files
        is_known = bool(config.model.visual.month or (stated and stated.month))
        log.info(describe_inputs(settings.visual, is_month_known=is_known))
    abstract = abstract_segmenter(settings)
    opened = open_weights(config, settings, _shapes(abstract))
    stream = _every_leaf(config, settings, abstract, opened, layout=layout)
    return with_values(abstract, _on_device(stream, abstract, layout))


class TrainedRun(NamedTuple):
    """A run's best checkpoint, whose frozen weights are not read yet.

    Attributes:
      settings: structure of the segmenter.
      step: step of the checkpoint.
      opened: files of its frozen weights.
      stream: path and array of every leaf of the segmenter; frozen ones are read on demand.
    """

    settings: SegmenterConfig
    step: int
    opened: list[OpenedWeights]
    stream: Iterator[tuple[Path, Any]]


def load_trained(
    workdir: str | os.PathLike[str], config: RunConfig, layout: Layout | None = None
) -> Segmenter:
    """Load the segmenter of a run's best checkpoint, or of its last one if none has a score.

    A checkpoint holds no frozen weights: they are read again from the files that the configuration names. The
    wavelengths that the run's files stated are used if `config` has the same bands and sensor.

    Args:
      workdir: folder of the run.
      config: the run's configuration.
      layout: mesh to shard the weights over; None for one device.

    Raises:
      UserError: the folder holds no checkpoint, or one of another configuration.
    """
    trained = open_trained(workdir, config, layout)
    abstract = abstract_segmenter(trained.settings)
    return with_values(abstract, _on_device(trained.stream, abstract, layout))


def open_trained(
    workdir: str | os.PathLike[str], config: RunConfig, layout: Layout | None = None
) -> TrainedRun:
    """Open what `load_trained` loads, without reading the frozen weights.

    Raises:
      UserError: as in `load_trained`.
    """
    # 1. the structure
    if (pathlib.Path(workdir) / CONFIG_FILE).is_file():
        config = config.with_statements_of_run(read_run_config(workdir))
    settings = segmenter_config(config)
    abstract = abstract_segmenter(settings)
    trainable, _ = split(abstract)
    if layout is not None:
        trainable = layout.shapes(trainable)
    if not pathlib.Path(workdir).is_dir():
        raise UserError(f"{workdir}: no such folder; give one that `spectralmoe train` wrote")

    # 2. frozen weights, from files
    opened = open_weights(config, settings, _shapes(abstract))
    known = traverse_util.flatten_dict(trainable)
    frozen = _every_leaf(config, settings, abstract, opened, known, layout)

    # 3. trainable weights, from the checkpoint
    with CheckpointStore(pathlib.Path(workdir), config) as store:
        step = store.best if store.best is not None else store.last
        if step is None:
            raise UserError(f"{workdir}: holds no checkpoint yet; train first, or give the folder of a run")
        trainable = store.restore_params(step, trainable)
    restored = traverse_util.flatten_dict(trainable)
    return TrainedRun(settings, step, opened, itertools.chain(_drain(restored), frozen))


def _drain(values: dict[Path, Any]) -> Iterator[tuple[Path, Any]]:
    """Yield the items, freeing each."""
    for path in list(values):
        yield path, values.pop(path)


def make_predict(segmenter: Segmenter, layout: Layout | None = None) -> Predict:
    """Make a predictor: raw tiles (B, S, S, bands) -> scores (B, S, S, C) float32, compiled once per shape.

    Args:
      segmenter: segmenter with weights.
      layout: mesh to shard the tiles over; all hosts pass the same tiles and get all scores. None for one
        device.
    """
    trainable, frozen = split(segmenter)
    scores = make_scores(segmenter, layout)
    return lambda pixels: scores(trainable, frozen, pixels)


def make_routed_step(segmenter: Segmenter, layout: Layout | None = None) -> RoutedStep:
    """Make a predictor that also returns each token's strongest expert.

    Arguments are those of `make_predict`. Experts are (L, J, B, N) int32, with J = 0 if the adapter has none.
    """
    trainable, frozen = split(segmenter)
    step = _spread(make_predict_step(segmenter, layout), layout, segmenter.config)

    def routed(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predict scores (B, S, S, C) and experts (L, J, B, N) of tiles (B, S, S, bands)."""
        scores, experts = step(trainable, frozen, pixels)
        if experts is None:
            experts = np.zeros((1, 0, len(pixels), 1), np.int32)
        return np.asarray(scores)[: len(pixels)], np.asarray(experts)[:, :, : len(pixels)]

    return routed


def make_scores(
    structure: Segmenter, layout: Layout | None = None
) -> Callable[[Any, Any, np.ndarray], np.ndarray]:
    """Make a function (trainable, frozen, tiles) -> scores; see `make_predict`.

    Args:
      structure: read for its structure only; may be abstract.
      layout: as in `make_predict`.
    """
    step = _spread(make_predict_step(structure, layout), layout, structure.config)
    return lambda trainable, frozen, pixels: np.asarray(step(trainable, frozen, pixels)[0])[: len(pixels)]


def _spread(step: Any, layout: Layout | None, settings: SegmenterConfig) -> Any:
    """Wrap a step so that it checks its tiles and shards them over a layout, padded with the last tile."""
    if layout is None:
        return checked(step, settings)
    sharding, parts = layout.sharding(("batch", None, None, None)), layout.size("batch")

    def padded(trainable: Any, frozen: Any, pixels: np.ndarray) -> Any:
        """Pad the tiles to a multiple of the number of devices, and predict."""
        missing = -len(pixels) % parts
        filled = np.pad(pixels, ((0, missing), (0, 0), (0, 0), (0, 0)), mode="edge")
        return step(trainable, frozen, put(filled, sharding))

    return checked(padded, settings)


def checked(step: Any, settings: SegmenterConfig) -> Any:
    """Wrap a step so that its first tiles with data are checked to be what the encoder needs."""
    told = False

    def check_first(trainable: Any, frozen: Any, pixels: np.ndarray) -> Any:
        """Check until some tiles tell, and predict."""
        nonlocal told
        told = told or check_pixels(settings, pixels)
        return step(trainable, frozen, pixels)

    return check_first


def check_pixels(settings: SegmenterConfig, pixels: np.ndarray) -> bool:
    """Check that stored pixels are what the encoder needs: reflectance, for galileo.

    Args:
      settings: structure of the segmenter.
      pixels: tiles as stored, (B, S, S, bands).

    Returns:
      Whether the pixels tell; False if most hold no data.

    Raises:
      UserError: they cannot be what the encoder needs.
    """
    if settings.visual.kind != "galileo":
        return True
    return require_reflectance(np.asarray(pixels), settings.pixel_mean[0], settings.pixel_std[0])


def checked_batches(batches: Generator[Any], settings: SegmenterConfig) -> Generator[Any]:
    """Yield training batches; the first one with data is checked as by `check_pixels`."""
    told = False
    with contextlib.closing(batches):
        for batch in batches:
            told = told or check_pixels(settings, batch["image"])
            yield batch


def make_predict_step(structure: Segmenter, layout: Layout | None = None) -> Any:
    """Make the jitted step (trainable, frozen, tiles) -> (scores, experts (L, J, B, N) or None).

    With a layout, tiles are sharded over it and results are replicated. Segmenters with equal settings share
    the step, so that a process that trains, evaluates and maps compiles it once per shape.
    """
    try:
        return _predict_step(structure.config, layout)
    except TypeError:  # the settings of a user's own adapter may not be hashable
        return _predict_step.__wrapped__(structure.config, layout)


@functools.lru_cache(maxsize=4)
def _predict_step(settings: SegmenterConfig, layout: Layout | None) -> Any:
    structure = abstract_segmenter(settings)

    def scores(trainable: Any, frozen: Any, pixels: jax.Array) -> Any:
        """Predict with the given weights."""
        return join(structure, trainable, frozen).scores_and_experts(pixels)

    if layout is None:
        return jax.jit(scores)
    return jax.jit(layout.traced(scores), out_shardings=layout.sharding())


class OpenedWeights(NamedTuple):
    """A weight file, checked against a configuration and not yet read.

    Attributes:
      file: the file.
      parts: parts of the segmenter that it fills, named as in `released.PARTS`.
      encoders: the encoders among them, as the file holds them.
      whole: whether the file holds a segmenter or parts of one, and not just an encoder.
      stream: path and array of its leaves, each read on demand.
    """

    file: WeightFile
    parts: set[str]
    encoders: dict[str, EncoderFile]
    whole: bool
    stream: Iterator[tuple[Path, np.ndarray]]


def open_weights(
    config: RunConfig, settings: SegmenterConfig, shapes: dict[Path, tuple[int, ...]]
) -> list[OpenedWeights]:
    """Open every weight file that a configuration names.

    Args:
      config: the run's configuration.
      settings: structure of the segmenter.
      shapes: shapes of all its leaves, by path.

    Raises:
      UserError: a file does not fit the segmenter, or two files hold the same part.
    """
    opened: list[OpenedWeights] = []
    filled: dict[str, str] = {}  # part -> the key and file that fill it
    for key, spec, encoder in _specs(config, settings):
        opened.append(_open(key, spec, encoder, settings, shapes))
        for part in opened[-1].parts:
            if part in filled:
                raise UserError(
                    f"{key} = {spec} holds the {part} part, which {filled[part]} holds too: give one"
                )
            filled[part] = f"{key} = {spec}"
    return opened


def _specs(config: RunConfig, settings: SegmenterConfig) -> Iterator[tuple[str, str, EncoderConfig | None]]:
    """Yield key, file, and the encoder that the key is for (if any), of every weight file to read."""
    for spec in split_files(config.model.weights):
        yield "config.model.weights", spec, None
    for encoder in (settings.visual, settings.depth if settings.uses_depth else None):
        if encoder is not None and (weights := getattr(config.model, encoder.name).weights):
            yield f"config.model.{encoder.name}.weights", weights, encoder


def _open(
    key: str,
    spec: str,
    encoder: EncoderConfig | None,
    settings: SegmenterConfig,
    shapes: dict[Path, tuple[int, ...]],
) -> OpenedWeights:
    file = open_weight_file(spec)
    if is_segmenter(file):
        parts = {encoder.name} if encoder else parts_of(file)
        found = encoders_of(file, settings, parts)
        return OpenedWeights(file, parts, found, True, stream_segmenter(file, settings, shapes, parts))
    if encoder is None:
        raise UserError(
            f"{key} = {spec}: holds no part of a segmenter; give an encoder's weights as "
            "config.model.visual.weights or config.model.depth.weights"
        )
    root = ENCODERS[encoder.name][1]
    stream = (((*root, *path), leaf) for path, leaf in read_encoder(file, encoder))
    found = {encoder.name: recognise(file, kind=encoder.kind)}
    return OpenedWeights(file, {encoder.name}, found, False, stream)


def _every_leaf(
    config: RunConfig,
    settings: SegmenterConfig,
    abstract: Segmenter,
    opened: list[OpenedWeights],
    known: Collection[Path] = (),
    layout: Layout | None = None,
) -> Iterator[tuple[Path, Any]]:
    """Return all leaves except the `known` ones: first those in files, then random ones.

    Raises:
      UserError: none of the given files holds a frozen part; raised before anything is read.
    """
    # 1. leaves that no file holds; a frozen part among them is an error or a warning
    filled = {part for file in opened for part in file.parts}
    missing = [path for path in leaves(abstract) if path not in known and part_of(path) not in filled]
    frozen = {part_of(path) for path in traverse_util.flatten_dict(split(abstract)[1]) if _is_kernel(path)}
    _check_frozen_weights(config, settings, {part_of(path) for path in missing} & frozen)
    # 2. leaves of the files, then random ones
    read = ((path, value) for file in opened for path, value in file.stream if path not in known)
    shardings = None if layout is None else layout.parameter_shardings(leaves(abstract))
    return itertools.chain(read, _random(settings, config.seed, missing, shardings))


def _random(
    settings: SegmenterConfig, seed: int, missing: Collection[Path], shardings: Any
) -> Iterator[tuple[Path, Any]]:
    """Yield random leaves, created only when the first is requested: after the files are read."""
    yield from random_leaves(settings, seed, missing, shardings).items()


def _is_kernel(path: Path) -> bool:
    """Return whether a path is a weight of an encoder's blocks, which are frozen or trained together."""
    return "blocks" in path and path[-1] == "kernel"


def _check_frozen_weights(config: RunConfig, settings: SegmenterConfig, random_parts: set[str]) -> None:
    """Warn if a frozen encoder has no pretrained weights.

    Raises:
      UserError: `config.model.weights` is given and lacks the encoder.
    """
    for encoder in (settings.visual, settings.depth):
        if encoder is None or encoder.name not in random_parts:
            continue
        if config.model.weights:
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


def _shapes(abstract: Segmenter) -> dict[Path, tuple[int, ...]]:
    return {path: tuple(leaf.shape) for path, leaf in leaves(abstract).items()}


def _on_device(
    stream: Iterator[tuple[Path, Any]], abstract: Segmenter, layout: Layout | None
) -> dict[Path, jax.Array]:
    """Put every leaf on its device or devices, in the dtype of the abstract segmenter."""
    wanted = leaves(abstract)
    if layout is None:
        # committed to the device like restored leaves, so that both share compiled programs
        device = jax.local_devices()[0]
        return {
            path: jax.device_put(jax.numpy.asarray(value, wanted[path].dtype), device)
            for path, value in stream
        }
    shardings = layout.parameter_shardings(wanted)
    return {
        path: value
        if isinstance(value, jax.Array)
        else put(np.asarray(value, wanted[path].dtype), shardings[path])
        for path, value in stream
    }
