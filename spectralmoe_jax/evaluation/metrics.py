"""What evaluation counts while it goes over the images of a split.

Counting truth against prediction.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.records import IGNORE
from spectralmoe_jax.config.schema import EvaluateConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.expert_routing import RoutedPredict, RoutingCounts
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.inference.sliding_window import (
    Predict,
    finite,
    padded_tile,
    predict_image,
    window_starts,
)


class ConfusionMatrix:
    """Pixels by true class (row) and predicted class (column), (K, K) int64.

    Pixels whose truth is not in 0..K-1, such as the ignore label 255, are left out.
    """

    def __init__(self, num_classes: int):
        self.counts = np.zeros((num_classes, num_classes), np.int64)

    def add(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count two integer arrays of one shape; predictions must lie in 0..K-1 where truth does.

        Raises ValueError where they do not, or where the shapes differ.
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
        """Merge the counts of another domain or host."""
        self.counts += other.counts
        return self

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union a class (K,); NaN for a class neither in the truth nor predicted."""
        hit = np.diag(self.counts)
        return _ratio(hit, self.counts.sum(axis=0) + self.counts.sum(axis=1) - hit)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of a class's true pixels that are found (K,); NaN for a class that is not in the truth."""
        return _ratio(np.diag(self.counts), self.counts.sum(axis=1))

    @property
    def miou(self) -> float:
        """Mean of `iou` over the classes that have one; NaN without any."""
        iou = self.iou
        return float(np.mean(iou[~np.isnan(iou)])) if not np.all(np.isnan(iou)) else float("nan")

    @property
    def overall_accuracy(self) -> float:
        """Share of labelled pixels that are right; NaN without any."""
        return float(_ratio(np.trace(self.counts), self.counts.sum()))


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    whole = np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


class Tally:
    """Pixels by image, true and predicted class, and where the predictor tells, tokens by expert and class.

    Attributes: names of the classes; images, in order; routing, None for a predictor that does not tell.
    """

    def __init__(self, names: Sequence[str], experts: int | None = None):
        self.names = list(names)
        self.images: list[ImageCounts] = []
        self.routing = None if experts is None else RoutingCounts(experts, len(names))

    def add(self, domain: str, name: str, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count one image: see `ConfusionMatrix.add`."""
        matrix = ConfusionMatrix(len(self.names))
        matrix.add(truth, prediction)
        self.images.append(ImageCounts(domain, name, matrix.counts))

    def domains(self) -> dict[str, ConfusionMatrix]:
        """The counts of each domain, in the order in which they came."""
        found: dict[str, ConfusionMatrix] = {}
        for image in self.images:
            matrix = found.setdefault(image.domain, ConfusionMatrix(len(self.names)))
            matrix.counts += image.counts
        return found

    def count_images(self, predict: Predict, examples: Iterable[tuple[str, str, np.ndarray, np.ndarray]],
                     settings: EvaluateConfig) -> None:  # fmt: skip
        """Go over (domain, name, image (H, W, C), label (H, W)), in windows that overlap.

        A token counts once for every window it is in; beyond the image it does not count.
        """
        for domain, name, image, label in examples:
            self.add(domain, name, label, predict_image(image, predict, settings).argmax(axis=-1))
            if isinstance(predict, RoutedPredict):
                self._count_routing(predict, _windows(label, settings))

    def count_tiles(self, predict: Predict, batches: Iterable[Mapping[str, np.ndarray]],
                    records: Sequence[tuple[str, str]]) -> None:  # fmt: skip
        """Go over images that each fit into one window: batches of `data_pipelines.loader.eval_batches`,
        and (domain, name) of each record."""
        for batch in batches:
            predictions = finite(predict(batch["image"])).argmax(axis=-1)  # (B, T, T)
            for row in np.flatnonzero(batch["valid"]):
                domain, name = records[batch["record"][row]]
                self.add(domain, name, batch["label"][row], predictions[row])
            if isinstance(predict, RoutedPredict):
                self._count_routing(predict, batch["label"])  # all 255 in rows that are not valid

    def _count_routing(self, predict: RoutedPredict, labels: np.ndarray) -> None:
        experts = predict.take()[:, :, : len(labels)]  # the last batch of windows was filled up
        if self.routing is not None:
            self.routing.add(experts, labels)


class ImageCounts(NamedTuple):
    """counts: (K, K) int64, true class by predicted class, of one image."""

    domain: str
    name: str
    counts: np.ndarray


def _windows(label: np.ndarray, settings: EvaluateConfig) -> np.ndarray:
    """The windows of a label (H, W), as `predict_image` lays them: (windows, T, T), 255 beyond it."""
    size = settings.window
    rows, columns = (window_starts(length, size, settings.overlap) for length in label.shape)
    missing = [(0, max(0, size - length)) for length in label.shape]
    filled = np.pad(label, missing, constant_values=IGNORE)[..., None]
    return np.stack([padded_tile(filled, row, column, size)[..., 0] for row in rows for column in columns])


def write_images(images: Sequence[ImageCounts], path: str | os.PathLike[str]) -> None:
    """Write the counts of every image as a compressed NPZ, whole or not at all: `domain` and `name` (I,) and
    `confusion` (I, K, K) int64.

    Raises UserError where the folder cannot be written.
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
    """What `write_images` wrote. Raises UserError for a file that is not such a one."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            domains, names, counts = stored["domain"], stored["name"], stored["confusion"]
    except (OSError, ValueError, KeyError) as problem:
        raise UserError(f"{path}: holds no counts by image ({problem})") from None
    return [ImageCounts(str(d), str(n), c) for d, n, c in zip(domains, names, counts, strict=True)]
