"""`spectralmoe probe`: does a frozen encoder carry over from the source to the target?

Classifiers are fitted to the frozen features of every stage of the encoder on the source's training images,
and scored on held-out source images and on the target, which nothing is fitted or chosen on. No adapter and
no head takes part: what a linear classifier finds is already in the encoder.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipelines.sources import resolve_stream_wavelengths
from data_pipelines.splits import Splits, open_splits
from spectralmoe_jax.config.load import Configuration, as_run_config
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.escapes import drawn, plain
from spectralmoe_jax.evaluation.features import FeatureExtractor
from spectralmoe_jax.evaluation.logistic_regression import LinearClassifier, fit_centroids, fit_logistic
from spectralmoe_jax.evaluation.metrics import ConfusionMatrix, patch_classes
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.inference.segmenter_weights import initial_segmenter
from spectralmoe_jax.resampling import resize_bilinear

SPLITS = {"holdout": "held-out source", "target": "target"}
"""The splits that are scored, and their names in the table and the plot."""
TOKENS = 60_000  # most tokens that a classifier is fitted to, drawn from all of the source
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
RESULTS, PLOT = "probe.json", "probe.png"


def probe(
    config: Configuration, workdir: str | os.PathLike[str], *, seeds: int = 1, penalty: float | None = None
) -> dict[str, Any]:
    """Score classifiers on the frozen features of each stage; write `probe.json`, `probe.png` and a table.

    Features are kept in the folder's `features`, so that another probe of the same images and weights takes
    seconds.

    Args:
      config: in any form of `config.load.Configuration`.
      workdir: folder for results and features.
      seeds: number of held-out splits and draws of tokens, with seeds from `config.data.holdout_seed` on.
      penalty: of the squared weights of the logistic regression; None for `choose_penalties`.

    Returns:
      `stages`, the `penalty` of each, and for every classifier and split the mIoU of each seed and stage,
      (seeds, S).

    Raises:
      UserError: names the file or key that is wrong.
    """
    config = as_run_config(config)
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: must be at least 1")
    if penalty is not None and penalty <= 0:
        raise UserError(f"--penalty {penalty}: must be above 0")
    config = resolve_stream_wavelengths(config, config.data.source)
    workdir = Path(workdir)
    extract = FeatureExtractor(initial_segmenter(config), config.evaluate, workdir / "features")
    first = config.data.holdout_seed
    parts = [
        _Part(config.replaced({"data.holdout_seed": seed}), extract, seed)
        for seed in range(first, first + seeds)
    ]
    if penalty is None and not all(part.has_holdout for part in parts):
        raise UserError(
            "config.data.holdout is 0: hold images out to choose the penalty by, or give --penalty"
        )
    # 1. the penalty of each stage, by the held-out source alone
    penalties = PENALTIES if penalty is None else (penalty,)
    regressions = [
        [part.fit(functools.partial(fit_logistic, penalty=p)) for p in penalties] for part in parts
    ]  # by seed, penalty and stage
    chosen = [0] * len(extract.stages)
    if len(penalties) > 1:
        pairs = zip(parts, regressions, strict=True)
        chosen = choose_penalties(np.array([part.score("holdout", found) for part, found in pairs]))
    # 2. scores of the chosen ones, and of the centroids
    scores: dict[str, dict[str, list[list[float]]]] = {}
    for part, found in zip(parts, regressions, strict=True):
        fitted = {
            "logistic regression": [found[choice][stage] for stage, choice in enumerate(chosen)],
            "nearest centroid": part.fit(fit_centroids),
        }
        for split in SPLITS if part.has_holdout else ("target",):
            of_seed = part.score(split, list(fitted.values()))
            for name, of_classifier in zip(fitted, of_seed, strict=True):
                scores.setdefault(name, {}).setdefault(split, []).append(of_classifier)
    report = {
        "name": config.name, "stages": extract.stages, "seeds": seeds,
        "penalty": [penalties[choice] for choice in chosen], "miou": scores,
    }  # fmt: skip
    workdir.mkdir(parents=True, exist_ok=True)
    with atomic_write(workdir / RESULTS) as aside:
        aside.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _plot(report, workdir / PLOT)
    _print(report)
    return report


def choose_penalties(scores: np.ndarray) -> list[int]:
    """Choose a penalty for each stage: the largest within one standard error of the best.

    The usual rule for a penalty that the scores hardly distinguish (Breiman et al., Classification and
    Regression Trees, 1984, section 3.4.3): of classifiers that do equally well, the simplest.

    Args:
      scores: held-out scores (seeds, penalties, S), penalties in rising order.

    Returns:
      The number of the penalty of each stage.
    """
    mean = scores.mean(axis=0)  # (penalties, S)
    error = scores.std(axis=0, ddof=1) / len(scores) ** 0.5 if len(scores) > 1 else np.zeros_like(mean)
    best = mean.argmax(axis=0)
    stages = np.arange(mean.shape[1])
    enough = mean >= mean[best, stages] - error[best, stages]
    return [int(np.flatnonzero(enough[:, stage])[-1]) for stage in stages]


class _Part:
    """One held-out split, with the training tokens to fit classifiers to.

    Attributes:
      has_holdout: whether images are held out.
    """

    def __init__(self, config: RunConfig, extract: FeatureExtractor, seed: int):
        self._splits, self._extract = open_splits(config), extract
        self._classes = len(config.classes.names)
        self.has_holdout = bool(self._splits.holdout)
        # (S, n, D), (n,)
        self._features, self._labels = _training_tokens(self._splits, extract, self._classes, seed)

    def fit(
        self, method: Callable[[np.ndarray, np.ndarray, int], LinearClassifier]
    ) -> list[LinearClassifier]:
        """Fit a classifier to the features of every stage."""
        return [method(features, self._labels, self._classes) for features in self._features]

    def score(self, split: str, classifiers: list[list[LinearClassifier]]) -> list[list[float]]:
        """Score several classifiers of every stage in one pass over the images of a split.

        Logits are resized to the pixels bilinearly.

        Args:
          split: name of the split.
          classifiers: each a list of one for every stage.

        Returns:
          The mIoU in per cent of each, by stage.
        """
        matrices = [[ConfusionMatrix(self._classes) for _ in of_stages] for of_stages in classifiers]
        for _, _, image, label in self._splits.examples(split):
            features = self._extract(image)  # (h, w, S, D)
            for of_stages, counts in zip(classifiers, matrices, strict=True):
                for stage, (classify, matrix) in enumerate(zip(of_stages, counts, strict=True)):
                    predicted = _predict(classify, features[:, :, stage], self._extract.patch)
                    matrix.add(label, predicted[: label.shape[0], : label.shape[1]])
        return [[100 * matrix.miou for matrix in counts] for counts in matrices]


def _predict(classify: LinearClassifier, features: np.ndarray, patch: int) -> np.ndarray:
    """Classes (h * patch, w * patch) of features (h, w, D)."""
    logits = np.maximum(classify(features), -1e6).astype(np.float32)  # -inf would spread by interpolation
    size = (features.shape[0] * patch, features.shape[1] * patch)
    return np.asarray(resize_bilinear(logits[None], size))[0].argmax(axis=-1)


def _training_tokens(
    splits: Splits, extract: FeatureExtractor, classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features (S, n, D) and classes (n,) of the labelled places of the training images.

    A place has the most frequent class of its labelled pixels.

    Raises:
      UserError: no place is labelled.
    """
    features, labels = [], []
    for _, _, image, label in splits.examples("train"):
        found = extract(image)  # (h, w, S, D)
        known = _token_classes(label, extract.patch, classes)
        features.append(found[known >= 0])
        labels.append(known[known >= 0])
    x, y = np.concatenate(features), np.concatenate(labels)
    if not len(y):
        raise UserError(
            "config.data.source: the training images have no labelled pixel to fit a classifier to"
        )
    if len(y) > TOKENS:
        drawn = np.sort(np.random.default_rng(seed).choice(len(y), TOKENS, replace=False))
        x, y = x[drawn], y[drawn]
    return np.ascontiguousarray(x.transpose(1, 0, 2)), y


def _token_classes(label: np.ndarray, patch: int, classes: int) -> np.ndarray:
    """Class of every place, (h, w), -1 where no pixel is labelled."""
    missing = [(0, -side % patch) for side in label.shape]
    padded = np.pad(label, missing, constant_values=255)
    rows, columns = (side // patch for side in padded.shape)
    # `patch_classes` takes squares: one for every row of patches
    strips = padded.reshape(rows, patch, columns, patch).transpose(0, 2, 1, 3).reshape(-1, patch, patch)
    return patch_classes(strips, 1, classes).reshape(rows, columns)


def _mean_and_deviation(seeds: list[list[float]], stage: int) -> tuple[float, float]:
    values = np.array([scores[stage] for scores in seeds])
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _print(report: dict[str, Any]) -> None:
    """Print a table: one row for each stage."""
    table = Table(box=None, header_style="bold", title=plain(f"{report['name']}: mIoU of frozen features, %"))
    table.add_column("stage")
    table.add_column("penalty", justify="right")
    columns = [(name, split) for name, splits in report["miou"].items() for split in splits]
    for name, split in columns:
        table.add_column(f"{name}\n{SPLITS[split]}", justify="right")
    for stage, label in enumerate(report["stages"]):
        cells = []
        for name, split in columns:
            mean, deviation = _mean_and_deviation(report["miou"][name][split], stage)
            cells.append(f"{mean:.1f}" + (f" ± {deviation:.1f}" if report["seeds"] > 1 else ""))
        table.add_row(plain(label), f"{report['penalty'][stage]:g}", *cells)
    console = Console()
    console.width = max(console.width, 120)
    console.print(table)


def _plot(report: dict[str, Any], path: Path) -> None:
    """Plot mIoU by stage, a line for each classifier and split."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = np.arange(len(report["stages"]))
    for colour, (name, splits) in zip(("C0", "C1"), report["miou"].items(), strict=True):
        for split, seeds in splits.items():
            stats = np.array([_mean_and_deviation(seeds, stage) for stage in range(len(places))])
            label = f"{name}, {SPLITS[split]}"
            style = "--" if split == "holdout" else "-"
            axes.errorbar(
                places,
                stats[:, 0],
                yerr=stats[:, 1],
                fmt=style,
                marker="o",
                color=colour,
                label=label,
                capsize=2,
            )
    axes.set_xticks(places, list(map(drawn, report["stages"])), rotation=45, ha="right")
    axes.set_ylabel("mIoU, %")
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, handlelength=4)
    axes.set_title(drawn(f"{report['name']}: linear classifiers on frozen features"))
    with atomic_write(path) as aside:
        figure.savefig(aside, dpi=150)
