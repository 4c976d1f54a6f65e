"""Counts over the images of a split, and the scores that follow from them.

`tally_split` runs a predictor over a split and counts, by image, pixels of true against predicted class
(`ConfusionMatrix`) and, where the predictor reports experts, tokens by expert and class (`RoutingCounts`).
`held_out_scores` reduces these counts to the scores that training selects its best checkpoint by.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.loader import eval_batches
from data_pipelines.records import IGNORE, Record
from data_pipelines.splits import Splits
from spectralmoe_jax.config.schema import EvaluateConfig, RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.boundaries import BoundaryCounts
from spectralmoe_jax.evaluation.reliability import Reliability
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.inference.sliding_window import (
    Predict,
    RoutedStep,
    overlapping_tiles,
    predict_image,
    require_finite,
    require_room_for_windows,
)
from spectralmoe_jax.npz import read_npz


class ConfusionMatrix:
    """Pixels by true class (row) and predicted class (column).

    Pixels whose truth is not in 0..C-1, such as the ignore label 255, are left out.

    Attributes:
      counts: (C, C) int64.
    """

    def __init__(self, num_classes: int):
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count two integer arrays of one shape.

        Raises:
          ValueError: the shapes differ, or a prediction is not in 0..C-1 where the truth is.
        """
        classes = len(self.counts)
        if truth.shape != prediction.shape:
            raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
        known = (truth >= 0) & (truth < classes)
        rows, columns = truth[known].astype(np.int64), prediction[known].astype(np.int64)
        if columns.size and not 0 <= columns.min() <= columns.max() < classes:
            raise ValueError(f"predictions must lie in 0..{classes - 1}")
        self.counts += np.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes)

    def __iadd__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """Add the counts of another matrix."""
        self.counts += other.counts
        return self

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union by class (C,); NaN for a class neither in the truth nor predicted."""
        hit = np.diag(self.counts)
        return _ratio(hit, self.counts.sum(axis=0) + self.counts.sum(axis=1) - hit)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of a class's true pixels that are found (C,); NaN for a class that is not in the truth."""
        return _ratio(np.diag(self.counts), self.counts.sum(axis=1))

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of the shares of hits in truth and prediction (C,); NaN where the IoU has none."""
        return _ratio(2 * np.diag(self.counts), self.counts.sum(axis=0) + self.counts.sum(axis=1))

    @property
    def kappa(self) -> float:
        """Cohen's kappa: accuracy beyond that of chance, over its largest value; NaN without any."""
        counts = self.counts.astype(np.float64)  # products of sums are beyond int64
        chance = float(_ratio(counts.sum(axis=0) @ counts.sum(axis=1), counts.sum() ** 2))
        return float(_ratio(np.asarray(self.overall_accuracy - chance), np.asarray(1 - chance)))

    @property
    def miou(self) -> float:
        """Mean of `iou` over the classes that have one; NaN without any."""
        iou = self.iou
        return float(np.mean(iou[~np.isnan(iou)])) if not np.all(np.isnan(iou)) else float("nan")

    @property
    def overall_accuracy(self) -> float:
        """Share of labelled pixels that are predicted correctly; NaN without any."""
        return float(_ratio(np.trace(self.counts), self.counts.sum()))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    whole = np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


class RoutedPredict:
    """A predictor that keeps the experts of its tiles until they are taken."""

    def __init__(self, step: RoutedStep):
        self._step = step
        self._kept: list[np.ndarray] = []

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """Tiles (B, S, S, bands) -> scores (B, S, S, C)."""
        scores, experts = self._step(tiles)
        self._kept.append(experts)
        return scores

    def take(self) -> np.ndarray:
        """Return the experts (L, J, B, N) of all tiles since the last call, in order."""
        taken = np.concatenate(self._kept, axis=2)
        self._kept = []
        return taken


class RoutingCounts:
    """Tokens by layer, modality, expert and class.

    A token's class is the most frequent one among the labelled pixels of its patch, with ties to the lower
    number; a token without a labelled pixel is left out.

    Attributes:
      counts: (L, J, E, C) int64, or None before the first tile.
    """

    def __init__(self, experts: int, classes: int):
        self._experts, self._classes = experts, classes
        self.counts: np.ndarray | None = None

    def add(self, experts: np.ndarray, labels: np.ndarray) -> None:
        """Count the tokens of some tiles.

        Args:
          experts: (L, J, B, N), the strongest expert of every token; J is 0 for an adapter without experts.
          labels: (B, S, S), 255 for ignore, S a multiple of the side of the token grid.
        """
        layers, modalities, _, tokens = experts.shape
        if not modalities:
            return
        token_class = patch_classes(labels, round(tokens**0.5), self._classes).reshape(-1)  # (B * N,)
        known = token_class >= 0
        # (T,), (L, J, T) for the T tokens with a labelled pixel
        token_class, chosen = token_class[known], experts.reshape(layers, modalities, -1)[..., known]
        if self.counts is None:
            self.counts = np.zeros((layers, modalities, self._experts, self._classes), np.int64)
        shape = self.counts.shape[2:]
        # joint histogram of (expert, class) for each layer and modality
        for place in np.ndindex(layers, modalities):
            pairs = chosen[place] * self._classes + token_class
            self.counts[place] += np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)


def patch_classes(labels: np.ndarray, side: int, classes: int) -> np.ndarray:
    """Return the most frequent class of every patch.

    Args:
      labels: (B, S, S); values outside 0..classes-1 do not count.
      side: patches along an edge; divides S.
      classes: number of classes.

    Returns:
      (B, side, side) int64, -1 where no pixel is labelled.
    """
    batch, size = labels.shape[:2]
    patch = size // side
    assert side * patch == size
    # (B, S, S) -> (B, side, side, patch, patch) -> (B * side * side, patch * patch)
    rows = labels.reshape(batch, side, patch, side, patch).transpose(0, 1, 3, 2, 4).reshape(-1, patch**2)
    known = rows < classes
    # one histogram per patch in a single bincount: patch n counts in n * classes .. n * classes + classes - 1
    offset = np.broadcast_to(np.arange(len(rows))[:, None] * classes, rows.shape)
    counted = np.bincount((offset + rows)[known], minlength=len(rows) * classes).reshape(-1, classes)
    chosen = np.where(counted.any(axis=1), counted.argmax(axis=1), -1)
    return chosen.reshape(batch, side, side)


def mutual_information(counts: np.ndarray) -> float:
    """Return the normalised mutual information of rows and columns of a table of counts (E, C), in 0..1.

    I(row; column) over the mean of the two entropies. It is 0 where rows or columns take one value only,
    which carries no information, and NaN where nothing was counted.
    """
    total = counts.sum()
    if not total:
        return float("nan")
    joint = counts / total
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    entropies = _entropy(rows), _entropy(columns)
    if min(entropies) == 0:
        return 0.0
    shared = sum(entropies) - _entropy(joint.reshape(-1))
    return float(max(shared, 0.0) / np.mean(entropies))


def _entropy(shares: np.ndarray) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum()) if len(positive) > 1 else 0.0


class ImageCounts(NamedTuple):
    """Counts of one image.

    Attributes:
      domain: domain of the image.
      name: name of the image.
      counts: (C, C) int64, pixels by true class and predicted class.
    """

    domain: str
    name: str
    counts: np.ndarray


class Tally:
    """Counts of a split: pixels by image, and tokens by expert where the predictor reports experts.

    Args:
      names: names of the classes.
      experts: number of experts, or None for a predictor that reports none.
      temperatures: also measure the probabilities with each of these, and the edges of classes; none for a
        predictor of classes alone.

    Attributes:
      names: names of the classes.
      images: counts by image, in order.
      routing: counts of tokens, or None.
      reliability: of the probabilities with each temperature.
      boundaries: counts near the edges of classes, None without temperatures.
    """

    def __init__(self, names: Sequence[str], experts: int | None = None, temperatures: Sequence[float] = ()):
        self.names = list(names)
        self.reliability = [Reliability(temperature) for temperature in temperatures]
        self.boundaries = BoundaryCounts(len(names)) if temperatures else None
        self.images: list[ImageCounts] = []
        self.routing = None if experts is None else RoutingCounts(experts, len(names))

    def add(self, domain: str, name: str, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count one image; see `ConfusionMatrix.add`."""
        matrix = ConfusionMatrix(len(self.names))
        matrix.add(truth, prediction)
        self.images.append(ImageCounts(domain, name, matrix.counts))

    def add_scores(self, domain: str, name: str, truth: np.ndarray, scores: np.ndarray) -> None:
        """Count one image (H, W) by its scores (H, W, C)."""
        prediction = scores.argmax(axis=-1)
        self.add(domain, name, truth, prediction)
        for reliability in self.reliability:
            reliability.add(truth.reshape(-1), scores.reshape(-1, scores.shape[-1]))
        if self.boundaries is not None:
            self.boundaries.add(truth, prediction)

    def domains(self) -> dict[str, ConfusionMatrix]:
        """Return the counts of each domain, in order of first appearance."""
        found: dict[str, ConfusionMatrix] = {}
        for image in self.images:
            matrix = found.setdefault(image.domain, ConfusionMatrix(len(self.names)))
            matrix.counts += image.counts
        return found

    def total(self) -> ConfusionMatrix:
        """Return the counts of all images together.

        Raises:
          UserError: there is no image.
        """
        if not self.images:
            raise UserError("the split to evaluate is empty: name domains with images in config.data")
        total = ConfusionMatrix(len(self.names))
        for matrix in self.domains().values():
            total += matrix
        return total

    def count_images(
        self,
        predict: Predict,
        examples: Iterable[tuple[str, str, np.ndarray, np.ndarray]],
        settings: EvaluateConfig,
    ) -> None:
        """Count images of any size, in overlapping windows.

        A token counts once for every window that contains it; tokens beyond the image do not count.

        Args:
          predict: a predictor, or a `RoutedPredict`.
          examples: (domain, name, image (H, W, bands), label (H, W)).
          settings: side and overlap of the windows.
        """
        for domain, name, image, label in examples:
            self.add_scores(domain, name, label, predict_image(image, predict, settings))
            if isinstance(predict, RoutedPredict):
                self._count_routing(predict, _label_windows(label, settings))

    def count_tiles(
        self,
        predict: Predict,
        batches: Iterable[Mapping[str, np.ndarray]],
        records: Sequence[Record],
    ) -> None:
        """Count images that each fit into one window, several at a time.

        Args:
          predict: a predictor, or a `RoutedPredict`.
          batches: from `data_pipelines.loader.eval_batches`.
          records: of the images, by their numbers in the batches.
        """
        for batch in batches:
            scores = require_finite(predict(batch["image"]))  # (B, S, S, C)
            for row in np.flatnonzero(batch["valid"]):
                record = records[batch["record"][row]]
                inside = (row, slice(record.height), slice(record.width))
                self.add_scores(record.domain, record.name, batch["label"][inside], scores[inside])
            if isinstance(predict, RoutedPredict):
                self._count_routing(predict, batch["label"])  # all 255 in rows that are not valid

    def _count_routing(self, predict: RoutedPredict, labels: np.ndarray) -> None:
        experts = predict.take()[:, :, : len(labels)]  # the last batch of windows is padded
        if self.routing is not None:
            self.routing.add(experts, labels)


def _label_windows(label: np.ndarray, settings: EvaluateConfig) -> np.ndarray:
    """Cut a label (H, W) into the windows of `predict_image`: (windows, S, S), 255 beyond the image."""
    missing = [(0, max(0, settings.window - length)) for length in label.shape]
    filled = np.pad(label, missing, constant_values=IGNORE)[..., None]
    return np.stack([tile[..., 0] for _, tile in overlapping_tiles(filled, settings)])


def tally_split(
    config: RunConfig,
    splits: Splits,
    split: str,
    predict: Predict,
    experts: int | None = None,
    temperatures: Sequence[float] = (),
) -> Tally:
    """Run a predictor over all images of a split and count.

    Tiles that fit into a window go through the model several at a time, larger images one by one.

    Args:
      config: the run's configuration.
      splits: its images.
      split: name of the split.
      predict: a predictor, or a `RoutedPredict`.
      experts: number of experts that a `RoutedPredict` chooses from.
      temperatures: see `Tally`.
    """
    settings = config.evaluate
    tally = Tally(config.classes.names, experts, temperatures)
    source, records = splits.of(split)
    if any(max(record.height, record.width) > settings.window for record in records) or not records:
        tally.count_images(predict, splits.examples(split), settings)
        return tally
    require_room_for_windows(settings.batch_size, settings.window**2 * (len(config.bands) + 1))
    batches = eval_batches(
        source,
        records,
        settings.window,
        batch_size=settings.batch_size,
        workers=config.data.workers,
    )
    with contextlib.closing(batches):
        tally.count_tiles(predict, batches, records)
    return tally


def held_out_scores(tallies: Mapping[str, Tally]) -> dict[str, float]:
    """Return the scores of the held-out images that a training run logs.

    The first stream, the run's own, has `miou` and `overall_accuracy`, every other one `miou_NAME`. With
    several domains, `mean_miou` is the mean over those that have a labelled pixel.

    Args:
      tallies: counts of the held-out images of each stream, the run's own first.
    """
    totals = {name: tally.total() for name, tally in tallies.items()}
    own, *others = totals
    domains = [matrix.miou for tally in tallies.values() for matrix in tally.domains().values()]
    scores = {"miou": totals[own].miou, "overall_accuracy": totals[own].overall_accuracy}
    scores |= {f"miou_{name}": totals[name].miou for name in others}
    if len(domains) > 1:
        known = [miou for miou in domains if not math.isnan(miou)]
        scores["mean_miou"] = sum(known) / len(known) if known else math.nan
    return scores


def write_images(images: Sequence[ImageCounts], path: str | os.PathLike[str]) -> None:
    """Write the counts of every image as a compressed NPZ, whole or not at all.

    The file holds `domain` and `name` (I,) and `confusion` (I, C, C) int64.

    Raises:
      UserError: the file cannot be written.
    """
    path = Path(path)
    try:
        with atomic_write(path) as aside, aside.open("wb") as file:
            np.savez_compressed(
                file,
                domain=np.array([image.domain for image in images]),
                name=np.array([image.name for image in images]),
                confusion=np.stack([image.counts for image in images]),
            )
    except OSError as problem:
        raise UserError(f"{path}: cannot be written ({problem.strerror}); choose another --images") from None


def read_images(path: str | os.PathLike[str]) -> list[ImageCounts]:
    """Read the file that `write_images` wrote.

    Raises:
      UserError: the file is not one that `write_images` wrote, or is damaged.
    """
    remedy = "evaluate the model again"
    stored = read_npz(Path(path), remedy, what="file of counts by image")
    arrays = [stored.get(name) for name in ("domain", "name", "confusion")]
    domains, names, counts = (np.zeros(()) if array is None else array for array in arrays)
    is_whole = domains.ndim == names.ndim == 1 and counts.ndim == 3 and counts.shape[1] == counts.shape[2]
    is_whole = is_whole and len(domains) == len(names) == len(counts) and counts.dtype.kind in "iu"
    if not is_whole or {domains.dtype.kind, names.dtype.kind} != {"U"}:
        raise UserError(f"{path}: holds no counts by image: {remedy}")
    return [ImageCounts(str(d), str(n), c) for d, n, c in zip(domains, names, counts, strict=True)]
