"""Geometric transforms: random resized crops, flips and quarter turns.

An example is `{"image": (H, W, C), "label": (H, W)}`. Transforms return a new example and draw all random
numbers from the given generator.

A crop of a resized image equals, pixel for pixel, the crop that OpenCV's resized image would give. Only the
pixels that the crop needs are read, so the cost does not depend on the size of the image.
"""

from collections.abc import Callable
from math import gcd
from typing import NamedTuple

import cv2
import numpy as np

from data_pipelines.records import IGNORE, Window
from data_pipelines.tiles.tile_index import Tile

Example = dict[str, np.ndarray]
Read = Callable[[Window], np.ndarray]
_CROP_TRIES = 10
_BANDS = 128  # OpenCV 5 resizes at most so many bands at once
_EXTRA = 1.0  # largest surplus, as a multiple of the crop, that OpenCV may resize for nothing


def resized_crop(
    tile: Tile,
    rng: np.random.Generator,
    *,
    crop: int,
    scale: tuple[float, float] = (0.5, 2.0),
    scale_step: float = 0.1,
    max_edge: int = 1024,
    max_class_share: float = 0.75,
) -> Example:
    """Draw a random crop of a randomly resized image, as the released training code does.

    The pixels are those of the published order: resize the whole image (OpenCV, bilinear, nearest neighbour
    for labels), then crop. Only what the crop keeps is read and resized.

    The "image" of the published rule is a tile of the size of the crop. From a larger image, the crop takes
    `crop` x `crop` pixels at the same scale, so a ratio below 1 includes more of the surroundings instead of
    padding. An image that ends before the crop does is padded at the bottom and on the right: the image by
    reflection, the label with 255.

    The first crop is drawn from the share of all positions that belongs to the tile's cell. If one class has
    more than `max_class_share` of its labelled pixels, the next is drawn from the whole image. If no pixel is
    labelled, or the class that the tile wants is missing, the next covers such a pixel (`Tile.find_pixel`),
    near the cell first; a tile that wants a class or a label does so in every crop. After ten crops, the last
    one is used that had what is wanted and only broke `max_class_share`, or else the tenth.

    Args:
      tile: where to draw from.
      rng: random generator.
      crop: side of the result in pixels.
      scale: smallest and largest ratio of the resized shortest edge to `crop`, both included.
      scale_step: step between ratios.
      max_edge: bound on the resized longest edge in pixels; takes precedence over `scale`.
      max_class_share: largest share of one class among the labelled pixels.

    Returns:
      image (crop, crop, C) of the image's dtype; label (crop, crop) uint8.
    """
    record, cell = tile.record, tile.cell
    factor = _draw_factor(tile, rng, crop, scale, scale_step, max_edge)
    height, width = (max(1, int(side * factor + 0.5)) for side in (record.height, record.width))
    whole = Window(0, 0, record.height, record.width)
    search, targeted, fallback = cell, tile.is_targeted, None
    for _ in range(_CROP_TRIES):
        # 1. place the crop: over a pixel that is wanted, or anywhere in the cell's share of positions
        pixel = tile.find_pixel(rng, search) if targeted else None
        if pixel is None:
            rows = _draw_side(rng, record.height, height, crop, (cell.row, cell.height))
            cols = _draw_side(rng, record.width, width, crop, (cell.col, cell.width))
        else:
            rows = _side_over(rng, record.height, height, crop, pixel[0])
            cols = _side_over(rng, record.width, width, crop, pixel[1])
        # 2. accept it by its labels
        label = resized_label(tile.read_label, rows, cols)
        counts = _class_pixels(label)
        holds = counts.any() if tile.wanted is None else counts[tile.wanted] > 0
        if holds and _largest_share(counts) <= max_class_share:
            break
        # 3. else try again in the whole image
        if holds:
            fallback, search = (rows, cols, label), whole
        cell, targeted = whole, tile.is_targeted or not holds
    else:
        rows, cols, label = fallback or (rows, cols, label)
    image = resized_image(tile.read_image, rows, cols)  # (rows.length, cols.length, C)
    below, beside = (crop - side for side in label.shape)
    return {
        "image": _padded(image, below, beside) if below or beside else image,
        "label": np.pad(label, [(0, below), (0, beside)], constant_values=IGNORE),
    }


def flip(example: Example, rng: np.random.Generator, probability: float = 0.5) -> Example:
    """Mirror left to right with `probability`."""
    return _map(example, lambda array: _mirrored(array, axis=1)) if rng.random() < probability else example


def vertical_flip(example: Example, rng: np.random.Generator, probability: float = 0.5) -> Example:
    """Mirror top to bottom with `probability`."""
    return _map(example, lambda array: _mirrored(array, axis=0)) if rng.random() < probability else example


def quarter_turns(example: Example, rng: np.random.Generator) -> Example:
    """Rotate by 0, 90, 180 or 270 degrees with equal probability; examples must be square to be batched."""
    turns = int(rng.integers(4))
    return _map(example, lambda array: np.rot90(array, turns))


def _map(example: Example, function: Callable[[np.ndarray], np.ndarray]) -> Example:
    return {name: function(array) for name, array in example.items()}


def _mirrored(array: np.ndarray, axis: int) -> np.ndarray:
    """Mirror an array (H, W) or (H, W, C); OpenCV returns a copy, NumPy a view."""
    if array.ndim == 3 and array.shape[-1] > 4:  # NumPy's view is copied into the batch faster
        return np.flip(array, axis)
    return cv2.flip(array, axis).reshape(array.shape)


def _class_pixels(label: np.ndarray) -> np.ndarray:
    """Count the pixels of each id but `IGNORE`, (255,) float32, exact to 2**24; twice as fast as bincount."""
    return cv2.calcHist([label], [0], None, [IGNORE], [0, IGNORE]).ravel()


def _largest_share(counts: np.ndarray) -> float:
    return counts.max() / counts.sum()


def _padded(image: np.ndarray, below: int, beside: int) -> np.ndarray:
    """Pad an image (H, W, C) by reflection; for a few bands, OpenCV is many times faster than NumPy."""
    if image.shape[-1] > 4:
        return np.pad(image, [(0, below), (0, beside), (0, 0)], mode="reflect")
    padded = cv2.copyMakeBorder(image, 0, below, 0, beside, cv2.BORDER_REFLECT_101)
    return padded.reshape(*padded.shape[:2], -1)


def _draw_factor(
    tile: Tile,
    rng: np.random.Generator,
    crop: int,
    scale: tuple[float, float],
    scale_step: float,
    max_edge: int,
) -> float:
    """Draw the factor from original to resized pixels."""
    low, high = scale
    ratio = low + scale_step * rng.integers(round((high - low) / scale_step) + 1)
    edges = [min(tile.record.height, crop), min(tile.record.width, crop)]
    shortest = int(ratio * crop + 1e-6)  # 0.7 * 10 is 6.999...: a ratio is meant in tenths
    return min(max(shortest, 1) / min(edges), max_edge / max(edges))


class Side(NamedTuple):
    """One side of a crop from a resized image.

    Attributes:
      original: length of the original image's side in pixels.
      resized: its length after resizing.
      start: first resized pixel of the crop.
      length: number of resized pixels of the crop.
    """

    original: int
    resized: int
    start: int
    length: int

    @property
    def step(self) -> float:
        """Original pixels per resized pixel; OpenCV's own double, rounded twice."""
        return 1 / (self.resized / self.original)

    def nearest(self) -> np.ndarray:
        """Return the original index of each pixel of the crop, (length,), as cv2.INTER_NEAREST does."""
        places = np.arange(self.start, self.start + self.length)
        return np.minimum((places * self.step).astype(np.intp), self.original - 1)

    def between(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the bilinear sampling positions of the crop, as cv2.INTER_LINEAR has them.

        Pixel centres are at half-integer positions; beyond the outermost centres the share is 0.

        Returns:
          (index, share), (length,) each; a pixel of the crop is
          (1 - share) * original[index] + share * original[index + 1].
        """
        places = (np.arange(self.start, self.start + self.length) + 0.5) * self.step - 0.5
        places = np.clip(places, 0, self.original - 1)
        index = places.astype(np.intp)
        return index, (places - index).astype(np.float32)

    def anchor(self) -> tuple[int, int]:
        """Return the last (resized, original) pixels with coinciding left edges at or before the crop."""
        divisor = gcd(self.resized, self.original)
        period, stride = self.resized // divisor, self.original // divisor
        needed = int(self.between()[0][0])
        count = min(self.start // period, needed // stride)
        return count * period, count * stride

    @property
    def end(self) -> int:
        """One more than the last original pixel that bilinear sampling needs."""
        return min(int(self.between()[0][-1]) + 2, self.original)


def _draw_side(
    rng: np.random.Generator, original: int, resized: int, crop: int, cell: tuple[int, int]
) -> Side:
    """Draw the crop's position along a side, within the cell's share of positions; all of a shorter side.

    Positions are drawn as a fraction of all possible ones: over an epoch each is equally likely, and none is
    favoured at the border, as clamping would do.
    """
    length = min(crop, resized)
    start, extent = cell
    share = (start + rng.random() * extent) / original
    return Side(original, resized, int(share * (resized - length + 1)), length)


def _side_over(rng: np.random.Generator, original: int, resized: int, crop: int, pixel: int) -> Side:
    """Draw the crop's position along a side among those that cover an original pixel, equally likely."""
    length = min(crop, resized)
    at = min(resized - 1, int((pixel + 0.5) * resized / original))
    start = int(rng.integers(max(0, at - length + 1), min(at, resized - length) + 1))
    return Side(original, resized, start, length)


def resized_label(read: Read, rows: Side, cols: Side) -> np.ndarray:
    """Return a crop (rows.length, cols.length) of a label image resized by cv2.INTER_NEAREST.

    Args:
      read: reads a window of the original, (h, w).
      rows: vertical side of the crop.
      cols: horizontal side of the crop.
    """
    down, right = rows.nearest(), cols.nearest()
    top, left = int(down[0]), int(right[0])
    label = read(Window(top, left, int(down[-1]) - top + 1, int(right[-1]) - left + 1))  # (h, w)
    if label.shape == (rows.length, cols.length):  # each index once
        return label
    return np.take(np.take(label, down - top, axis=0), right - left, axis=1)


def resized_image(read: Read, rows: Side, cols: Side) -> np.ndarray:
    """Return a crop (rows.length, cols.length, C) of an image resized by cv2.INTER_LINEAR, in its dtype.

    OpenCV resizes from the anchor to the end of the crop. Far from an anchor in a large image, most of that
    would be discarded; the crop is then interpolated in float32 and rounded, and integers may differ by 1.

    Args:
      read: reads a window of the original, (h, w, C).
      rows: vertical side of the crop.
      cols: horizontal side of the crop.
    """
    if all(side.original == side.resized for side in (rows, cols)):
        return read(Window(rows.start, cols.start, rows.length, cols.length))
    if any(side.start - side.anchor()[0] > _EXTRA * side.length for side in (rows, cols)):
        return _interpolated(read, rows, cols)
    (above, top), (before, left) = rows.anchor(), cols.anchor()
    image = read(Window(top, left, rows.end - top, cols.end - left))  # (h, w, C)
    resized = _resize(image, cols.resized / cols.original, rows.resized / rows.original)
    row, col = rows.start - above, cols.start - before
    return resized[row : row + rows.length, col : col + cols.length]


def _resize(image: np.ndarray, across: float, down: float) -> np.ndarray:
    """Resize an image (H, W, C) by exactly these factors; sampling positions do not depend on its size."""
    parts = []
    for start in range(0, image.shape[2], _BANDS):
        bands = np.ascontiguousarray(image[..., start : start + _BANDS])
        part = cv2.resize(bands, None, fx=across, fy=down, interpolation=cv2.INTER_LINEAR)
        parts.append(part.reshape(*part.shape[:2], -1))  # OpenCV drops the axis of a single band
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)


def _interpolated(read: Read, rows: Side, cols: Side) -> np.ndarray:
    """Interpolate the crop alone, (rows.length, cols.length, C)."""
    (down, low), (right, far) = rows.between(), cols.between()
    top, left = int(down[0]), int(right[0])
    image = read(Window(top, left, rows.end - top, cols.end - left))  # (h, w, C)
    wide = _lerp(image, down - top, low[:, None, None], axis=0)  # (rows.length, w, C) float32
    wide = _lerp(wide, right - left, far[:, None], axis=1)  # (rows.length, cols.length, C)
    return wide.astype(image.dtype) if image.dtype.kind == "f" else np.rint(wide, wide).astype(image.dtype)


def _lerp(image: np.ndarray, index: np.ndarray, share: np.ndarray, axis: int) -> np.ndarray:
    """Return (1 - share) * image[index] + share * image[index + 1] along `axis`, in float32."""
    near = np.take(image, index, axis).astype(np.float32)
    far = np.take(image, np.minimum(index + 1, image.shape[axis] - 1), axis)
    return near + share * (far - near)
