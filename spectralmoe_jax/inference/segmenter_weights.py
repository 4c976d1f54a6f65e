"""Load a segmenter: as a run starts from, as it was trained, or from the file of a trained one.

Weights are read leaf by leaf, so that only one copy is in memory.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.config.given import Given
from spectralmoe_jax.config.model import EncoderConfig, split_files
from spectralmoe_jax.config.overrides import apply_settings
from spectralmoe_jax.config.own_code import own_code
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.config.stored import CONFIG_FILE, read_run_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.host_memory import physical_memory
from spectralmoe_jax.inference.model_files import carried_configuration, weight_specs, with_weights
from spectralmoe_jax.models.build import abstract_segmenter, random_leaves, segmenter_config
from spectralmoe_jax.models.encoders.galileo import describe_inputs
from spectralmoe_jax.models.segmenter import Segmenter, SegmenterConfig
from spectralmoe_jax.parallel import Layout
from spectralmoe_jax.parallel.mesh import put
from spectralmoe_jax.parameters import Path, leaves, split, with_values
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
    if config.model.weights_head == "new":
        _log_kept_and_fresh(abstract, opened)
    stream = _every_leaf(config, settings, abstract, opened, layout=layout)
    return with_values(abstract, _on_device(stream, abstract, layout))


def _log_kept_and_fresh(abstract: Segmenter, opened: Sequence[OpenedWeights]) -> None:
    """Log the leaves of a segmenter for other classes that files fill, and those that start anew."""
    parts = {part for file in opened for part in file.parts}
    fresh = {path for file in opened for path in file.fresh}
    kept = {path for path in leaves(abstract) if part_of(path) in parts} - fresh
    log.info("kept are %d leaves: %s", len(kept), _names(kept))
    log.info("fresh are %d leaves: %s", len(fresh), _names(fresh))


def load_segmenter(
    model: str | os.PathLike[str], config: RunConfig, layout: Layout | None = None
) -> Segmenter:
    """Load a trained segmenter from the folder of a run, or from weight files that hold all of it.

    Args:
      model: folder of a run; weight files as `weights.reading.open_weight_file` takes them, several
        separated by commas; or a name on the hub.
      config: the configuration. An encoder that the files do not hold is read from the file that it names.
      layout: mesh to shard the weights over; None for one device.

    Raises:
      UserError: the files lack a part of the segmenter, or are of another one; or as in `load_trained`.
    """
    return _read(open_segmenter(model, config, layout), layout)


def open_segmenter(
    model: str | os.PathLike[str], config: RunConfig, layout: Layout | None = None
) -> TrainedSegmenter:
    """Open what `load_segmenter` loads, without reading the weights that files hold.

    Raises:
      UserError: as in `load_segmenter`.
    """
    specs = weight_specs(model)
    if not specs:
        return open_trained(model, config, layout)
    files = [open_weight_file(spec) for spec in specs]
    parts = {part for file in files if is_segmenter(file) for part in parts_of(file)}
    carried = carried_configuration(files)
    config = with_weights(config, specs, parts)
    settings = segmenter_config(config)
    abstract = abstract_segmenter(settings)
    unread = () if carried is None or _has_statistics_of(settings, carried) else _STATISTICS
    opened = open_weights(config, settings, _shapes(abstract), unread)
    _require_whole(model, abstract, opened)
    stream = _every_leaf(config, settings, abstract, opened, layout=layout)
    return TrainedSegmenter(settings, None, opened, stream)


def _require_whole(
    model: str | os.PathLike[str], abstract: Segmenter, opened: Sequence[OpenedWeights]
) -> None:
    """Raise a UserError where weight files lack a part of the segmenter other than its pixel statistics."""
    filled = {part for file in opened for part in file.parts} | {"pixels"}
    missing = sorted({part_of(path) for path in leaves(abstract)} - filled)
    if missing:
        raise UserError(
            f"{model}: holds no {' and no '.join(missing)}: give files that hold all of a trained segmenter, "
            "separated by commas, or those of encoders as --config.model.visual.weights and depth.weights"
        )


class TrainedSegmenter(NamedTuple):
    """A trained segmenter whose weights are not read yet, but for those of a checkpoint.

    Attributes:
      settings: structure of the segmenter.
      step: step of the checkpoint of a run; None for weight files.
      opened: files of its weights; of a run, those of the frozen ones.
      stream: path and array of every leaf of the segmenter, read on demand.
    """

    settings: SegmenterConfig
    step: int | None
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
    return _read(open_trained(workdir, config, layout), layout)


def _read(trained: TrainedSegmenter, layout: Layout | None) -> Segmenter:
    """Read the weights of an opened segmenter onto its devices."""
    abstract = abstract_segmenter(trained.settings)
    return with_values(abstract, _on_device(trained.stream, abstract, layout))


def open_trained(
    workdir: str | os.PathLike[str], config: RunConfig, layout: Layout | None = None
) -> TrainedSegmenter:
    """Open what `load_trained` loads, without reading the frozen weights.

    Raises:
      UserError: as in `load_trained`.
    """
    # 1. the structure
    if (pathlib.Path(workdir) / CONFIG_FILE).is_file():
        stored = read_run_config(workdir, allow_code=True)  # nothing is built from it
        config = config.with_statements_of_run(stored)
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
    return TrainedSegmenter(settings, step, opened, itertools.chain(_drain(restored), frozen))


def _drain(values: dict[Path, Any]) -> Iterator[tuple[Path, Any]]:
    """Yield the items, freeing each."""
    for path in list(values):
        yield path, values.pop(path)


class OpenedWeights(NamedTuple):
    """A weight file, checked against a configuration and not yet read.

    Attributes:
      file: the file.
      parts: parts of the segmenter that it fills, named as in `released.PARTS`.
      encoders: the encoders among them, as the file holds them.
      whole: whether the file holds a segmenter or parts of one, and not just an encoder.
      stream: path and array of its leaves, each read on demand.
      fresh: leaves of its parts that start random instead.
    """

    file: WeightFile
    parts: set[str]
    encoders: dict[str, EncoderFile]
    whole: bool
    stream: Iterator[tuple[Path, np.ndarray]]
    fresh: Collection[Path] = ()


_LEAST_BYTES = 2  # of a weight in the memory
_STATISTICS: tuple[Path, ...] = (("pixel_mean",), ("pixel_std",))


def _has_statistics_of(settings: SegmenterConfig, carried: Given) -> bool:
    """Return whether pixel statistics are those of the configuration that a file carries.

    Others were asked for, by an override or as those of another stream. A configuration that cannot be read
    any more tells nothing. An adapter of one's own, which is not imported for this, has no part in them.
    """
    try:
        given = (
            apply_settings(carried, {"model.adapter": {"kind": "none"}})
            if any(own_code(carried))
            else carried
        )
        stored = segmenter_config(RunConfig.from_given(given))
    except UserError:
        return True
    return (settings.pixel_mean, settings.pixel_std) == (stored.pixel_mean, stored.pixel_std)


def open_weights(
    config: RunConfig,
    settings: SegmenterConfig,
    shapes: dict[Path, tuple[int, ...]],
    unread: Collection[Path] = (),
) -> list[OpenedWeights]:
    """Open every weight file that a configuration names.

    Args:
      config: the run's configuration.
      settings: structure of the segmenter.
      shapes: shapes of all its leaves, by path.
      unread: leaves that are not read from any file.

    Raises:
      UserError: a file does not fit the segmenter, two files hold the same part, or the segmenter does not
        fit into the memory.
    """
    _require_memory(shapes)
    opened: list[OpenedWeights] = []
    filled: dict[str, str] = {}  # part -> the key and file that fill it
    if config.model.weights_head == "new":
        unread = {*unread, *_leaves_of_classes(settings), *_STATISTICS}
    for key, spec, encoder in _specs(config, settings):
        opened.append(_open(key, spec, encoder, settings, shapes, unread))
        for part in opened[-1].parts:
            if part in filled:
                raise UserError(
                    f"{key} = {spec} holds the {part} part, which {filled[part]} holds too: give one"
                )
            filled[part] = f"{key} = {spec}"
    return opened


def _require_memory(shapes: Mapping[Path, tuple[int, ...]]) -> None:
    """Check that the weights of a segmenter fit into the memory of all machines and accelerators of a run.

    Raises:
      UserError: they do not.
    """
    sizes = {path: _LEAST_BYTES * math.prod(shape) for path, shape in shapes.items()}
    needed, most = sum(sizes.values()), physical_memory() * jax.process_count()
    if jax.default_backend() != "cpu":
        stats = jax.local_devices()[0].memory_stats() or {}
        most += stats.get("bytes_limit", 0) * jax.device_count()
    if needed > most:
        largest = max(sizes, key=sizes.__getitem__)
        raise UserError(
            f"config.model: its weights take {needed / 1e9:,.0f} GB or more, {_names([largest])} alone "
            f"{sizes[largest] / 1e9:,.0f}, and the memory has {most / 1e9:,.0f}: choose a smaller model"
        )


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
    unread: Collection[Path],
) -> OpenedWeights:
    """Open a weight file for a key.

    Args:
      key: of the configuration.
      spec: the file.
      encoder: the encoder that the key is for; None for a segmenter.
      settings: structure of the segmenter.
      shapes: shapes of all its leaves, by path.
      unread: leaves that are not read.
    """
    file = open_weight_file(spec)
    if is_segmenter(file):
        parts = {encoder.name} if encoder else parts_of(file)
        found = encoders_of(file, settings, parts)
        fresh = {path for path in unread if part_of(path) in parts}
        stream = stream_segmenter(file, settings, shapes, parts, fresh)
        return OpenedWeights(file, parts, found, True, stream, fresh)
    if encoder is None:
        raise UserError(
            f"{key} = {spec}: holds no part of a segmenter; give an encoder's weights as "
            "config.model.visual.weights or config.model.depth.weights"
        )
    root = ENCODERS[encoder.name][1]
    stream = (((*root, *path), leaf) for path, leaf in read_encoder(file, encoder))
    found = {encoder.name: recognise(file, kind=encoder.kind)}
    return OpenedWeights(file, {encoder.name}, found, False, stream)


def _leaves_of_classes(settings: SegmenterConfig) -> set[Path]:
    """Return the leaves whose shape depends on the number of classes."""
    head = dataclasses.replace(settings.head, num_classes=settings.head.num_classes + 1)
    more = _shapes(abstract_segmenter(dataclasses.replace(settings, head=head)))
    return {path for path, shape in _shapes(abstract_segmenter(settings)).items() if more[path] != shape}


def _names(paths: Collection[Path]) -> str:
    return ", ".join(sorted("/".join(path) for path in paths))


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
    fresh = {path for file in opened for path in file.fresh}
    wanted = [path for path in leaves(abstract) if path not in known]
    missing = [path for path in wanted if part_of(path) not in filled or path in fresh]
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
