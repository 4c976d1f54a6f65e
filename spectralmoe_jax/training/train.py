"""`spectralmoe train`: from a configuration and a folder to a trained model in that folder.

`train` checks the configuration and the folder, builds the experiment (`build_experiment`: data, model, loss,
batches, evaluation), and runs it (`run_experiment`: folder, checkpoints, `loop.fit`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from flax import traverse_util
from jax.experimental import multihost_utils

from data_pipelines.loader import interleave, schedule
from data_pipelines.sources import resolve_run_wavelengths
from data_pipelines.splits import Splits, absent_classes, open_splits, training_batches, training_pixels
from spectralmoe_jax.checkpoints.same_model import describe_differences, model_part
from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.config.given import flatten
from spectralmoe_jax.config.load import Configuration, as_run_config
from spectralmoe_jax.config.model import Mask2FormerConfig
from spectralmoe_jax.config.schema import BALANCED, MAIN, RunConfig, StatedValues, TrainConfig
from spectralmoe_jax.config.stored import CONFIG_FILE, read_run_given, save_config
from spectralmoe_jax.errors import UserError, bad_value
from spectralmoe_jax.escapes import printable
from spectralmoe_jax.evaluation.metrics import Tally, held_out_scores, tally_split
from spectralmoe_jax.host_memory import keep_freed_memory
from spectralmoe_jax.inference.predict_step import checked_batches, make_scores
from spectralmoe_jax.inference.segmenter_weights import initial_segmenter
from spectralmoe_jax.models.build import abstract_segmenter, for_sensor, segmenter_config
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.one_writer import one_writer, require_free
from spectralmoe_jax.parallel import Layout
from spectralmoe_jax.parallel.distributed import gather_values, require_agreement
from spectralmoe_jax.parallel.mesh import print_devices, training_layout
from spectralmoe_jax.parameters import leaves, split
from spectralmoe_jax.training.loop import Experiment, fit, prefetch
from spectralmoe_jax.training.probe_start import make_probe_start
from spectralmoe_jax.training.step import make_loss, make_stream_loss
from spectralmoe_jax.training.trackers import Trackers, check_trackers


def train(config: Configuration, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Train the model of a configuration; a repeated call resumes from the last checkpoint.

    Args:
      config: a configuration in any form of `config.load.Configuration`.
      workdir: folder of the run. It gets `config.json`, `metrics.jsonl`, `tensorboard/` and `checkpoints/`.
        The configuration there also has the wavelengths that the files state, where the model needs them.

    Returns:
      `{"step": steps done, "best": step of the best checkpoint or None, "workdir": str}`.

    Raises:
      UserError: a bad configuration, bad data, or a folder that holds a run of another model.
      OSError: the folder cannot be written.
    """
    # 1. configuration, devices and folder, before anything slow
    run = as_run_config(config)
    require_agreement(flatten(run.given))
    layout = training_layout(run)
    print_devices(layout)
    check_workdir(run, workdir)
    check_trackers(run.train.trackers)

    # 2. data and model
    run = resolve_run_wavelengths(run)
    experiment = build_experiment(run, layout)

    run = with_values(run, experiment.values)

    # 3. training
    return run_experiment(experiment, run, workdir)


def with_values(config: RunConfig, values: Mapping[str, StatedValues]) -> RunConfig:
    """Return the configuration of a run that keeps how the images of each stream store their values."""
    prefixes = {name: "" if name == MAIN else f"streams.{name}." for name in values}
    return config.replaced(
        {f"{prefixes[name]}stated_values": dataclasses.asdict(found) for name, found in values.items()}
    )


def check_workdir(config: RunConfig, workdir: str | os.PathLike[str]) -> None:
    """Check that a run may use this folder, without writing to it.

    Raises:
      UserError: the folder holds a run of another model (names the differing keys), or another process trains
        there.
      OSError: the folder cannot be made or written.
    """
    workdir = Path(workdir).absolute()
    existing = next(place for place in (workdir, *workdir.parents) if place.exists())
    if not existing.is_dir():
        raise NotADirectoryError(20, "is a file, not a folder", str(existing))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(13, "cannot be written", str(existing))
    if jax.process_count() == 1:
        require_free(workdir)
    if not (workdir / CONFIG_FILE).exists():
        return
    differing = describe_differences(model_part(read_run_given(workdir)), model_part(config.given))
    if differing:
        raise UserError(
            f"{workdir} holds a run of another configuration: {differing}; choose another --workdir"
        )


def build_experiment(config: RunConfig, layout: Layout | None = None) -> Experiment:
    """Open the data and make the model of a configuration.

    Args:
      config: a run's configuration.
      layout: mesh to shard the model over; None for one device.

    Raises:
      UserError: names the key or file that is wrong.
    """
    # 1. structure of the model for each stream's bands, without weights
    configs = config.every_stream
    structures = {name: abstract_segmenter(segmenter_config(stream)) for name, stream in configs.items()}
    for stream in configs.values():
        check_sizes(stream)

    # 2. data
    splits = {name: open_splits(stream) for name, stream in configs.items()}
    _check_selection(config.train, splits)
    for name, stream in configs.items():
        _print_absent_classes(name, stream, splits[name])

    # 3. weights: one set of trainable parameters for all streams, frozen ones by stream
    segmenter = initial_segmenter(config, layout)
    trainable, frozen = split(segmenter)
    frozen_by_stream = {MAIN: frozen}
    trained = traverse_util.flatten_dict(trainable)
    for name, stream in config.streams.items():
        # a group of bands that only this stream has is frozen, although its kind trains
        own = leaves(_segmenter_of(segmenter, name, stream))
        rest = {path: leaf for path, leaf in own.items() if path not in trained}
        frozen_by_stream[name] = traverse_util.unflatten_dict(rest)

    # 4. batches and loss
    shard = (0, 1) if layout is None else layout.process_shard()

    def batches_of(name: str, start: int, streams: Mapping[str, RunConfig] = configs) -> Iterator[Any]:
        """Draw this process's part of a stream's batches, from number `start` on."""
        batches = training_batches(streams[name], splits[name], start, *shard)
        return checked_batches(batches, structures[name].config)

    def mixed_batches(start: int, streams: Mapping[str, RunConfig] = configs) -> Iterator[Any]:
        """Draw batches of all streams by their weights, from number `start` on."""
        weights = {name: stream.weight for name, stream in streams.items()}
        return interleave(weights, functools.partial(batches_of, streams=streams), start)

    settings = config.loss
    if settings.class_weights == BALANCED:
        pixels = [training_pixels(configs[name], splits[name]).tolist() for name in configs]
        settings = settings.balanced([sum(of_class) for of_class in zip(*pixels, strict=True)])
    several = len(configs) > 1
    terms = (settings, config.train.steps)
    loss = make_stream_loss(structures, *terms) if several else make_loss(structures[MAIN], *terms)

    # 5. scores on the held-out images, which choose the best checkpoint
    evaluate = make_evaluation(config, splits, structures, frozen_by_stream, layout)

    # 6. start of the head
    prepare = None
    if config.train.head_start == "probe":
        weights = settings.weight_of_each_class
        # in batches of the size that goes through the model at once
        single = {name: stream.replaced({"train.accumulate": 1}) for name, stream in configs.items()}
        batches = functools.partial(mixed_batches, streams=single)
        prepare = make_probe_start(
            structures, frozen_by_stream, batches, config.train, layout, class_weights=weights
        )

    return Experiment(
        trainable=trainable,
        frozen=frozen_by_stream if several else frozen,
        loss_fn=loss,
        make_batches=mixed_batches if several else functools.partial(batches_of, MAIN),
        batch_size=config.train.images_per_step,
        evaluate=evaluate,
        prepare=prepare,
        selection_metric=config.train.selection,
        rules=segmenter.optimizer_rules,
        layout=layout,
        name_pixels=functools.partial(_name_pixels, configs, splits, shard),
        values={name: part.values for name, part in splits.items() if part.values is not None},
    )


def _name_pixels(
    configs: Mapping[str, RunConfig], splits: Mapping[str, Splits], shard: tuple[int, int], step: int
) -> str:
    """Name the most extreme pixels of this process's part of a batch, or none; see `extreme_pixels`."""
    from data_pipelines.extreme_pixels import extreme_pixels

    name, number = MAIN, step
    if len(configs) > 1:
        plan = schedule({stream: config.weight for stream, config in configs.items()})
        name, number = next(itertools.islice(plan, step, None))
    return extreme_pixels(configs[name], splits[name], number, *shard)


def _print_absent_classes(name: str, config: RunConfig, splits: Splits) -> None:
    """Print which classes have no labelled pixel to be trained on, on host 0."""
    absent = absent_classes(config, splits)
    if absent and jax.process_index() == 0:
        place = "config.data.source" if name == MAIN else f"config.streams.{name}.data.source"
        said = f"{place} has no labelled pixel of {', '.join(absent)}: the model cannot learn it"
        print(printable(said), flush=True)


def _check_selection(settings: TrainConfig, splits: Mapping[str, Splits]) -> None:
    """Check that the held-out images have the scores that the settings ask for.

    Raises:
      UserError: they do not; names the key.
    """
    if settings.patience is not None and not splits[MAIN].holdout:
        must = "needs held-out images: set config.data.holdout or config.data.holdout_domains"
        raise bad_value("config.train.patience", settings.patience, must)
    domains = {(name, record.domain) for name, part in splits.items() for record in part.holdout}
    if settings.selection == "mean_miou" and len(domains) < 2:
        must = f"needs held-out images of several source domains, not of {len(domains)}: choose miou"
        raise bad_value("config.train.selection", settings.selection, must)
    if settings.selection == "mean_miou" and not splits[MAIN].holdout:
        must = "needs held-out images of the run's own stream: set config.data.holdout, or choose miou"
        raise bad_value("config.train.selection", settings.selection, must)


def check_sizes(config: RunConfig) -> None:
    """Check before the run that training tiles and windows consist of whole patches, enough for the head.

    Raises:
      UserError: a side is not a multiple of the patch size, or so small that a map of Mask2Former would have
        no pixel; names the key.
    """
    patch, head = config.model.visual.patch_size, config.model.head
    coarsest = min(head.scales) if isinstance(head, Mask2FormerConfig) else 1.0
    for key, side in (
        ("config.data.crop", config.data.crop),
        ("config.evaluate.window", config.evaluate.window),
    ):
        if side % patch:
            must = f"must be a multiple of config.model.visual.patch_size = {patch}"
            raise bad_value(key, side, must)
        visual, window = config.model.visual, config.model.visual.window
        divides = visual.window_overlap or side // patch <= window or side // patch % window == 0
        if visual.kind == "galileo" and not divides:
            must = f"must be at most {window * patch}, a window of config.model.visual, or a multiple of it"
            raise bad_value(key, side, must)
        if int(side // patch * coarsest) < 1:  # as `resize_by_scale` computes it
            least = next(n for n in itertools.count(1) if int(n * coarsest) >= 1)
            must = f"must be at least {least * patch}: {least} patches are one pixel of the map with scale "
            raise bad_value(key, side, f"{must}{coarsest} in config.model.head.scales")


def _segmenter_of(segmenter: Segmenter, name: str, config: RunConfig) -> Segmenter:
    """Return the segmenter for the bands of a stream, sharing the parameters of the main segmenter."""
    try:
        return for_sensor(segmenter, segmenter_config(config))
    except UserError as problem:
        raise UserError(f"config.streams.{name}: {problem}") from None


def make_evaluation(
    config: RunConfig,
    splits: Mapping[str, Splits],
    structures: Mapping[str, Segmenter],
    frozen: Mapping[str, Any],
    layout: Layout | None = None,
) -> Callable[[Any], Mapping[str, float]] | None:
    """Make a function from trainable parameters to the `held_out_scores` of all streams.

    Args:
      config: the run's configuration.
      splits: the images of each stream.
      structures: a segmenter for the bands of each stream, read for its structure only.
      frozen: the frozen parameters of each stream.
      layout: mesh to shard the model over; None for one device.

    Returns:
      The function; None if the run's own stream holds no images out.
    """
    if not splits[MAIN].holdout:
        return None
    configs = {name: stream for name, stream in config.every_stream.items() if splits[name].holdout}
    scores = {name: make_scores(structures[name], layout) for name in configs}

    def tally(name: str, trainable: Any) -> Tally:
        """Count the held-out images of a stream."""
        predict = functools.partial(scores[name], trainable, frozen[name])
        return tally_split(configs[name], splits[name], "holdout", predict)

    return lambda trainable: held_out_scores({name: tally(name, trainable) for name in configs})


def run_experiment(
    experiment: Experiment, config: RunConfig, workdir: str | os.PathLike[str]
) -> dict[str, Any]:
    """Train an experiment with a configuration's `seed` and `train`.

    With several hosts, all of them call this with one shared folder; host 0 alone writes the logs.

    Args:
      experiment: model, loss, data and evaluation.
      config: the run's configuration.
      workdir: a folder that `check_workdir` accepts.

    Returns:
      As in `train`.
    """
    if jax.default_backend() == "cpu":
        keep_freed_memory(one_heap=False)
    workdir = Path(workdir)

    # 1. draw one batch before a new folder is made: bad data leaves no folder behind
    if not (workdir / CONFIG_FILE).exists():
        with contextlib.closing(prefetch(experiment.make_batches(0), ahead=1)) as batches:
            next(batches)

    # 2. folder; its configuration is replaced once the last checkpoint is restored, so that a run that is
    # refused keeps its own, and before the first one is saved
    workdir.mkdir(parents=True, exist_ok=True)

    def save_configuration() -> None:
        """Write the configuration on host 0."""
        if jax.process_index() == 0:
            _print_changes(config, workdir)
            save_config(config, workdir / CONFIG_FILE)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("configuration saved")

    # 3. the loop
    trackers = Trackers(config.train.trackers if jax.process_index() == 0 else (), workdir, config)
    with _held(workdir), CheckpointStore(workdir, config, experiment.selection_metric) as store:
        key = jax.random.key(config.seed)
        step = fit(experiment, config.train, key, store, workdir, trackers, save_configuration)
        return {"step": step, "best": store.best, "workdir": str(workdir)}


@contextlib.contextmanager
def _held(workdir: Path) -> Iterator[None]:
    """Keep other runs out of a folder inside the block; process 0 holds it for all of a run.

    Raises:
      UserError: another run trains there; in every process.
    """
    with contextlib.ExitStack() as stack:
        problem = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(one_writer(workdir, "trains"))
            except (UserError, OSError) as error:
                problem = error if jax.process_count() == 1 else UserError(str(error))
        if jax.process_count() > 1 and (said := gather_values({"problem": problem and str(problem)})[0]):
            problem = UserError(said["problem"]) if said["problem"] else None
        if problem is not None:
            raise problem
        yield


def _print_changes(config: RunConfig, workdir: Path) -> None:
    """Print which keys differ from the configuration that the folder holds."""
    if (workdir / CONFIG_FILE).exists():
        changes = describe_differences(flatten(read_run_given(workdir)), flatten(config.given))
        if changes:
            print(printable(f"resuming with a changed configuration: {changes}"), flush=True)
