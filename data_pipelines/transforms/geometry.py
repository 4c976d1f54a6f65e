"""Where a crop lies, how large it is, which way up it is.

An example is `{"image": (H, W, C), "label": (H, W)}`. All functions return a new one and leave the
generator as the only source of chance.

A part of a resized image, pixel for pixel as OpenCV would resize the whole and the crop would cut it.

Only the pixels that the part needs are read, so that the cost does not depend on the image's size.
"""

from collections.abc import Callable
from math import gcd
from typing import NamedTuple

import cv2
import numpy as np

from data_pipelines.records import IGNORE, Window
from data_pipelines.tiles.tile_index import Tile

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


Example = dict[str, np.ndarray]
_CROP_TRIES = 10


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
    """A random crop of a randomly resized image: shortest edge, then crop, as in the released training.

    The pixels are those of the published order: the whole image resized by OpenCV (bilinear, labels by
    nearest), then a crop on the grid of the resized image. Only what survives is read and resized.

    The "image" of the published rule is a tile of the crop's size. In a larger image its part is taken by
    a crop x crop field, so a ratio below 1 brings in more surroundings instead of padding; an image
    that ends before the crop does is padded at the bottom and on the right, the image by reflection, the
    label by 255.

    The first crop lies in the tile's cell's share of all possible positions. If one class has more than
    `max_class_share` of its labelled pixels, another is drawn from the whole image; if none is labelled, or
    the class that the tile wants is not there, one that covers such a pixel (`Tile.find_pixel`), near the
    cell first. A tile that wants a class begins so. The tenth is kept whatever it holds, or the last one
    before that held what is wanted but broke the rule.

    Args:
      tile: where to draw from.
      rng: the source of chance.
      crop: side of the result in pixels.
      scale: smallest and largest ratio of the resized shortest edge to `crop`, both included.
      scale_step: distance of the ratios in between.
      max_edge: upper limit of the resized longest edge in pixels; it takes precedence.
      max_class_share: largest share of one class, of the labelled pixels.

    Returns:
      image (crop, crop, C) of the image's dtype; label (crop, crop) uint8.
    """
    record, cell = tile.record, tile.cell
    factor = _draw_factor(tile, rng, crop, scale, scale_step, max_edge)
    height, width = (max(1, int(side * factor + 0.5)) for side in (record.height, record.width))
    whole = Window(0, 0, record.height, record.width)
    near, aimed, found = cell, tile.wanted is not None, None
    for _ in range(_CROP_TRIES):
        pixel = tile.find_pixel(rng, near) if aimed else None
        if pixel is None:
            rows = _draw_side(rng, record.height, height, crop, (cell.row, cell.height))
            cols = _draw_side(rng, record.width, width, crop, (cell.col, cell.width))
        else:
            rows = _side_over(rng, record.height, height, crop, pixel[0])
            cols = _side_over(rng, record.width, width, crop, pixel[1])
        label = resized_label(tile.read_label, rows, cols)
        counts = _class_pixels(label)
        holds = counts.any() if tile.wanted is None else counts[tile.wanted] > 0
        if holds and _largest_share(counts) <= max_class_share:
            break
        if holds:
            found, near = (rows, cols, label), whole
        cell, aimed = whole, tile.wanted is not None or not holds
    else:
        rows, cols, label = found or (rows, cols, label)
    image = resized_image(tile.read_image, rows, cols)
    below, beside = (crop - side for side in label.shape)
    return {
        "image": _padded(image, below, beside) if below or beside else image,
        "label": np.pad(label, [(0, below), (0, beside)], constant_values=IGNORE),
    }


def flip(example: Example, rng: np.random.Generator, probability: float = 0.5) -> Example:
    """Left to right, with `probability`."""
    return _map(example, lambda array: _mirrored(array, axis=1)) if rng.random() < probability else example


def vertical_flip(example: Example, rng: np.random.Generator, probability: float = 0.5) -> Example:
    """Top to bottom, with `probability`."""
    return _map(example, lambda array: _mirrored(array, axis=0)) if rng.random() < probability else example


def quarter_turns(example: Example, rng: np.random.Generator) -> Example:
    """By 0, 90, 180 or 270 degrees, with equal chances. The example must be square to be batched."""
    turns = int(rng.integers(4))
    return _map(example, lambda array: np.rot90(array, turns))


def _class_pixels(label: np.ndarray) -> np.ndarray:
    """Pixels of each id but `IGNORE`, (255,) float32; twice as fast as np.bincount, exact to 2**24."""
    return cv2.calcHist([label], [0], None, [IGNORE], [0, IGNORE]).ravel()


def _padded(image: np.ndarray, below: int, beside: int) -> np.ndarray:
    """`image` (H, W, C) continued by its reflection. OpenCV does it many times faster, for a few bands."""
    if image.shape[-1] > 4:
        return np.pad(image, [(0, below), (0, beside), (0, 0)], mode="reflect")
    padded = cv2.copyMakeBorder(image, 0, below, 0, beside, cv2.BORDER_REFLECT_101)
    return padded.reshape(*padded.shape[:2], -1)


def _mirrored(array: np.ndarray, axis: int) -> np.ndarray:
    """`array` (H, W) or (H, W, C) the other way round; a copy, as OpenCV makes one, or a view."""
    if array.ndim == 3 and array.shape[-1] > 4:  # which NumPy copies into the batch faster
        return np.flip(array, axis)
    return cv2.flip(array, axis).reshape(array.shape)


def _map(example: Example, function) -> Example:
    return {name: function(array) for name, array in example.items()}


def _draw_factor(tile, rng, crop, scale, scale_step, max_edge) -> float:
    low, high = scale
    ratio = low + scale_step * rng.integers(round((high - low) / scale_step) + 1)
    edges = [min(tile.record.height, crop), min(tile.record.width, crop)]
    shortest = int(ratio * crop + 1e-6)  # 0.7 * 10 is 6.999...: a ratio is meant in tenths
    return min(max(shortest, 1) / min(edges), max_edge / max(edges))


def _draw_side(rng: np.random.Generator, source: int, resized: int, crop: int, cell: tuple[int, int]) -> Side:
    """Where the crop lies along a side, or all of it where that is shorter, in the cell's share of positions.

    Positions are drawn as a fraction of all that are possible: each is as likely as any other over an
    epoch, and no position is favoured at the border, as clamping would.
    """
    length = min(crop, resized)
    start, extent = cell
    share = (start + rng.random() * extent) / source
    return Side(source, resized, int(share * (resized - length + 1)), length)


def _side_over(rng: np.random.Generator, source: int, resized: int, crop: int, place: int) -> Side:
    """Where the crop lies along a side so that it covers a pixel of the image; each place as likely."""
    length = min(crop, resized)
    at = min(resized - 1, int((place + 0.5) * resized / source))
    start = int(rng.integers(max(0, at - length + 1), min(at, resized - length) + 1))
    return Side(source, resized, start, length)


def _largest_share(counts: np.ndarray) -> float:
    return counts.max() / counts.sum()
