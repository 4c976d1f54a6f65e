"""Masks and labels sampled at points, and the choice of the points.

Points are pairs of x and y in [0, 1] of the image, each an array of its own. Labels are compared at the four
pixels around a point, so that a stack with one mask for each class is never built.
"""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from spectralmoe_jax.config.schema import LossConfig
from spectralmoe_jax.parallel import by_rows
from spectralmoe_jax.resampling import Corners, sample, with_border


class LabelledPixels(NamedTuple):
    """The labelled pixels of B images, in tables to draw from.

    Attributes:
      places: (B, H * W) int32, the numbers row * W + column of an image's labelled pixels, in order; zero
        beyond them.
      starts: (B, H) int32, the number of labelled pixels in the rows above each row.
      counts: (B, H) int32, the number of labelled pixels in each row.
    """

    places: Array
    starts: Array
    counts: Array


class LabelMap(NamedTuple):
    """Labels of B images, ready for sampling.

    Attributes:
      codes: (B, (H + 2) * (W + 2)), label + 1 of every pixel, C + 1 for one without a label, and a border of
        zeros.
      present: (B, C) bool, the classes that any pixel of the image has.
      size: (H, W).
    """

    codes: Array
    present: Array
    size: tuple[int, int]


def label_map(labels: Array, num_classes: int) -> LabelMap:
    """Prepare labels (B, H, W) of any integer type; values outside 0..C-1, such as 255, are no label."""
    labels = labels.astype(jnp.int32)
    codes = jnp.where(_is_label(labels, num_classes), labels, num_classes) + 1
    found = jax.vmap(lambda codes: jnp.zeros(num_classes + 2, bool).at[codes.ravel()].set(True))(codes)
    codes = codes.astype(jnp.uint8 if num_classes < 255 else jnp.int32)
    size = (labels.shape[1], labels.shape[2])
    return LabelMap(with_border(codes[..., None])[..., 0], found[:, 1:-1], size)


def labelled_pixels(labels: Array, num_classes: int) -> LabelledPixels:
    """List the labelled pixels of labels (B, H, W)."""
    return by_rows(jax.vmap(_list_pixels), _is_label(labels.astype(jnp.int32), num_classes))


def _is_label(labels: Array, num_classes: int) -> Array:
    return (labels >= 0) & (labels < num_classes)


def _list_pixels(labelled: Array) -> LabelledPixels:
    """List the pixels of one image in which (H, W) bool is true."""
    size = labelled.size
    counts = labelled.sum(axis=1, dtype=jnp.int32)
    starts = jnp.cumsum(counts) - counts
    ranks = starts[:, None] + jnp.cumsum(labelled, axis=1, dtype=jnp.int32) - 1  # (H, W)
    ranks = jnp.where(labelled, ranks, size).ravel()  # out of bounds where there is no label
    places = jnp.zeros(size, jnp.int32).at[ranks].set(jnp.arange(size, dtype=jnp.int32), mode="drop")
    return LabelledPixels(places, starts, counts)


def onto_labels(x: Array, y: Array, pixels: LabelledPixels) -> tuple[Array, Array]:
    """Map uniform points of an image to uniform points of its labelled pixels.

    The inverse of the distribution function, rows first: y chooses a row by its number of labelled pixels, x
    one of them, and what is left of each is the place within the pixel. Where all pixels are labelled, points
    stay as they are. Without a label they go to the first pixel.

    Args:
      x: (B, ...) in [0, 1).
      y: likewise.
      pixels: of the B images.

    Returns:
      x and y of the new points.
    """
    return jax.vmap(_onto_labels)(x, y, pixels)


def _onto_labels(x: Array, y: Array, pixels: LabelledPixels) -> tuple[Array, Array]:
    """Map the points of one image, of any shape."""
    height = pixels.counts.shape[0]
    width = pixels.places.shape[0] // height
    total = pixels.counts.sum()
    # 1. the row: that of pixel y * total in order
    place = y * total
    row = pixels.places.at[place.astype(jnp.int32)].get(mode="clip") // width
    start, count = pixels.starts[row], pixels.counts[row]
    down = (place - start) / jnp.maximum(count, 1)
    # 2. the pixel of this row
    place = x * count
    rank = place.astype(jnp.int32)
    column = pixels.places.at[start + rank].get(mode="clip") - row * width
    # 3. the point in the pixel
    is_full = total == pixels.places.shape[0]
    right = jnp.where(is_full, x, (column + (place - rank)) / width)
    return right, jnp.where(is_full, y, (row + down) / height)


def sample_classes(read: tuple[Array, ...], where: Corners, classes: Array) -> Array:
    """Sample the masks of classes from the labels that were read around points.

    Args:
      read: the codes at the four corners of every point, each (..., n), or (1, n) to share them.
      where: the corners, of the same shape.
      classes: (...), the class of each mask.

    Returns:
      (..., n) in [0, 1]: the share of the class at every point.
    """
    code = (classes + 1).astype(read[0].dtype)[..., None]
    shares = (jnp.where(found == code, weight, 0) for found, weight in zip(read, where.weights, strict=True))
    return functools.reduce(operator.add, shares)


def labelled_share(read: tuple[Array, ...], where: Corners, num_classes: int) -> Array:
    """Sample where there are labels, from codes read as for `sample_classes`: (..., n) in [0, 1].

    What lies outside of the image does not count as unlabelled: masks are zero there, too.
    """
    without = num_classes + 1
    shares = (jnp.where(found != without, w, 0) for found, w in zip(read, where.weights, strict=True))
    return functools.reduce(operator.add, shares)


def read_codes(codes: Array, where: Corners) -> tuple[Array, ...]:
    """Read the label codes (cells,) of one image at the four corners of points."""
    return tuple(codes.at[place].get(mode="clip") for place in where.places)


def sample_own(masks: Array, where: Corners) -> Array:
    """Sample mask logits, each at its own points: masks (..., h, w), corners (..., n) -> (..., n)."""
    cells = with_border(masks[..., None])[..., 0].reshape(-1, (masks.shape[-2] + 2) * (masks.shape[-1] + 2))
    shape = where.places[0].shape
    each = jax.tree.map(lambda part: part.reshape(-1, shape[-1]), where)
    return jax.vmap(sample)(cells, each).reshape(shape)


# Choice of the points (PointRend, arXiv 1912.08193, as Mask2Former uses it).


def draw_points(keys: Array, slots: Array, num_slots: int, count: int, dtype) -> tuple[Array, Array]:
    """Draw uniform points for some of the slots of every image.

    They are the points that `jax.random.uniform(key, (num_slots, count, 2))` has for these slots. For the
    default random numbers of JAX in float32, those of the other slots are not drawn: the i-th number depends
    on the key and on i alone.

    Args:
      keys: (B,), one random key for each image.
      slots: (B, G) int, the slots whose points are wanted.
      num_slots: number of all slots.
      count: number of points of a slot.
      dtype: of the points.

    Returns:
      x and y, each (B, G, count) in [0, 1).
    """
    if not _counts_from_the_index(keys, dtype) or num_slots * count * 2 >= 2**32:
        drawn = jax.vmap(lambda key: jax.random.uniform(key, (num_slots, count, 2), dtype))(keys)
        wanted = jnp.take_along_axis(drawn, slots[..., None, None], axis=1)
        return wanted[..., 0], wanted[..., 1]
    words = jax.random.key_data(keys)[..., None, None]  # (B, 2, 1, 1)
    place = slots.astype(jnp.uint32)[..., None] * jnp.uint32(2 * count)
    place = place + 2 * jnp.arange(count, dtype=jnp.uint32)
    return _uniform(words[:, 0], words[:, 1], place), _uniform(words[:, 0], words[:, 1], place + 1)


def _counts_from_the_index(keys: Array, dtype) -> bool:
    """Return whether `jax.random` derives each 32-bit number from the key and the number's index."""
    threefry = str(jax.random.key_impl(keys)) == "threefry2x32"
    by_index = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    return threefry and dtype == jnp.float32 and by_index


def _uniform(first: Array, second: Array, place: Array) -> Array:
    """Number `place` of the uniform float32 numbers of a key of two words: 23 random bits as a fraction."""
    high, low = _threefry(first, second, jnp.zeros_like(place), place)
    bits = ((high ^ low) >> 9) | jnp.uint32(0x3F800000)  # in [1, 2)
    return jax.lax.bitcast_convert_type(bits, jnp.float32) - 1


def _threefry(first: Array, second: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011), the hash behind `jax.random`.

    Written as plain arithmetic, which compilers fuse with what uses the numbers: on a CPU four times as fast
    as the library's loop over arrays.
    """
    keys = (first, second, first ^ second ^ jnp.uint32(0x1BD11BDA))
    x, y = x + keys[0], y + keys[1]
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = x ^ ((y << turn) | (y >> (32 - turn)))
        x, y = x + keys[(group + 1) % 3], y + keys[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


OUT, OPEN, IN = 0, 1, 2  # states of a candidate in `least_certain`


def least_certain(logits: Array, count: int) -> Array:
    """Select the points at which the logit is nearest to zero, without a sort.

    A radix selection: magnitudes are ordered as their bits are, so each bit, the highest first, decides
    whether the open candidates with a 0 there are all selected, or those with a 1 all dropped.

    Args:
      logits: (..., n).
      count: number of points to select, at most n.

    Returns:
      (..., n), 1 for selected points and 0 for others. Points that tie for the last places share them evenly,
      so that the sum is always `count`.
    """
    width = jnp.finfo(logits.dtype).bits
    bits = jax.lax.bitcast_convert_type(jnp.abs(logits), jnp.dtype(f"uint{width}"))

    def undecided(progress: tuple[Array, ...]) -> Array:
        """Return whether bits are left, and any row has more open candidates than places for them."""
        step, _, left, open_count = progress
        return (step < width - 1) & jnp.any(open_count > left)

    def decide(progress: tuple[Array, ...]) -> tuple[Array, ...]:
        """Settle what one bit settles: loop body; states, places left, and how many candidates are open."""
        step, state, left, open_count = progress
        shift = jnp.asarray(width - 2 - step, bits.dtype)  # the highest bit is the sign
        high = (bits >> shift) & 1 == 1
        is_open = state == OPEN
        low = jnp.sum(is_open & ~high, axis=-1, keepdims=True, dtype=jnp.int32)
        enough = low >= left
        settled = jnp.where(enough, jnp.where(high, OUT, OPEN), jnp.where(high, OPEN, IN))
        state = jnp.where(is_open, settled, state).astype(jnp.uint8)
        return step + 1, state, jnp.where(enough, left, left - low), jnp.where(enough, low, open_count - low)

    rows = (*bits.shape[:-1], 1)
    counts = (jnp.full(rows, number, jnp.int32) for number in (count, bits.shape[-1]))
    start = (jnp.int32(0), jnp.full(bits.shape, OPEN, jnp.uint8), *counts)
    _, state, left, _ = jax.lax.while_loop(undecided, decide, start)
    tied = state == OPEN
    share = (left / jnp.sum(tied, axis=-1, keepdims=True)).astype(logits.dtype)
    return jnp.where(tied, share, (state == IN).astype(logits.dtype))


def candidate_points(
    keys: Array, slots: Array, num_slots: int, config: LossConfig, dtype, pixels: LabelledPixels | None = None
) -> tuple[Array, Array]:
    """Draw the candidates of some slots, then the points that are used in any case.

    Args:
      keys: (B,), one random key for each image.
      slots: (B, G) int.
      num_slots: number of all slots.
      config: numbers of points.
      dtype: of the points.
      pixels: the labelled pixels, to draw from these alone; None to draw from the whole image.

    Returns:
      x and y, each (B, G, n); the first `config.candidates` are candidates if any point is chosen by
      uncertainty.
    """
    draw, fill = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    others = config.num_points - config.uncertain_points
    parts = [draw_points(fill, slots, num_slots, others, dtype)]
    if config.uncertain_points:
        parts.insert(0, draw_points(draw, slots, num_slots, config.candidates, dtype))
    x, y = (jnp.concatenate(axis, axis=-1) for axis in zip(*parts, strict=True))
    return (x, y) if pixels is None else onto_labels(x, y, pixels)


def point_weights(logits: Array, config: LossConfig) -> Array:
    """Weigh the points of `candidate_points` by the logits there: (..., n) -> (..., n), sum `num_points`."""
    if not config.uncertain_points:
        return jnp.ones_like(logits)
    chosen = least_certain(logits[..., : config.candidates], config.uncertain_points)
    return jnp.concatenate([chosen, jnp.ones_like(logits[..., config.candidates :])], axis=-1)
