"""Test-time augmentation: the mean of the scores of a window and of its flipped, turned or resized copies.

`released` follows the `--tta` of mmsegmentation, which the authors' code is run with: six sizes and a
horizontal flip of each, whose scores go through a softmax before they are averaged. It resizes whole images;
here every window is resized, which is the same where the window holds the image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from spectralmoe_jax.config.schema import TTA
from spectralmoe_jax.resampling import resize_bilinear


class View(NamedTuple):
    """A copy of a window.

    Attributes:
      scale: factor on its side.
      flip: whether it is mirrored, left to right, before it is turned.
      turns: number of turns by 90 degrees, counterclockwise.
    """

    scale: float = 1.0
    flip: bool = False
    turns: int = 0

    def apply(self, tiles: np.ndarray) -> np.ndarray:
        """Mirror and turn tiles (B, S, S, C)."""
        return np.rot90(tiles[:, :, ::-1] if self.flip else tiles, self.turns, axes=(1, 2))

    def undo(self, scores: np.ndarray) -> np.ndarray:
        """Turn scores (B, S, S, C) back and mirror them again."""
        back = np.rot90(scores, -self.turns, axes=(1, 2))
        return back[:, :, ::-1] if self.flip else back


_SCALES = (1.0, 0.5, 0.75, 1.25, 1.5, 1.75)
# the first view of every kind is the tile itself
VIEWS: dict[str, tuple[View, ...]] = {
    "none": (View(),),
    # the window, mirrored along either axis, and along both
    "flips": (View(), View(flip=True), View(flip=True, turns=2), View(turns=2)),
    "d4": tuple(View(flip=flip, turns=turns) for flip in (False, True) for turns in range(4)),
    "multiscale": tuple(View(scale) for scale in _SCALES),
    "released": tuple(View(scale, flip) for scale in _SCALES for flip in (False, True)),
}
assert set(VIEWS) == set(TTA)


def averaged(
    predict: Callable[[np.ndarray], np.ndarray], kind: str, patch: int
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a predictor of the mean over the views of every tile.

    Args:
      predict: from raw tiles (B, S, S, bands) of any side that is a multiple of the patch to scores
        (B, S, S, C); compiled once for each side.
      kind: one of `VIEWS`.
      patch: side of a patch in pixels; sides of resized tiles are rounded to multiples of it.
    """
    views = VIEWS[kind]
    if kind == "none":
        return predict

    def mean(tiles: np.ndarray) -> np.ndarray:
        """Average the scores (B, S, S, C) of all views."""
        side, total = tiles.shape[1], np.zeros((), np.float32)
        for view in views:
            scaled = max(round(side * view.scale / patch), 1) * patch
            scores = view.undo(predict(np.ascontiguousarray(view.apply(_resized(tiles, scaled)))))
            scores = _resized(scores, side)
            total = total + (_softmax(scores) if kind == "released" else scores)
        return total / len(views)

    return mean


def _resized(tiles: np.ndarray, side: int) -> np.ndarray:
    """Resize tiles (B, s, s, C) to another side, bilinearly; integers are rounded."""
    if tiles.shape[1] == side:
        return tiles
    found = np.asarray(_resize(tiles.astype(np.float32), side))
    return found if tiles.dtype == np.float32 else np.rint(found).astype(tiles.dtype)


@functools.partial(jax.jit, static_argnums=1)
def _resize(tiles: jax.Array, side: int) -> jax.Array:
    return resize_bilinear(tiles, (side, side))


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
