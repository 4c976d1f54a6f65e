"""A part of a resized image, pixel for pixel as OpenCV would resize the whole and the crop would cut it.

Only the pixels that the part needs are read, so that the cost does not depend on the image's size.
"""

from collections.abc import Callable
from math import gcd
from typing import NamedTuple

import cv2
import numpy as np

from data_pipelines.sources.records import Window

Read = Callable[[Window], np.ndarray]
_BANDS = 128  # the most that OpenCV 5 resizes at once
_EXTRA = 1.0  # times the part: what may be resized in vain before it is interpolated by hand instead


class Side(NamedTuple):
    """One side of a part: pixels `start .. start + length` of the `resized` that `source` pixels become."""

    source: int
    resized: int
    start: int
    length: int

    @property
    def step(self) -> float:
        """Source pixels from one resized pixel to the next; OpenCV's own double, rounded twice."""
        return 1 / (self.resized / self.source)

    def nearest(self) -> np.ndarray:
        """Source index of each pixel of the part, (length,), as cv2.INTER_NEAREST chooses it."""
        places = np.arange(self.start, self.start + self.length)
        return np.minimum((places * self.step).astype(np.intp), self.source - 1)

    def between(self) -> tuple[np.ndarray, np.ndarray]:
        """(index, share): each pixel of the part is (1 - share) * source[index] + share * source[index + 1].

        As cv2.INTER_LINEAR, half-pixel centres; beyond the outermost centres the share is 0. (length,) each.
        """
        places = (np.arange(self.start, self.start + self.length) + 0.5) * self.step - 0.5
        places = np.clip(places, 0, self.source - 1)
        index = places.astype(np.intp)
        return index, (places - index).astype(np.float32)

    def anchor(self) -> tuple[int, int]:
        """(resized, source) pixel whose left edges coincide, the last with all that the part needs behind."""
        divisor = gcd(self.resized, self.source)
        period, stride = self.resized // divisor, self.source // divisor
        needed = int(self.between()[0][0])
        count = min(self.start // period, needed // stride)
        return count * period, count * stride


def resized_label(read: Read, rows: Side, cols: Side) -> np.ndarray:
    """The part (rows.length, cols.length) of a label image resized by cv2.INTER_NEAREST.

    Args:
      read: gives a window of the source, (h, w).
      rows, cols: the part.
    """
    down, right = rows.nearest(), cols.nearest()
    top, left = int(down[0]), int(right[0])
    label = read(Window(top, left, int(down[-1]) - top + 1, int(right[-1]) - left + 1))
    if label.shape == (rows.length, cols.length):  # each index once
        return label
    return np.take(np.take(label, down - top, axis=0), right - left, axis=1)


def resized_image(read: Read, rows: Side, cols: Side) -> np.ndarray:
    """The part (rows.length, cols.length, C) of an image resized by cv2.INTER_LINEAR, of the image's dtype.

    OpenCV resizes from the anchor to the part's end. Where that would be mostly in vain, far from an anchor
    in a large image, the part is interpolated in float32 and rounded; integers may differ by 1 then.

    Args:
      read: gives a window of the source, (h, w, C).
      rows, cols: the part.
    """
    if all(side.source == side.resized for side in (rows, cols)):
        return read(Window(rows.start, cols.start, rows.length, cols.length))
    if any(side.start - side.anchor()[0] > _EXTRA * side.length for side in (rows, cols)):
        return _interpolated(read, rows, cols)
    (above, top), (before, left) = rows.anchor(), cols.anchor()
    height, width = (_end(side) - corner for side, corner in ((rows, top), (cols, left)))
    image = read(Window(top, left, height, width))
    whole = _resize(image, cols.resized / cols.source, rows.resized / rows.source)
    row, col = rows.start - above, cols.start - before
    return whole[row : row + rows.length, col : col + cols.length]


def _end(side: Side) -> int:
    """One more than the last source pixel that the part needs."""
    return min(int(side.between()[0][-1]) + 2, side.source)


def _resize(image: np.ndarray, across: float, down: float) -> np.ndarray:
    """`image` (H, W, C) by exactly these factors; its size does not enter the sampling positions."""
    parts = []
    for start in range(0, image.shape[2], _BANDS):
        bands = np.ascontiguousarray(image[..., start : start + _BANDS])
        part = cv2.resize(bands, None, fx=across, fy=down, interpolation=cv2.INTER_LINEAR)
        parts.append(part.reshape(*part.shape[:2], -1))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _interpolated(read: Read, rows: Side, cols: Side) -> np.ndarray:
    (down, low), (right, far) = rows.between(), cols.between()
    top, left = int(down[0]), int(right[0])
    image = read(Window(top, left, _end(rows) - top, _end(cols) - left))
    wide = _lerp(image, down - top, low[:, None, None], axis=0)
    wide = _lerp(wide, right - left, far[:, None], axis=1)
    return wide.astype(image.dtype) if image.dtype.kind == "f" else np.rint(wide, wide).astype(image.dtype)


def _lerp(image: np.ndarray, index: np.ndarray, share: np.ndarray, axis: int) -> np.ndarray:
    """(1 - share) * image[index] + share * image[index + 1] along `axis`, float32."""
    near = np.take(image, index, axis).astype(np.float32)
    far = np.take(image, np.minimum(index + 1, image.shape[axis] - 1), axis)
    return near + share * (far - near)
