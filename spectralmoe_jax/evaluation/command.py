"""`spectralmoe evaluate`, and the scores that training chooses its best checkpoint by."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from data_pipelines.splits import Splits, open_splits
from data_pipelines.wavelengths import of_files
from data_pipelines.whole_split import eval_batches
from spectralmoe_jax.checkpoints.store import CONFIG_FILE, read_run_config
from spectralmoe_jax.checkpoints.trained import load_trained, make_predict
from spectralmoe_jax.configuration import from_config
from spectralmoe_jax.evaluation.report import Report, print_table, score, score_tiles, write_report
from spectralmoe_jax.parallel.configured import using_layout
from spectralmoe_jax.prediction.windows import Predict, WindowSettings
from spectralmoe_jax.sensors.stated import adopt_stated


def evaluate(workdir: str | os.PathLike[str], config: ConfigDict, *, split: str = "target",
             output: str | os.PathLike[str] | None = None) -> Report:  # fmt: skip
    """Score a run's best checkpoint on whole images of a split, print the table, store the JSON.

    All devices of all processes share the windows of an image; every process reads the images.

    Args:
      workdir: folder of the run. config: its configuration.
      split: `target`, `source` or `holdout`. output: JSON file to write, or None.

    Raises UserError naming the file or key that is wrong.
    """
    settings = from_config(WindowSettings, config.evaluate, "evaluate")
    config = _settled(workdir, config, split)
    splits = open_splits(config, only=split)
    layout = using_layout(config)
    predict = make_predict(load_trained(workdir, config, layout), layout)
    report = _score(config, splits, split, predict, settings)
    if jax.process_index() == 0:
        print_table(report, f"{config.name}, {split}: {report['images']} images")
        if output is not None:
            write_report(report, output)
    return report


def _settled(workdir: str | os.PathLike[str], config: ConfigDict, split: str) -> ConfigDict:
    """The configuration with the wavelengths that the run's files stated, or else those to be evaluated."""
    if (Path(workdir) / CONFIG_FILE).is_file():
        config = adopt_stated(config, read_run_config(workdir))
    return of_files(config, config.data["target" if split == "target" else "source"])


def score_split(config: ConfigDict, splits: Splits, split: str, predict: Predict) -> dict[str, float]:
    """The scalars of a split that a training run logs: mIoU and overall accuracy."""
    settings = from_config(WindowSettings, config.evaluate, "evaluate")
    report = _score(config, splits, split, predict, settings)
    return {"miou": report["miou"], "overall_accuracy": report["all"]["overall_accuracy"]}


def _score(
    config: ConfigDict, splits: Splits, split: str, predict: Predict, settings: WindowSettings
) -> Report:
    """Tiles that fit into a window go through the model several at a time, larger images one by one."""
    source, records = splits.of(split)
    names = config.classes.names
    if any(max(record.height, record.width) > settings.window for record in records) or not records:
        return score(predict, splits.examples(split), names, settings)
    workers = config.data.get("workers", 0)
    batches = eval_batches(source, records, settings.window, batch_size=settings.batch_size, workers=workers)
    with contextlib.closing(batches):
        return score_tiles(predict, batches, [record.domain for record in records], names)
