"""Scores of a model on a split: `spectralmoe evaluate`, and the evaluations during training."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import jax

from data_pipelines.loader import eval_batches
from data_pipelines.splits import Splits, open_splits
from data_pipelines.wavelengths import of_files
from spectralmoe_jax.config.load import CONFIG_FILE, Configuration, as_run_config, read_run_config
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.evaluation.expert_routing import RoutedPredict
from spectralmoe_jax.evaluation.metrics import Tally, write_images
from spectralmoe_jax.evaluation.score_table import Report, make_report, print_table, write_report
from spectralmoe_jax.inference.model import load_trained, make_routed_step
from spectralmoe_jax.inference.sliding_window import Predict, RoutedStep
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.parallel.mesh import using_layout


def evaluate(
    workdir: str | os.PathLike[str],
    config: Configuration | None = None,
    *,
    split: str = "target",
    output: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
) -> Report:
    """Score a run's best checkpoint on whole images of a split, print the table and store the JSON.

    All devices of all processes share the windows of an image; every process reads the images.

    Args:
      workdir: folder of the run.
      config: in any form of `config.load.Configuration`; None for the one stored in the folder.
      split: `target`, `source` or `holdout`.
      output: JSON file to write, or None.
      images: NPZ file for the confusion matrix of every image, or None; see `metrics.write_images`.

    Returns:
      See `score_table.make_report`.

    Raises:
      UserError: names the file or key that is wrong.
    """
    run = resolve_wavelengths(
        workdir, read_run_config(workdir) if config is None else as_run_config(config), split
    )
    splits = open_splits(run, only=split)
    layout = using_layout(run)
    segmenter = load_trained(workdir, run, layout)
    tally = tally_split(run, splits, split, segmenter, make_routed_step(segmenter, layout))
    report = make_report(tally)
    if jax.process_index() == 0:
        print_table(report, f"{run.name}, {split}: {report['images']} images")
        if output is not None:
            write_report(report, output)
        if images is not None:
            write_images(tally.images, images)
    return report


def tally_split(
    config: RunConfig, splits: Splits, split: str, segmenter: Segmenter, step: RoutedStep
) -> Tally:
    """Count a segmenter's predictions on the images of a split, and the experts that its tokens go to.

    Args:
      config: of the run.
      splits: the opened data.
      split: `target`, `source` or `holdout`.
      segmenter: the model.
      step: the segmenter's step, of `inference.model.make_routed_step`.
    """
    tally = Tally(config.classes.names, getattr(segmenter.config.adapter, "num_experts", 1))
    _count(tally, config, splits, split, RoutedPredict(step))
    return tally


def resolve_wavelengths(workdir: str | os.PathLike[str], config: RunConfig, split: str) -> RunConfig:
    """Add the wavelengths that the run's files stated to a configuration, else those of the split's files."""
    if (Path(workdir) / CONFIG_FILE).is_file():
        config = config.with_wavelengths_of_run(read_run_config(workdir))
    return of_files(config, config.data.target if split == "target" else config.data.source)


def score_split(config: RunConfig, splits: Splits, split: str, predict: Predict) -> dict[str, float]:
    """Score a split as training logs it: mIoU and overall accuracy."""
    tally = Tally(config.classes.names)
    _count(tally, config, splits, split, predict)
    report = make_report(tally)
    return {"miou": report["miou"], "overall_accuracy": report["all"]["overall_accuracy"]}


def _count(tally: Tally, config: RunConfig, splits: Splits, split: str, predict: Predict) -> None:
    """Add the predictions on a split to a tally."""
    settings = config.evaluate
    source, records = splits.of(split)
    # images that fit into a window go through the model in batches, larger ones one by one
    if any(max(record.height, record.width) > settings.window for record in records) or not records:
        tally.count_images(predict, splits.examples(split), settings)
        return
    batches = eval_batches(
        source,
        records,
        settings.window,
        batch_size=settings.batch_size,
        workers=config.data.workers,
    )
    with contextlib.closing(batches):
        tally.count_tiles(predict, batches, [(record.domain, record.name) for record in records])
