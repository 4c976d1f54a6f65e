"""Training on 2 % of the labels: unlabelled pixels excluded, or negative, beside dense labels.

Labels are removed from the training images until about 2 % of the labelled pixels are left: of every class,
connected components are kept whole, drawn at random among those that fit into what is left of its share.
Where most objects are larger than that, they are first cut along a lattice, into patches as one would
digitise. Held-out and target images keep all labels, for scoring. No checkpoint is selected: the last one is
scored.

  generated   the simulated benchmark of configs/quickstart.py, with smaller crops
  sentinel2   configs/sentinel2_landcover.py, where the labels of one place hold for every date

Beside them, the same with a frozen foundation model (`:galileo` of the same configurations), where --weights
says where it is, and scikit-learn's HistGradientBoostingClassifier, which learns with its default settings
from the same pixels, with the features of benchmarks/dubai_baseline.py.

  python benchmarks/sparse_labels.py --workdir runs/sparse --sentinel2 PATH/sentinel2 --seeds 2 --weights hub

Scores below the folder are kept, and interrupted runs continue. A run takes one to four minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from dubai_baseline import Classify, by_pixel, labelled_pixels
from rich.console import Console
from rich.table import Table
from sklearn.ensemble import HistGradientBoostingClassifier

from data_pipelines.records import IGNORE, Record, Source, Window, crop
from data_pipelines.sources import open_source
from data_pipelines.splits import Splits, open_splits
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.metrics import ConfusionMatrix
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.inference.sliding_window import predict_image

_HERE = Path(__file__).resolve()
_CONFIGS = {"generated": "quickstart.py", "sentinel2": "sentinel2_landcover.py"}
_SIZES: dict[str, dict[str, Any]] = {
    "generated": {"data.crop": 64, "evaluate.window": 64, "evaluate.overlap": 16},
    "sentinel2": {"train.steps": 180, "train.evaluate_every": 180, "train.checkpoint_every": 90},
}
_FROZEN_SIZES: dict[str, Any] = {"train.evaluate_every": 100}
_DENSE, _FROZEN, _TREES = "dense", "frozen, dense", "boosted trees"
_ON_LABELS = {"loss.unlabelled": "excluded", "augment.crop_on_labels": 1.0}
# few labels are often parts of patches, whose most frequent class they do not tell
_OF_PIXELS = {"model.head.labels": "pixels"}
_METHODS: dict[str, dict[str, Any]] = {
    _DENSE: {},
    "negative": {"loss.unlabelled": "negative"},
    "excluded": _ON_LABELS,
    _FROZEN: _OF_PIXELS,
    "frozen, excluded": _ON_LABELS | _OF_PIXELS,
}
_ORDER = (*_METHODS, _TREES)
_LATTICE = {"generated": None, "sentinel2": 8}  # side of its cells in pixels
_SHARE = 0.02
_LOG_WIDTH = 200  # off a terminal rich would cut the table at 80


class SparseLabels:
    """A source of which only some labels are kept.

    Args:
      source: images and labels.
      labels: the labels (H, W) uint8 of every record.
      classes: number of classes K.
    """

    def __init__(self, source: Source[Any], labels: Mapping[Record, np.ndarray], classes: int):
        self.records, self._source, self._labels = source.records, source, labels
        counts = [np.bincount(labels[r].ravel(), minlength=IGNORE + 1) for r in self.records]
        self.class_pixels = np.stack(counts)[:, :classes]

    def read_image(self, record: Record, window: Window | None = None) -> np.ndarray:
        """Return pixels (H, W, C) of a record or a window."""
        return self._source.read_image(record, window)

    def read_label(self, record: Record, window: Window | None = None) -> np.ndarray:
        """Return the labels (H, W) that are kept of a record or a window."""
        return crop(self._labels[record], window)


def open_sparse(config: RunConfig, domains: Sequence[str]) -> SparseLabels:
    """Open a source without most of the labels of its training images.

    Args:
      config: a configuration from `sparse`.
      domains: names of domains.
    """
    own = config.given["data"]
    dense = config.replaced({"data.kind": own["kind_of_source"]})
    source, classes = open_source(dense, domains), len(config.classes.names)
    labels = {record: source.read_label(record).copy() for record in source.records}
    train = [record for record in open_splits(dense).train if record in labels]
    if train:
        places = [labels[record] for record in train[: 1 if own["one_place"] else None]]
        kept = kept_components(places, classes, _SHARE, own["kept_seed"], own["lattice"])
        for number, record in enumerate(train):
            labels[record][~kept[number % len(kept)]] = IGNORE
    return SparseLabels(source, labels, classes)


def kept_components(
    labels: Sequence[np.ndarray], classes: int, share: float, seed: int, lattice: int | None = None
) -> list[np.ndarray]:
    """Draw whole connected components of every class, up to a share of its pixels.

    Components come in random order; one that is larger than what is left of the share is passed over. A class
    whose components are all too large keeps its smallest one.

    Args:
      labels: (H, W) uint8 each.
      classes: number of classes K.
      share: of the pixels of each class in all images together.
      seed: of the draw.
      lattice: side in pixels of the cells that components are cut into; None for whole ones.

    Returns:
      A mask (H, W) bool for each image.
    """
    rng = np.random.default_rng(seed)
    kept = [np.zeros(label.shape, bool) for label in labels]
    for wanted in range(classes):
        numbered = [components(label == wanted, lattice) for label in labels]
        pieces = [
            (image, number, int(size))
            for image, numbers in enumerate(numbered)
            for number, size in enumerate(np.bincount(numbers.ravel()))
            if number  # 0 is the background
        ]
        left = share * sum(size for _, _, size in pieces)
        chosen = []
        for index in rng.permutation(len(pieces)):
            if pieces[index][2] <= left:
                chosen.append(pieces[index])
                left -= pieces[index][2]
        if pieces and not chosen:
            chosen.append(min(pieces, key=lambda piece: piece[2]))
        for image, number, _ in chosen:
            kept[image] |= numbered[image] == number
    return kept


def components(mask: np.ndarray, lattice: int | None) -> np.ndarray:
    """Number the connected components of a mask (H, W), each cell of a lattice on its own; 0 outside."""
    step = lattice or max(mask.shape)
    numbers, count = np.zeros(mask.shape, np.int32), 0
    for top in range(0, mask.shape[0], step):
        for left in range(0, mask.shape[1], step):
            cell = np.s_[top : top + step, left : left + step]
            found, own = cv2.connectedComponents(mask[cell].astype(np.uint8))
            numbers[cell] = np.where(own > 0, own + count, 0)
            count += found - 1
    return numbers


def sparse(config: RunConfig, name: str, seed: int) -> RunConfig:
    """Return a configuration whose training images have few labels left.

    Args:
      config: with all labels.
      name: of the data set.
      seed: of the choice of labels.
    """
    given = {"kind_of_source": config.data.kind, "kept_seed": seed, "lattice": _LATTICE[name]}
    given["one_place"] = name == "sentinel2"
    values = {"kind": f"{_HERE}:open_sparse", **given}
    return config.replaced({f"data.{key}": value for key, value in values.items()})


def trees(splits: Splits, seed: int) -> Classify:
    """Train a classifier of single pixels on the labelled training pixels."""
    model = HistGradientBoostingClassifier(random_state=seed)
    return by_pixel(model.fit(*labelled_pixels(splits)))


def trained(config: RunConfig, workdir: Path) -> Classify:
    """Train a run to its end, and return it as a classifier over sliding windows.

    Raises:
      UserError: the run was stopped on request.
    """
    # imports JAX, which the trees do not need
    from spectralmoe_jax.inference.predict_step import make_predict
    from spectralmoe_jax.inference.segmenter_weights import load_trained
    from spectralmoe_jax.training.train import train

    if train(config, workdir)["step"] < config.train.steps:
        raise UserError(f"{workdir}: the run was stopped, the same command continues it")
    predict = make_predict(load_trained(workdir, config))
    return lambda image: predict_image(image, predict, config.evaluate).argmax(axis=-1)


def scores_of(classify: Classify, splits: Splits, classes: int) -> dict[str, float]:
    """Compute the mIoU of held-out and of target images, all pixels of a split together."""
    found = {}
    for split in ("holdout", "target"):
        matrix = ConfusionMatrix(classes)
        for _, _, image, label in splits.examples(split):
            matrix.add(label, classify(image))
        found[split] = matrix.miou
    return found


def run(name: str, config: RunConfig, method: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return the scores of one method on one data set with one seed, from its file if it is there."""
    place = folder / f"{name}_{method.replace(', ', '_').replace(' ', '_')}_{seed}"
    file = place.with_suffix(".json")
    if file.exists():
        return json.loads(file.read_text())
    sizes = _FROZEN_SIZES if is_frozen(method) else _SIZES[name]
    config = config.replaced({"seed": seed, **sizes, **_METHODS.get(method, {})})
    if method not in (_DENSE, _FROZEN):
        config = sparse(config, name, seed)
    splits, classes = open_splits(config), len(config.classes.names)
    labels = [label for _, _, _, label in splits.examples("train")]
    labelled = float(np.mean([(label != IGNORE).mean() for label in labels]))
    classify = trees(splits, seed) if method == _TREES else trained(config, place)
    result = {"labelled": labelled, **scores_of(classify, splits, classes)}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as aside:
        aside.write_text(json.dumps(result))
    return result


def is_frozen(method: str) -> bool:
    """Return whether a method adapts the frozen foundation model."""
    return method.startswith("frozen")


def open_configs(sentinel2: str | None, weights: str | None) -> dict[tuple[str, bool], RunConfig]:
    """Load the configurations, by name of the data set and whether the encoder is frozen.

    Args:
      sentinel2: folder of the real images; None to leave them out.
      weights: folder of Galileo-nano, or `hub`; None to leave the frozen encoder out.
    """
    configs = {}
    for name, file in _CONFIGS.items():
        given = [] if name == "generated" else [f"--config.data.root={sentinel2}"]
        if name == "sentinel2" and sentinel2 is None:
            continue
        path = str(_HERE.parent.parent / "configs" / file)
        configs[name, False] = load_config(path, given)
        if weights is not None:
            own = [] if weights == "hub" else [f"--config.model.visual.weights={weights}"]
            configs[name, True] = load_config(f"{path}:galileo", [*given, *own])
    return configs


def benchmark(
    configs: Mapping[tuple[str, bool], RunConfig], methods: Sequence[str], seeds: int, folder: Path
) -> Iterator[tuple[str, str, dict]]:
    """Yield (data set, method, scores) of every run, all methods of a seed before the next seed."""
    for seed in range(seeds):
        for (name, frozen), config in configs.items():
            for method in methods:
                if is_frozen(method) == frozen:
                    yield name, method, run(name, config, method, seed, folder)


def print_results(results: Sequence[tuple[str, str, dict]], console: Console) -> None:
    """Print means over seeds, each seed's held-out score, and its share of that with dense labels.

    The dense score is that of the frozen encoder for the methods that use it, else of the small one.
    """
    table = Table(box=None, header_style="bold")
    for heading in ("data set", "labels", "labelled, %", "held-out mIoU", "of dense", "target mIoU", "seeds"):
        table.add_column(heading, justify="left" if heading in ("data set", "labels") else "right")
    rows: dict[tuple[str, str], list[dict]] = {}
    for name, method, scores in results:
        rows.setdefault((name, method), []).append(scores)
    means = {key: {k: float(np.mean([s[k] for s in all_])) for k in all_[0]} for key, all_ in rows.items()}
    for (name, method), mean in means.items():
        dense = means.get((name, _FROZEN if is_frozen(method) else _DENSE), {}).get("holdout")
        each = " ".join(f"{100 * scores['holdout']:.1f}" for scores in rows[name, method])
        values = (
            mean["labelled"],
            mean["holdout"],
            mean["holdout"] / dense if dense else None,
            mean["target"],
        )
        cells = ("-" if value is None else f"{100 * value:.1f}" for value in values)
        table.add_row(name, method, *cells, each)
    console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 2 and print one line on standard error if the input is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workdir", type=Path, required=True, metavar="DIR", help="folder of runs and scores"
    )
    parser.add_argument("--sentinel2", metavar="DIR", help="folder with scene_0.tif; none to leave it out")
    parser.add_argument(
        "--weights", metavar="DIR", help="Galileo-nano's folder, or hub; none to leave it out"
    )
    parser.add_argument("--methods", nargs="+", choices=_ORDER, help="default: all")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="number of seeds, from 0")
    given = parser.parse_args(argv)
    console = Console() if sys.stdout.isatty() else Console(width=_LOG_WIDTH)
    results = []
    try:
        methods = given.methods or _ORDER
        if given.methods and given.weights is None and any(map(is_frozen, methods)):
            raise UserError("--methods: the frozen encoder needs --weights, its folder or hub")
        configs = open_configs(given.sentinel2, given.weights)
        for name, method, scores in benchmark(configs, methods, given.seeds, given.workdir):
            console.print(f"{name}, {method}: held-out mIoU {100 * scores['holdout']:.2f}")
            results.append((name, method, scores))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_results(results, console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
