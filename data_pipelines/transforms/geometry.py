"""Where a crop lies, how large it is, which way up it is.

An example is `{"image": (H, W, C), "label": (H, W)}`. All functions return a new one and leave the
generator as the only source of chance.
"""

import cv2
import numpy as np

from data_pipelines.sources.records import IGNORE, Record, Window
from data_pipelines.sources.tiles import Tile

Example = dict[str, np.ndarray]
_CROP_TRIES = 10
_RESIZE_BANDS = 128  # the most that OpenCV 5 resizes at once


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
    """A random crop of a randomly resized image: shortest edge, then crop, of method.md's "Training".

    The published order resizes a whole image and throws most of it away. Here the window that would
    survive is read from the image and it alone is resized, on the same sampling grid (up to the rounding
    of the window's corner to whole source pixels), so the cost does not depend on the image's size.

    The "image" of the published rule is a tile of the crop's size. In a larger image its part is taken by
    a crop x crop field, so a ratio below 1 brings in more surroundings instead of padding; an image
    that is smaller than the window is resized whole and padded at the bottom and on the right, the image
    by reflection, the label by 255.

    The first window lies in the tile's cell's share of all possible positions. If one class has more than
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
      image (crop, crop, C) of the image's dtype, resized bilinearly; label (crop, crop) uint8, by nearest.
    """
    factor = _draw_factor(tile, rng, crop, scale, scale_step, max_edge)
    side = max(1, round(crop / factor))
    whole = Window(0, 0, tile.record.height, tile.record.width)
    cell, near, aimed, found = tile.cell, tile.cell, tile.wanted is not None, None
    for _ in range(_CROP_TRIES):
        pixel = tile.find_pixel(rng, near) if aimed else None
        if pixel is None:
            window = _draw_window(tile, rng, side, cell)
        else:
            window = _window_over(rng, tile.record, side, pixel)
        size = tuple(_scaled(length, factor, crop) for length in window[2:])
        label = _resize(tile.read_label(window), size, cv2.INTER_NEAREST_EXACT)
        counts = np.bincount(label.ravel(), minlength=IGNORE + 1)[:IGNORE]
        holds = counts.any() if tile.wanted is None else counts[tile.wanted] > 0
        if holds and _largest_share(counts) <= max_class_share:
            break
        if holds:
            found, near = (window, label), whole
        cell, aimed = whole, tile.wanted is not None or not holds
    else:
        window, label = found or (window, label)
    image = _resize(tile.read_image(window), size, cv2.INTER_LINEAR)
    padding = [(0, crop - side) for side in size]
    return {
        "image": np.pad(image, [*padding, (0, 0)], mode="reflect") if size != (crop, crop) else image,
        "label": np.pad(label, padding, constant_values=IGNORE),
    }


def flip(example: Example, rng: np.random.Generator, probability: float = 0.5) -> Example:
    """Left to right, with `probability`."""
    return _map(example, np.fliplr) if rng.random() < probability else example


def vertical_flip(example: Example, rng: np.random.Generator, probability: float = 0.5) -> Example:
    """Top to bottom, with `probability`."""
    return _map(example, np.flipud) if rng.random() < probability else example


def quarter_turns(example: Example, rng: np.random.Generator) -> Example:
    """By 0, 90, 180 or 270 degrees, with equal chances. The example must be square to be batched."""
    turns = int(rng.integers(4))
    return _map(example, lambda array: np.rot90(array, turns))


def _map(example: Example, function) -> Example:
    return {name: function(array) for name, array in example.items()}


def _draw_factor(tile, rng, crop, scale, scale_step, max_edge) -> float:
    low, high = scale
    ratio = low + scale_step * rng.integers(round((high - low) / scale_step) + 1)
    edges = [min(tile.record.height, crop), min(tile.record.width, crop)]
    shortest = int(ratio * crop + 1e-6)  # 0.7 * 10 is 6.999...: a ratio is meant in tenths
    return min(max(shortest, 1) / min(edges), max_edge / max(edges))


def _draw_window(tile: Tile, rng: np.random.Generator, side: int, cell: Window) -> Window:
    """A window of `side`, or of the whole image where that is less, in the cell's share of the positions.

    Positions are drawn as a fraction of all that are possible: each is as likely as any other over an
    epoch, and no position is favoured at the border, as clamping would.
    """
    record = tile.record
    height, width = min(side, record.height), min(side, record.width)
    down = (cell.row + rng.random() * cell.height) / record.height
    right = (cell.col + rng.random() * cell.width) / record.width
    row, col = int(down * (record.height - height + 1)), int(right * (record.width - width + 1))
    return Window(row, col, height, width)


def _window_over(rng: np.random.Generator, record: Record, side: int, pixel: tuple[int, int]) -> Window:
    """A window of `side`, or of the whole image where that is less, that covers a pixel; each as likely."""
    sizes = min(side, record.height), min(side, record.width)
    top, left = (
        int(rng.integers(max(0, place - size + 1), min(place, whole - size) + 1))
        for place, size, whole in zip(pixel, sizes, (record.height, record.width), strict=True)
    )
    return Window(top, left, *sizes)


def _scaled(side: int, factor: float, crop: int) -> int:
    """`side` after the resize: the crop exactly, unless the image ends first."""
    return crop if side == max(1, round(crop / factor)) else min(crop, max(1, round(side * factor)))


def _largest_share(counts: np.ndarray) -> float:
    return counts.max() / counts.sum()


def _resize(array: np.ndarray, size: tuple[int, ...], interpolation: int) -> np.ndarray:
    """`array` (H, W) or (H, W, C) at `size` = (height, width)."""
    if array.shape[:2] == size:
        return np.ascontiguousarray(array)
    if array.ndim == 2:
        return cv2.resize(array, size[::-1], interpolation=interpolation)
    resized = np.empty((*size, array.shape[2]), array.dtype)
    for start in range(0, array.shape[2], _RESIZE_BANDS):
        bands = np.ascontiguousarray(array[..., start : start + _RESIZE_BANDS])
        part = cv2.resize(bands, size[::-1], interpolation=interpolation)
        resized[..., start : start + _RESIZE_BANDS] = part.reshape(*size, -1)
    return resized
