"""`spectralmoe evaluate`, and the evaluation of a run's best checkpoint that reports and tables read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import jax

from data_pipelines.sources import resolve_stream_wavelengths
from data_pipelines.splits import Splits, open_splits
from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.config.load import Configuration, as_run_config
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.config.stored import CONFIG_FILE, read_run_config
from spectralmoe_jax.evaluation.metrics import RoutedPredict, Tally, tally_split, write_images
from spectralmoe_jax.evaluation.score_table import Report, make_report, print_table, write_report
from spectralmoe_jax.evaluation.stored_scores import IMAGES_FILE, write_evaluation
from spectralmoe_jax.inference.calibration import calibration_file, calibration_of, weights_digest
from spectralmoe_jax.inference.model_files import config_of_model, weight_specs
from spectralmoe_jax.inference.pictures import write_pictures
from spectralmoe_jax.inference.predict_step import make_routed_step
from spectralmoe_jax.inference.segmenter_weights import load_segmenter
from spectralmoe_jax.inference.sliding_window import RoutedStep
from spectralmoe_jax.models.build import part_sizes
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.parallel.mesh import inference_layout


def evaluate(
    workdir: str | os.PathLike[str],
    config: Configuration | None = None,
    *,
    split: str = "target",
    output: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    allow_code: bool = False,
) -> Report:
    """Score a trained model on whole images of a split, print the table and store the JSON.

    All devices of all processes share the windows of an image; every process reads the images.

    Args:
      workdir: folder of the run, or another trained model as `inference.model.load` takes it.
      config: in any form of `config.load.Configuration`; None for the model's own.
      split: `target`, `source` or `holdout`.
      output: JSON file to write, or None.
      images: NPZ file for the confusion matrix of every image, or None; see `metrics.write_images`.
      allow_code: whether the model's own configuration may name code, as in `inference.model.load`.

    Returns:
      See `score_table.make_report`.

    Raises:
      UserError: names the file or key that is wrong.
    """
    given = config_of_model(workdir, allow_code=allow_code) if config is None else as_run_config(config)
    run = _open_run(workdir, given, split)
    tally = run.tally(split)
    report = make_report(tally)
    if jax.process_index() == 0:
        if output is not None:
            write_report(report, output)
        if images is not None:
            write_images(tally.images, images)
        print_table(report, f"{run.config.name}, {split}: {report['images']} images")
    return report


def evaluate_best_checkpoint(workdir: Path, config: RunConfig) -> None:
    """Evaluate a run's best checkpoint on the target and keep the results in the run's folder.

    `evaluation.json` holds the report of `evaluate`, the number of `trainable` parameters, the `step` of the
    checkpoint, the last step that the run is `trained` to, and whether it is `complete`. `evaluation.npz`
    holds the confusion matrix of every image; for `pictures.npz` see `inference.pictures`. The scores are
    written last.

    Raises:
      UserError: names the file or key that is wrong.
    """
    run = _open_run(workdir, config, "target")
    tally = run.tally("target")
    report = make_report(tally)
    trainable = sum(part.trainable for part in part_sizes(run.segmenter, run.segmenter.config))
    write_pictures(workdir, run.config, run.segmenter, run.step, run.splits)
    write_images(tally.images, workdir / IMAGES_FILE)
    best, last = checkpoint_steps(workdir, run.config)
    complete = is_complete(workdir, run.config)
    more = {"trainable": trainable, "step": best, "trained": last, "complete": complete}
    write_evaluation(report | more, workdir)


def checkpoint_steps(workdir: Path, config: RunConfig) -> tuple[int | None, int | None]:
    """Return the steps of the checkpoint to evaluate and of the last one; None if there is no checkpoint.

    The checkpoint to evaluate is the best one, or the last one if none has a score.
    """
    with CheckpointStore(workdir, config) as store:
        return store.best if store.best is not None else store.last, store.last


def is_complete(workdir: Path, config: RunConfig) -> bool:
    """Return whether a run was trained to its last step, or to the end of its patience."""
    with CheckpointStore(workdir, config) as store:
        last = store.last
        return last is not None and store.held_out(last).is_complete(last, config.train)


class _OpenRun(NamedTuple):
    """A run's best checkpoint and the images to evaluate it on."""

    config: RunConfig
    splits: Splits
    segmenter: Segmenter
    step: RoutedStep
    temperatures: tuple[float, ...]

    def tally(self, split: str) -> Tally:
        """Count pixels, and tokens by expert, of all images of a split."""
        experts = getattr(self.segmenter.config.adapter, "num_experts", 1)
        predict = RoutedPredict(self.step)
        return tally_split(self.config, self.splits, split, predict, experts, self.temperatures)


def _open_run(workdir: str | os.PathLike[str], config: RunConfig, split: str) -> _OpenRun:
    config = with_wavelengths(workdir, config, split)
    splits, layout = open_splits(config, only=split), inference_layout(config)
    segmenter = load_segmenter(workdir, config, layout)
    step = make_routed_step(segmenter, layout, config.evaluate.tta)
    return _OpenRun(config, splits, segmenter, step, _temperatures(workdir, segmenter))


def _temperatures(workdir: str | os.PathLike[str], segmenter: Segmenter) -> tuple[float, ...]:
    """Return 1, and the temperature of the model's calibration."""
    found = calibration_of(calibration_file(workdir), lambda: weights_digest(segmenter))
    return (1.0,) if found is None else (1.0, found.temperature)


def with_wavelengths(workdir: str | os.PathLike[str], config: RunConfig, split: str = "source") -> RunConfig:
    """Add the wavelengths that the run's files stated, else those that the split's files state."""
    if not weight_specs(workdir) and (Path(workdir) / CONFIG_FILE).is_file():
        stored = read_run_config(workdir, allow_code=True)  # nothing is built from it
        config = config.with_statements_of_run(stored)
    return resolve_stream_wavelengths(config, config.data.target if split == "target" else config.data.source)
