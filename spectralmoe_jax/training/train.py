"""From a configuration to what the training loop needs: model, loss, batches, evaluation.

`spectralmoe train`: from a configuration and a folder to a trained model in that folder.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from data_pipelines.splits import Splits, open_splits, training_batches
from data_pipelines.streams import MAIN, interleave, stream_configs, stream_weights
from spectralmoe_jax.adapters.base import hook
from spectralmoe_jax.checkpoints.store import (
    CONFIG_FILE,
    CheckpointStore,
    describe_differences,
    model_part,
    read_run_config,
)
from spectralmoe_jax.configuration import flatten, from_config, load_config, require, save_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.host_memory import keep_freed_memory
from spectralmoe_jax.inference.model import initial_segmenter, make_scores
from spectralmoe_jax.inference.sliding_window import WindowSettings
from spectralmoe_jax.mask2former.loss_settings import LossConfig
from spectralmoe_jax.models.build import abstract_segmenter, for_bands, segmenter_config
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.parallel import Layout
from spectralmoe_jax.parallel.distributed import require_agreement
from spectralmoe_jax.parallel.mesh import print_view, training_layout
from spectralmoe_jax.parameters import split
from spectralmoe_jax.training.loop import Experiment, TrainSettings, fit, prefetch
from spectralmoe_jax.training.step import make_loss, make_stream_loss


def build_experiment(config: ConfigDict, layout: Layout | None = None) -> Experiment:
    """Opens the data and makes the model of a configuration, spread over the devices of a layout.

    Raises:
      UserError: names the key or file that is wrong.
    """
    loss = from_config(LossConfig, config.loss, "loss")
    configs = stream_configs(config)
    structures = {name: abstract_segmenter(segmenter_config(stream)) for name, stream in configs.items()}
    for name, stream in configs.items():
        check_sizes(stream, structures[name].config.visual.patch_size)
    splits = {name: open_splits(stream) for name, stream in configs.items()}
    segmenter = initial_segmenter(config, layout)
    trainable, frozen = split(segmenter)
    holdout = splits[MAIN].holdout
    evaluate = make_evaluation(config, splits[MAIN], structures[MAIN], frozen, layout) if holdout else None
    rules = hook(segmenter.backbone.adapter, "optimizer_rules") or ()
    common = {"rules": rules, "trainable": trainable, "batch_size": config.train.batch_size, "layout": layout}
    part = (0, 1) if layout is None else layout.host_part()
    if len(configs) == 1:
        return Experiment(
            **common,
            frozen=frozen,
            loss_fn=make_loss(structures[MAIN], loss),
            make_batches=lambda start: training_batches(config, splits[MAIN], start, *part),
            evaluate=evaluate,
        )

    def make_batches(start: int) -> Iterator[Any]:
        return interleave(
            stream_weights(config),
            lambda name, number: training_batches(configs[name], splits[name], number, *part),
            start,
        )

    return Experiment(
        **common,
        frozen={MAIN: frozen} | {name: split(_stream(segmenter, name, stream))[1]
                                 for name, stream in configs.items() if name != MAIN},
        loss_fn=make_stream_loss(structures, loss),
        make_batches=make_batches,
        evaluate=evaluate,
    )  # fmt: skip


def check_sizes(config: ConfigDict, patch_size: int) -> None:
    """Checks `config.evaluate`, the sizes that the model takes, and the numbers of workers and threads.

    Raises:
      UserError: names the key; without this it would be found in the middle of a run.
    """
    window = from_config(WindowSettings, config.evaluate, "evaluate").window
    for key, side in (("config.data.crop", config.data.crop), ("config.evaluate.window", window)):
        require(
            isinstance(side, int) and side > 0 and side % patch_size == 0,
            key,
            f"is {side!r}: give a multiple of config.model.visual.patch_size = {patch_size}",
        )
    for key, count, least in (
        ("workers", config.data.workers, 0),
        ("threads", config.data.get("threads", 1), 1),
    ):
        enough = isinstance(count, int) and count >= least
        require(enough, f"config.data.{key}", f"is {count!r}: give {least} or more")


def _stream(segmenter: Segmenter, name: str, config: ConfigDict) -> Segmenter:
    """The segmenter for the bands of a stream, with the parameters of the main one."""
    settings = segmenter_config(config)
    try:
        return for_bands(
            segmenter,
            settings.visual.wavelengths,
            pixel_mean=settings.pixel_mean,
            pixel_std=settings.pixel_std,
            depth_bands=settings.depth_bands,
        )
    except UserError as problem:
        raise UserError(f"config.streams.{name}: {problem}") from None


def make_evaluation(
    config: ConfigDict, splits: Splits, structure: Segmenter, frozen: Any, layout: Layout | None = None
) -> Callable[[Any], Mapping[str, float]]:
    """Scores of trainable parameters on the part of the source held out for choosing a checkpoint."""
    from spectralmoe_jax.evaluation.evaluate import score_split

    scores = make_scores(structure, layout)

    def evaluate(trainable: Any) -> Mapping[str, float]:
        def predict(pixels: np.ndarray) -> np.ndarray:
            return scores(trainable, frozen, pixels)

        return score_split(config, splits, "holdout", predict)

    return evaluate


def train(config: ConfigDict | str, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Trains what a configuration describes; run again, it goes on where it stopped.

    Args:
      config: a configuration, or `FILE[:args]` of one.
      workdir: folder of the run. It gets `config.json`, `metrics.jsonl`,
        `tensorboard/` and `checkpoints/`. The configuration there also has the
        wavelengths that the files state, where the model is fed with them.

    Returns:
      `{"step": steps done, "best": step of the best checkpoint or None, "workdir": str}`.

    Raises:
      UserError: a bad configuration, bad data, or a folder that holds a run of another model.
      OSError: the folder cannot be written.
    """
    config = load_config(config) if isinstance(config, str) else config
    from_config(TrainSettings, config.train, "train")  # a bad value is said before the data is read
    require_agreement(flatten(config))
    layout = training_layout(config)
    print_view(layout)
    check_workdir(config, workdir)
    from data_pipelines.wavelengths import with_stated_wavelengths

    config = with_stated_wavelengths(config)
    return run_experiment(build_experiment(config, layout), config, workdir)


def run_experiment(
    experiment: Experiment, config: ConfigDict, workdir: str | os.PathLike[str]
) -> dict[str, Any]:
    """Trains an experiment under a configuration's `seed` and `train`; see `train`.

    Of several hosts all run this, on one folder that they share; host 0 alone writes the logs.
    """
    settings = from_config(TrainSettings, config.train, "train")
    if jax.default_backend() == "cpu":
        keep_freed_memory(one_heap=False)
    workdir = Path(workdir)
    check_workdir(config, workdir)
    if not (workdir / CONFIG_FILE).exists():
        with contextlib.closing(prefetch(experiment.make_batches(0), ahead=1)) as batches:
            next(batches)  # what is wrong with the data is said before there is a folder
    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
        _mention_changes(config, workdir)
        save_config(config, workdir / CONFIG_FILE)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("configuration saved")
    with CheckpointStore(workdir, config, experiment.selection_metric) as store:
        step = fit(experiment, settings, jax.random.key(config.seed), store, workdir)
        return {"step": step, "best": store.best, "workdir": str(workdir)}


def check_workdir(config: ConfigDict, workdir: str | os.PathLike[str]) -> None:
    """Checks, before anything slow and without writing, that a run may live in this folder.

    Raises:
      UserError: the folder holds a run of another model; names the differing keys.
      OSError: the folder cannot be made or written.
    """
    workdir = Path(workdir).absolute()
    existing = next(place for place in (workdir, *workdir.parents) if place.exists())
    if not existing.is_dir():
        raise NotADirectoryError(20, "is a file, not a folder", str(existing))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(13, "cannot be written", str(existing))
    if not (workdir / CONFIG_FILE).exists():
        return
    differing = describe_differences(model_part(read_run_config(workdir)), model_part(config))
    if differing:
        raise UserError(
            f"{workdir} holds a run of another configuration: {differing}; choose another --workdir"
        )


def _mention_changes(config: ConfigDict, workdir: Path) -> None:
    if (workdir / CONFIG_FILE).exists():
        changes = describe_differences(flatten(read_run_config(workdir)), flatten(config))
        if changes:
            print(f"going on with a changed configuration: {changes}", flush=True)
