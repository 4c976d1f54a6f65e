"""Evaluation of a run's best checkpoint, kept in the run's folder so that reports need no model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data_pipelines.splits import open_splits
from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.evaluation.evaluate import resolve_wavelengths, tally_split
from spectralmoe_jax.evaluation.metrics import write_images
from spectralmoe_jax.evaluation.score_table import make_report, write_report
from spectralmoe_jax.inference.model import load_trained, make_routed_step
from spectralmoe_jax.inference.pictures import keep_pictures
from spectralmoe_jax.models.parameter_count import count
from spectralmoe_jax.parallel.mesh import using_layout

EVALUATION, IMAGES = "evaluation.json", "evaluation.npz"


def evaluate_best_checkpoint(workdir: Path, config: RunConfig) -> None:
    """Evaluate a run's best checkpoint on the target, and keep the result in the run's folder.

    The folder gets `pictures.npz` (see `inference.pictures`), `evaluation.npz` with the confusion matrix of
    every image, and last `evaluation.json`: the scores of `spectralmoe evaluate`, the number of `trainable`
    parameters, the `step` of the checkpoint, and the step that the run is `trained` to.

    Raises:
      UserError: names the file or key that is wrong.
    """
    config = resolve_wavelengths(workdir, config, "target")
    splits, layout = open_splits(config, only="target"), using_layout(config)
    segmenter = load_trained(workdir, config, layout)
    step = make_routed_step(segmenter, layout)
    tally = tally_split(config, splits, "target", segmenter, step)
    report = make_report(tally)
    trainable = sum(part.trainable for part in count(segmenter, segmenter.config))
    keep_pictures(workdir, config, segmenter, step, splits)
    write_images(tally.images, workdir / IMAGES)
    best, last = steps_of(workdir, config)
    more = {"trainable": trainable, "step": best, "trained": last}
    write_report(report | more, workdir / EVALUATION)


def steps_of(workdir: Path, config: RunConfig) -> tuple[int | None, int | None]:
    """Return the steps of the checkpoint to evaluate and of the last one; None where there is none.

    The checkpoint to evaluate is the best one, or the last where none has a score.
    """
    with CheckpointStore(workdir, config) as store:
        return store.best if store.best is not None else store.last, store.last


def read_evaluation(workdir: Path) -> dict[str, Any] | None:
    """Read the scores that `evaluate_best_checkpoint` kept; None where there are none."""
    path = workdir / EVALUATION
    return json.loads(path.read_text()) if path.is_file() else None
