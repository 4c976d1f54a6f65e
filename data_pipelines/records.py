"""Labelled images: the protocol of a source, records and windows, and the held-out split."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from spectralmoe_jax.errors import UserError, bad_value

IGNORE = 255
"""Label of a pixel that counts neither in training nor in evaluation."""


class NoImagesError(UserError):
    """A domain has no images."""


class Window(NamedTuple):
    """A rectangle of pixels.

    Attributes:
      row: first row.
      col: first column.
      height: number of rows.
      width: number of columns.
    """

    row: int
    col: int
    height: int
    width: int


@dataclass(frozen=True)
class Record:
    """One labelled image.

    Attributes:
      domain: place, sensor or season of the image.
      name: unique name.
      height: in pixels.
      width: in pixels.
    """

    domain: str
    name: str
    height: int
    width: int

    @property
    def image_name(self) -> str:
        """The image that this record is, or is a part of."""
        return self.name


R = TypeVar("R", bound=Record)


class Source(Protocol[R]):
    """Labelled images with random access. Sources can be pickled and read from several threads.

    A source that counts its labels also has `class_pixels`, labelled pixels (records, K) of each class in
    each record, or `label_grid` and `exact_label_grid` (`data_pipelines.tiles.label_grid`).
    """

    @property
    def records(self) -> Sequence[R]:
        """The images, in a fixed order."""

    def read_image(self, record: R, window: Window | None = None) -> np.ndarray:
        """Read raw pixel values (H, W, C) of an image or a window; read-only.

        All images of a source have one type: uint8, int16, uint16 or float32.
        """

    def read_label(self, record: R, window: Window | None = None) -> np.ndarray:
        """Read training ids (H, W) uint8 of an image or a window, `IGNORE` for no label; read-only."""


def examples(
    source: Source[R], records: Sequence[R] | None = None
) -> Iterator[tuple[R, np.ndarray, np.ndarray]]:
    """Yield (record, image (H, W, C), label (H, W)) of `records`, default all of a source, in order."""
    for record in source.records if records is None else records:
        yield record, source.read_image(record), source.read_label(record)


def split_holdout(records: Sequence[R], fraction: float, seed: int) -> tuple[tuple[R, ...], tuple[R, ...]]:
    """Hold out a share of the images of each domain, reproducibly.

    Every domain with at least two images gives `fraction` of them, rounded, at least one and never all; a
    domain with one image keeps it for training. The choice in a domain depends only on `seed`, the domain's
    name and its own images.

    Records that are parts of one image stay together, because neighbouring parts are too similar for model
    selection. The parts are divided only if a domain has a single image.

    Args:
      records: the images.
      fraction: share to hold out; 0 holds nothing out.
      seed: seed of the choice.

    Returns:
      (training, held out), each in the order of `records`.

    Raises:
      UserError: there are no records, the fraction is not in [0, 1), or nothing can be held out.
    """
    if not 0 <= fraction < 1:
        raise bad_value("config.data.holdout", fraction, "must be a share of the images, from 0 to below 1")
    if not records:
        raise UserError("the training split is empty: name at least one domain with images in data.source")
    held: set[R] = set()
    for domain in {record.domain for record in records}:
        members = sorted((r for r in records if r.domain == domain), key=lambda r: r.name)
        images: dict[str, list[R]] = {}
        for record in members:
            images.setdefault(record.image_name, []).append(record)
        groups = list(images.values()) if len(images) > 1 else [[record] for record in members]
        if fraction == 0 or len(groups) == 1:
            continue
        count = min(max(round(fraction * len(groups)), 1), len(groups) - 1)
        rng = np.random.default_rng((seed, zlib.crc32(domain.encode())))
        held.update(record for i in rng.permutation(len(groups))[:count] for record in groups[i])
    if fraction > 0 and not held:
        raise UserError(
            f"config.data.holdout = {fraction}: leaves no image for model selection, as every domain has a "
            "single image: set it to 0, or add images"
        )
    return tuple(r for r in records if r not in held), tuple(r for r in records if r in held)


class ArraySource:
    """A source of images in memory, which become read-only and uint8 or float32.

    Args:
      images: image (H, W, C) and label (H, W) uint8 by (domain, name); sizes may differ.

    Attributes:
      records: the images, in order.

    Raises:
      UserError: no image, a label of another size than its image, or pixels that are not finite.
    """

    def __init__(self, images: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]]):
        if not images:
            raise UserError("the split is empty: give at least one image")
        self._arrays = {}
        records = []
        for (domain, name), (image, label) in images.items():
            if image.ndim != 3 or label.shape != image.shape[:2]:
                raise UserError(
                    f"{domain}/{name}: image {image.shape} and label {label.shape} do not fit, "
                    "give (H, W, bands) and (H, W)"
                )
            image = _frozen(image, np.uint8 if image.dtype == np.uint8 else np.float32)
            if not np.isfinite(image).all():
                raise UserError(
                    f"{domain}/{name}: pixels that are not finite, replace them and label them 255"
                )
            record = Record(domain, f"{domain}/{name}", *label.shape)
            self._arrays[record] = (image, _frozen(label, np.uint8))
            records.append(record)
        self.records = tuple(records)

    def read_image(self, record: Record, window: Window | None = None) -> np.ndarray:
        """Return the pixels (H, W, C) of a record or a window."""
        return crop(self._arrays[record][0], window)

    def read_label(self, record: Record, window: Window | None = None) -> np.ndarray:
        """Return the training ids (H, W) of a record or a window."""
        return crop(self._arrays[record][1], window)


def crop(array: np.ndarray, window: Window | None) -> np.ndarray:
    """Return a view of an array (H, W, ...) through a window; all of it for None."""
    if window is None:
        return array
    row, col, height, width = window
    return array[row : row + height, col : col + width]


def _frozen(array: np.ndarray, dtype: type) -> np.ndarray:
    """Return a read-only copy."""
    array = np.array(array, dtype)
    array.setflags(write=False)
    return array
