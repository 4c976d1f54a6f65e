"""`spectralmoe calibrate`: fit how far to trust a trained model, on source images alone.

A temperature makes the probabilities of held-out source pixels mean what they say (Guo et al., 2017,
https://arxiv.org/abs/1706.04599). Mean and covariance of the features of the training images tell how far the
pixels of a scene are from all that the model was trained on (Lee et al., 2018,
https://arxiv.org/abs/1807.03888, with one Gaussian for all classes). Both are kept with the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from scipy.optimize import minimize_scalar

from data_pipelines.records import Record, examples
from data_pipelines.splits import Splits, open_splits
from spectralmoe_jax.config.load import Configuration, as_run_config
from spectralmoe_jax.config.schema import EvaluateConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.escapes import plain
from spectralmoe_jax.evaluation.evaluate import with_wavelengths
from spectralmoe_jax.evaluation.reliability import Reliability
from spectralmoe_jax.inference.calibration import (
    Calibration,
    add_calibration,
    calibration_file,
    patch_distances,
    probabilities_of,
    weights_digest,
)
from spectralmoe_jax.inference.model_files import config_of_model
from spectralmoe_jax.inference.predict_step import make_features, make_predict
from spectralmoe_jax.inference.segmenter_weights import load_segmenter
from spectralmoe_jax.inference.sliding_window import (
    Predict,
    overlapping_tiles,
    padded_tile,
    predict_image,
    predict_tiles,
)
from spectralmoe_jax.parallel.mesh import inference_layout

PIXELS, PIXELS_OF_IMAGE = 1_000_000, 20_000
"""Labelled held-out pixels that the temperature is fitted to, drawn at random."""
IMAGES = 200
"""Images at most of which features are taken, evenly spaced over those of a split."""
_TEMPERATURES = (0.05, 20.0)
_SHRINKAGE = 0.01  # of the covariance towards a multiple of the identity, so that it can be inverted
_NEAR = 0.95  # share of held-out patches that count as near


def calibrate(
    model: str | os.PathLike[str], config: Configuration | None = None, *, allow_code: bool = False
) -> dict[str, Any]:
    """Fit a temperature and the statistics of the source's features, and keep them with the model.

    Args:
      model: folder of a run, or weight files, as `inference.model.load` takes them.
      config: in any form of `config.load.Configuration`; None for the model's own.
      allow_code: whether the model's own configuration may name code, as there.

    Returns:
      `temperature`, `file`, and `before` and `after`, the reports of `Reliability` on the held-out pixels
      with a temperature of 1 and with the one found.

    Raises:
      UserError: no source image is held out, or names the file or key that is wrong.
    """
    path = calibration_file(model)
    if path is None:
        raise UserError(f"{model}: a calibration is kept beside a model: `spectralmoe convert` it to a file")
    given = config_of_model(model, allow_code=allow_code) if config is None else as_run_config(config)
    run = with_wavelengths(model, given)
    splits = open_splits(run, only="holdout")
    if not splits.holdout:
        raise UserError("config.data.holdout is 0: calibration needs held-out source images")
    layout = inference_layout(run)
    segmenter = load_segmenter(model, run, layout)
    # 1. temperature
    predict = make_predict(segmenter, layout, run.evaluate.tta)
    truth, scores = _held_out_pixels(splits, predict, run.evaluate)
    temperature = fit_temperature(scores, truth)
    before, after = Reliability(), Reliability(temperature)
    for reliability in (before, after):
        reliability.add(truth, scores)
    # 2. features
    features = make_features(segmenter, layout)
    mean, whitening = fit_gaussian(_patches(splits, splits.train, features, run.evaluate))
    held_out = _patches(splits, splits.holdout, features, run.evaluate)
    distances = [np.asarray(patch_distances(found, mean, whitening)) for found in held_out]
    if not distances:
        raise UserError("config.data.holdout: the held-out source images have no pixel with data")
    near = max(float(np.quantile(np.concatenate(distances), _NEAR)), 1e-6)
    found = Calibration(weights_digest(segmenter), temperature, mean, whitening, near)
    add_calibration(found, path)
    report = {"temperature": temperature, "file": path, "before": before.report(), "after": after.report()}
    _print(report, len(truth))
    return report


def fit_temperature(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the temperature under which the true classes are most likely, between 0.05 and 20.

    Args:
      scores: (n, C), not negative.
      truth: (n,), true classes.
    """

    def loss(logarithm: float) -> float:
        """Compute the mean negative log-likelihood at the logarithm of a temperature."""
        probabilities = probabilities_of(scores, float(np.exp(logarithm)))
        of_truth = np.take_along_axis(probabilities, truth[:, None], axis=-1)
        return float(-np.log(np.maximum(of_truth, 1e-30)).mean(dtype=np.float64))

    found = minimize_scalar(loss, bounds=np.log(_TEMPERATURES), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def fit_gaussian(patches: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (D,) and a whitening (D, D) of features, whose covariance is shrunk a little.

    Args:
      patches: parts of them, each (n, D).

    Raises:
      UserError: there are none.
    """
    count, total, products = 0, np.zeros(()), np.zeros(())
    for part in patches:
        wide = part.astype(np.float64)
        count, total, products = count + len(wide), total + wide.sum(axis=0), products + wide.T @ wide
    if not count:
        raise UserError("config.data.source: the training images have no pixel with data")
    mean = total / count
    covariance = products / count - np.outer(mean, mean)
    size = len(mean)
    level = max(float(np.trace(covariance)) / size, 1e-12)
    covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * level * np.eye(size)
    values, vectors = np.linalg.eigh(covariance)
    whitening = vectors / np.sqrt(np.maximum(values, _SHRINKAGE * level / 2))
    return mean.astype(np.float32), whitening.astype(np.float32)


def _held_out_pixels(
    splits: Splits, predict: Predict, settings: EvaluateConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return classes (n,) and scores (n, C) of labelled held-out pixels.

    Raises:
      UserError: there are none.
    """
    most = min(PIXELS_OF_IMAGE, max(1, PIXELS // len(splits.holdout)))
    draw = np.random.default_rng(0)
    truths, kept = [], []
    for _, _, image, label in splits.examples("holdout"):
        scores = predict_image(image, predict, settings)
        known = np.flatnonzero(label.reshape(-1) < scores.shape[-1])
        known = draw.choice(known, most, replace=False) if len(known) > most else known
        truths.append(label.reshape(-1)[known].astype(np.int64))
        kept.append(scores.reshape(-1, scores.shape[-1])[known])
    truth = np.concatenate(truths)
    if not len(truth):
        raise UserError("config.data.holdout: the held-out source images have no labelled pixel")
    return truth, np.concatenate(kept)


def _patches(
    splits: Splits, records: Sequence[Record], features: Predict, settings: EvaluateConfig
) -> Iterator[np.ndarray]:
    """Yield the features (n, D) of the patches with data of every window of some source images."""
    step = max(1, -(-len(records) // IMAGES))
    for _, image, _ in examples(splits.source, records[::step]):
        tiles = overlapping_tiles(image, settings)
        for (row, column), found in predict_tiles(tiles, features, settings.batch_size):
            has_data = padded_tile(image, row, column, settings.window).any(axis=-1)
            side = found.shape[0]
            patch = settings.window // side
            of_patches = has_data.reshape(side, patch, side, patch).any(axis=(1, 3))  # (h, w)
            if of_patches.any():
                yield found[of_patches]


def _print(report: dict[str, Any], pixels: int) -> None:
    console = Console(highlight=False, soft_wrap=True)
    found, (least, most) = report["temperature"], _TEMPERATURES
    bound = "" if 1.01 * least < found < most / 1.01 else " (as far as it may go)"
    line = f"{report['file']}: temperature {found:.3f}{bound}, by {pixels:,} held-out pixels"
    console.print(plain(line))
    for when in ("before", "after"):
        scores = report[when]
        console.print(
            f"  {when}: expected calibration error {100 * scores['expected_calibration_error']:.2f} %, "
            f"Brier score {scores['brier']:.4f}"
        )
