"""Classifiers of single pixels beside a model, on the source and the target of its configuration.

Logistic regression on the bands, and scikit-learn's HistGradientBoostingClassifier with its default settings
on the bands, and on the bands with their means over 3x3 and 9x9 pixels. Each learns from the training images,
with one draw of pixels and one held-out split for each seed; nothing is chosen on the target.

  python benchmarks/pixel_baselines.py --config configs/cloud_shadow.py --root PATH/cloudshadow --seeds 5
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from dubai_baseline import Classify, by_pixel, labelled_pixels, pixel_features
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_pipelines.splits import Splits, open_splits
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.metrics import ConfusionMatrix

Features = Callable[[np.ndarray], np.ndarray]  # image (H, W, C) -> (H, W, F)
PIXELS = 200_000  # most labelled pixels that a classifier learns from


def bands(image: np.ndarray) -> np.ndarray:
    """Return the bands of an image (H, W, C) as float32."""
    return image.astype(np.float32)


def _logistic(seed: int) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, random_state=seed))


def _boosted(seed: int) -> Any:
    return HistGradientBoostingClassifier(random_state=seed)


METHODS: dict[str, tuple[Callable[[int], Any], Features]] = {
    "logistic regression, bands": (_logistic, bands),
    "boosted trees, bands": (_boosted, bands),
    "boosted trees, bands and local means": (_boosted, pixel_features),
}


def training_pixels(splits: Splits, features: Features, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw labelled training pixels uniformly: features (n, F) and class ids (n,)."""
    x, y = labelled_pixels(splits, features)
    chosen = np.random.default_rng(seed).choice(len(y), min(len(y), PIXELS), replace=False)
    return x[chosen], y[chosen]


def score(classify: Classify, splits: Splits, split: str, classes: int) -> float:
    """Return the mIoU in per cent of a classifier on a split."""
    matrix = ConfusionMatrix(classes)
    for *_, image, label in splits.examples(split):
        matrix.add(label, classify(image))
    return 100 * matrix.miou


def benchmark(config: RunConfig, seeds: int) -> dict[str, np.ndarray]:
    """Return held-out and target mIoU of every method and seed, (seeds, 2)."""
    classes, found = len(config.classes.names), {}
    for name, (make, features) in METHODS.items():
        rows = []
        for seed in range(seeds):
            splits = open_splits(config.replaced({"data.holdout_seed": seed}))
            classify = by_pixel(make(seed).fit(*training_pixels(splits, features, seed)), features)
            rows.append([score(classify, splits, split, classes) for split in ("holdout", "target")])
        found[name] = np.array(rows)
    return found


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default=str(Path(__file__).parent.parent / "configs" / "cloud_shadow.py"))
    parser.add_argument("--root", required=True, help="folder of the data")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, [f"--config.data.root={arguments.root}"])
        table = Table(box=None, header_style="bold", title=f"{config.name}: mIoU, %", title_justify="left")
        for column in ("classifier", "held-out source", "target"):
            table.add_column(column)
        for name, scores in benchmark(config, arguments.seeds).items():
            mean, deviation = scores.mean(axis=0), scores.std(axis=0, ddof=1 if len(scores) > 1 else 0)
            table.add_row(name, *(f"{m:.1f} ± {d:.1f}" for m, d in zip(mean, deviation, strict=True)))
        Console().print(table)
    except UserError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
