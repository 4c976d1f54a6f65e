"""What every source of labelled images offers, and how its images are split.

Labelled images held in memory.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from spectralmoe_jax.errors import UserError

IGNORE = 255
"""Label of a pixel that neither trains nor counts."""


class Window(NamedTuple):
    """A rectangle of pixels: rows `row .. row + height`, columns `col .. col + width`."""

    row: int
    col: int
    height: int
    width: int


@dataclass(frozen=True)
class Record:
    """One labelled image: its domain (place, sensor or season), its unique name, its size in pixels."""

    domain: str
    name: str
    height: int
    width: int

    @property
    def image_name(self) -> str:
        """The image that this record is a part of, or is."""
        return self.name


R = TypeVar("R", bound=Record)


class Source(Protocol[R]):
    """Labelled images with random access. Implementations can be pickled and read from many threads."""

    @property
    def records(self) -> Sequence[R]:
        """The images of this source, in a fixed order."""

    def read_image(self, record: R, window: Window | None = None) -> np.ndarray:
        """Raw pixel values (H, W, C), read-only, of the whole image or of `window`.

        All of a source have one type: uint8, int16, uint16 or float32."""

    def read_label(self, record: R, window: Window | None = None) -> np.ndarray:
        """Training ids (H, W) uint8, `IGNORE` where there is none, read-only; as `read_image`."""


def examples(
    source: Source[R], records: Sequence[R] | None = None
) -> Iterator[tuple[R, np.ndarray, np.ndarray]]:
    """(record, image (H, W, C), label (H, W)) of all of `source`, or of its `records`, in order."""
    for record in source.records if records is None else records:
        yield record, source.read_image(record), source.read_label(record)


def split_holdout(records: Sequence[R], fraction: float, seed: int) -> tuple[tuple[R, ...], tuple[R, ...]]:
    """Splits `records` into (training, held out), by domain and reproducibly.

    Every domain with at least two images gives `fraction` of them, rounded, but at least one and never
    all; a domain of one image keeps it for training. The choice in a domain depends on `seed`, the
    domain's name and its images alone, not on the other domains. With `fraction` 0 nothing is held out.

    Records that are parts of images stay together, since neighbours are too alike to judge by; where a domain
    is a single image, its parts are divided.

    Raises:
      UserError: no records, a fraction outside [0, 1), or nothing to hold out although it was asked for.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"data.holdout={fraction}: give a fraction of the images, 0 or more and below 1")
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
            f"data.holdout={fraction} leaves no image for model selection, every domain has a single image: "
            "set data.holdout=0 or add images"
        )
    return tuple(r for r in records if r not in held), tuple(r for r in records if r in held)


class Arrays:
    """A source over arrays: `{(domain, name): (image (H, W, C), label (H, W) uint8)}`.

    Images become uint8 or float32 and read-only. Sizes may differ.

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
        """The pixels (H, W, C) of `record`, or of its `window`."""
        return crop(self._arrays[record][0], window)

    def read_label(self, record: Record, window: Window | None = None) -> np.ndarray:
        """The training ids (H, W) of `record`, or of its `window`."""
        return crop(self._arrays[record][1], window)


def crop(array: np.ndarray, window: Window | None) -> np.ndarray:
    """A view of `array` (H, W, ...) through `window`; all of it for None."""
    if window is None:
        return array
    row, col, height, width = window
    return array[row : row + height, col : col + width]


def _frozen(array: np.ndarray, dtype: type) -> np.ndarray:
    array = np.array(array, dtype)
    array.setflags(write=False)
    return array
