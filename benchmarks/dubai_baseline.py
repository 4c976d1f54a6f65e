"""Dubai, tiles 5 and 6: trained models against a pixelwise gradient-boosted classifier.

The classifier is scikit-learn's HistGradientBoostingClassifier with its default settings, on nine values for
each
pixel: RGB and its means over 3x3 and 9x9 pixels. It learns from a random subset of the labelled pixels that
the models train on (tiles 1 to 4 without the held-out tenth), one subset for each seed: `--pixels` of the
17,194,919, since fitting it to all of them, six times, takes hours. With its defaults it is the bar; a
further row has it with balanced classes.

  python benchmarks/dubai_baseline.py --root PATH/dubai --train runs
  python benchmarks/dubai_baseline.py --root PATH/dubai --workdirs runs/dubai_0 runs/dubai_1 runs/dubai_2

The first command trains the seeds that are missing below `runs`, and resumes those that were interrupted; the
second scores existing runs. Without either option only the classifier is scored.

Models and classifier are scored on the same whole images, on every labelled pixel, with all pixels of both
tiles in one confusion matrix.
"""

from __future__ import annotations

import argparse
import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingClassifier

import spectralmoe_jax
from data_pipelines.splits import Splits, open_splits
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.config.stored import read_run_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.metrics import ConfusionMatrix
from spectralmoe_jax.inference.sliding_window import predict_image

Classify = Callable[[np.ndarray], np.ndarray]  # raw image (H, W, C) -> class ids (H, W)
Scores = dict[str, ConfusionMatrix]  # by domain

_CONFIG = Path(__file__).resolve().parent.parent / "configs" / "dubai.py"
_LOG_WIDTH = 200  # off a terminal rich would cut the table at 80
_OURS = "SpectralMoE"
_WEIGHTINGS = {"boosting": None, "boosting, balanced": "balanced"}


def pixel_features(image: np.ndarray) -> np.ndarray:
    """Compute features of each pixel: the bands, their 3x3 means and their 9x9 means, edges mirrored.

    Args:
      image: (H, W, bands).

    Returns:
      (H, W, 3 * bands) float32.
    """
    bands = image.astype(np.float32)
    means = [cv2.blur(bands, (side, side), borderType=cv2.BORDER_REFLECT) for side in (3, 9)]
    return np.concatenate([bands, *(mean.reshape(bands.shape) for mean in means)], axis=-1)


def sample_pixels(splits: Splits, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw labelled training pixels uniformly, without repetition.

    Args:
      splits: the images.
      count: number of pixels; all are drawn if there are fewer.
      seed: of the draw.

    Returns:
      Features (count, 3 * bands) float32 and class ids (count,) uint8.
    """
    labels = [label.ravel() for _, _, _, label in splits.examples("train")]
    known = np.flatnonzero(np.concatenate(labels) != 255)
    chosen = np.sort(np.random.default_rng(seed).choice(known, min(count, len(known)), replace=False))
    ends = np.cumsum([label.size for label in labels])
    parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    features, start = [], 0
    for (_, _, image, label), part in zip(splits.examples("train"), parts, strict=True):
        features.append(pixel_features(image).reshape(label.size, -1)[part - start])
        start += label.size
    return np.concatenate(features), np.concatenate(labels)[chosen]


def score_target(classify: Classify, splits: Splits, num_classes: int) -> Scores:
    """Compute the confusion matrix of every target domain."""
    scores: Scores = {}
    for domain, _, image, label in splits.examples("target"):
        scores.setdefault(domain, ConfusionMatrix(num_classes)).add(label, classify(image))
    return scores


def boosted(splits: Splits, *, pixels: int, seed: int, class_weight: str | None) -> Classify:
    """Train a classifier of single pixels on the source."""
    model = HistGradientBoostingClassifier(random_state=seed, class_weight=class_weight)
    return by_pixel(model.fit(*sample_pixels(splits, pixels, seed)))


def by_pixel(model: Any, features: Callable[[np.ndarray], np.ndarray] = pixel_features) -> Classify:
    """Return a fitted classifier of single pixels as one of whole images.

    Args:
      model: scikit-learn's.
      features: from an image (H, W, C) to the features (H, W, F) that it was fitted to.
    """

    def classify(image: np.ndarray) -> np.ndarray:
        found = features(image)
        return model.predict(found.reshape(-1, found.shape[-1])).reshape(image.shape[:2])

    return classify


def labelled_pixels(
    splits: Splits, features: Callable[[np.ndarray], np.ndarray] = pixel_features
) -> tuple[np.ndarray, np.ndarray]:
    """Return features (n, F) and class ids (n,) of all labelled training pixels; for small sources."""
    examples = [(image, label, label != 255) for *_, image, label in splits.examples("train")]
    return (
        np.concatenate([features(image)[known] for image, _, known in examples]),
        np.concatenate([label[known] for _, label, known in examples]),
    )


def trained(workdir: Path, config: RunConfig) -> Classify:
    """Load the best checkpoint of a run as a classifier over sliding windows.

    Raises:
      UserError: the run was not trained on this benchmark's source, bands or classes.
    """
    # imports JAX, which the classifier alone does not need
    from spectralmoe_jax.inference.predict_step import make_predict
    from spectralmoe_jax.inference.segmenter_weights import load_trained

    run = read_run_config(workdir)
    for key in ("bands", "classes", "data.source", "data.holdout"):
        here, there = (operator.attrgetter(key)(each) for each in (config, run))
        if here != there:
            raise UserError(f"{workdir}: config.{key} is {there}, not {here}: give a run of configs/dubai.py")
    predict = make_predict(load_trained(workdir, run))
    return lambda image: predict_image(image, predict, run.evaluate).argmax(axis=-1)


def train_seeds(config: RunConfig, folder: Path, seeds: int) -> list[Path]:
    """Train the runs `dubai_0`, `dubai_1`, ... below a folder to the end; finished ones are kept.

    Raises:
      UserError: a folder holds a run of another configuration, or training fails on bad input.
    """
    workdirs = [folder / f"dubai_{seed}" for seed in range(seeds)]
    for seed, workdir in enumerate(workdirs):
        spectralmoe_jax.train(config.replaced({"seed": seed}), workdir)
    return workdirs


def total(scores: Scores) -> ConfusionMatrix:
    """Add the pixels of all domains."""
    everything = ConfusionMatrix(len(next(iter(scores.values())).counts))
    for matrix in scores.values():
        everything += matrix
    return everything


def benchmark(
    config: RunConfig, seeds: int, pixels: int, workdirs: Sequence[Path]
) -> Iterator[tuple[str, str, Scores]]:
    """Yield (method, run, scores) of every trained model and classifier as soon as it is known."""
    splits = open_splits(config)
    classes = len(config.classes.names)
    for workdir in workdirs:
        yield _OURS, workdir.name, score_target(trained(workdir, config), splits, classes)
    for method, class_weight in _WEIGHTINGS.items():
        for seed in range(seeds):
            classify = boosted(splits, pixels=pixels, seed=seed, class_weight=class_weight)
            yield method, f"seed {seed}", score_target(classify, splits, classes)


def print_results(results: Sequence[tuple[str, str, Scores]], config: RunConfig, console: Console) -> None:
    """Print a row for each run, then one for each method with its mean, and which of them ours beats."""
    table = Table(
        box=None,
        header_style="bold",
        title=f"IoU on {', '.join(config.data.target)}, %",
        title_justify="left",
    )
    table.add_column("method")
    table.add_column("run")
    for heading in ("mIoU", *config.data.target, *config.classes.names):
        table.add_column(heading, justify="right", no_wrap=True, min_width=5)
    rows: dict[str, list[np.ndarray]] = {}
    for method, run, scores in results:
        both = total(scores)
        row = np.array([both.miou, *(scores[domain].miou for domain in config.data.target), *both.iou])
        rows.setdefault(method, []).append(row)
        table.add_row(method, run, *_percents(row))
    table.add_section()
    for method, values in rows.items():
        table.add_row(method, f"mean of {len(values)}", *_percents(np.mean(values, axis=0)), style="bold")
    console.print(table)
    for line in verdicts({method: [row[0] for row in values] for method, values in rows.items()}):
        console.print(line)


def verdicts(miou: dict[str, list[float]]) -> list[str]:
    """Compare ours with every classifier in one line: in the mean over runs, and in every run.

    Args:
      miou: of each run, by method.
    """
    ours = miou.get(_OURS)
    if ours is None:
        return []
    mean, worst = np.mean(ours), min(ours)
    lines = []
    for method in _WEIGHTINGS:
        bar, best = np.mean(miou[method]), max(miou[method])
        means, runs = ("above" if a > b else "NOT above" for a, b in ((mean, bar), (worst, best)))
        lines.append(
            f"{_OURS} {100 * mean:.2f}, {method} {100 * bar:.2f}: {means} it; "
            f"worst run {100 * worst:.2f}, its best {100 * best:.2f}: {runs}"
        )
    return lines


def _percents(values: np.ndarray) -> list[str]:
    return ["-" if np.isnan(value) else f"{100 * value:.2f}" for value in values]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 2 and print one line on standard error if the input is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, metavar="DIR", help="folder with tile_1 ... tile_6")
    parser.add_argument(
        "--seeds", type=int, default=3, metavar="N", help="number of runs, and of classifiers of each kind"
    )
    parser.add_argument(
        "--pixels", type=int, default=400_000, metavar="N", help="training pixels of each classifier"
    )
    ours = parser.add_mutually_exclusive_group()
    ours.add_argument("--train", type=Path, metavar="DIR", help="train the seeds that are missing below DIR")
    ours.add_argument("--workdirs", nargs="*", type=Path, default=(), metavar="DIR", help="trained runs")
    arguments = parser.parse_args(argv)
    if arguments.seeds < 1 or arguments.pixels < 1:
        parser.error("--seeds and --pixels must be at least 1")
    console = Console() if sys.stdout.isatty() else Console(width=_LOG_WIDTH)
    results = []
    try:
        config = load_config(str(_CONFIG), [f"--config.data.root={arguments.root}"])
        workdirs = arguments.workdirs
        if arguments.train is not None:
            workdirs = train_seeds(config, arguments.train, arguments.seeds)
        for result in benchmark(config, arguments.seeds, arguments.pixels, workdirs):
            method, run, scores = result
            console.print(f"{method}, {run}: mIoU {100 * total(scores).miou:.2f}")
            results.append(result)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_results(results, config, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
