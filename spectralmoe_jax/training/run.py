"""`spectralmoe train`: from a configuration and a folder to a trained model in that folder."""

import contextlib
import os
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from spectralmoe_jax.checkpoints.store import (
    CONFIG_FILE,
    CheckpointStore,
    describe_differences,
    model_part,
    read_run_config,
)
from spectralmoe_jax.configuration import flatten, from_config, load_config, save_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.host_memory import keep_freed_memory
from spectralmoe_jax.parallel.agreement import require_agreement
from spectralmoe_jax.parallel.configured import print_view, training_layout
from spectralmoe_jax.training.loop import Experiment, TrainSettings, fit
from spectralmoe_jax.training.prefetch import prefetch


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
    from spectralmoe_jax.training.experiment import build_experiment

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
