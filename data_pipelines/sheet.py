"""Figures of tiles and masks, and the colouring of pixels and labels on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.records import IGNORE
from data_pipelines.sensors import SENSORS, visible
from spectralmoe_jax.escapes import printable
from spectralmoe_jax.files import atomic_write, naming_file

INK, QUIET = "#1b1f24", "#5b6470"  # colours of text, and of less important text
_DPI = 120
_UNLABELLED = (226, 192)  # grey levels of the chequerboard that means "no label"


class Sheet:
    """A white figure with positions in inches from its upper left corner.

    Args:
      width: in inches.
      height: in inches.
      cell: side in inches of the square that a picture is fitted into.
    """

    def __init__(self, width: float, height: float, cell: float):
        from matplotlib.figure import Figure

        self.width, self.height, self.cell = width, height, cell
        self.figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")

    def text(
        self, left: float, top: float, text: str, size: float = 10, color: str = INK, **style: Any
    ) -> None:
        """Write a line of text whose left end is at `left` and whose middle is at `top`."""
        place = left / self.width, 1 - top / self.height
        self.figure.text(
            *place, printable(text), size=size, color=color, **{"va": "center", "parse_math": False, **style}
        )

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Return matplotlib axes in a rectangle."""
        box = left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height
        return self.figure.add_axes(box)

    def picture(self, left: float, top: float, picture: np.ndarray) -> None:
        """Draw a picture (h, w, 3) uint8 in the middle of a cell, with its own proportions."""
        height, width = (self.cell * side / max(picture.shape[:2]) for side in picture.shape[:2])
        axes = self.axes(left + (self.cell - width) / 2, top + (self.cell - height) / 2, width, height)
        axes.imshow(picture, interpolation="antialiased", aspect="auto")
        axes.set_axis_off()

    def swatch(self, left: float, top: float, colour: np.ndarray) -> None:
        """Draw a small rectangle beside a line of text at `top`: a colour (3,), or a picture (8, 12, 3)."""
        axes = self.axes(left, top - 0.08, 0.24, 0.16)
        axes.imshow(np.broadcast_to(colour, (8, 12, 3)), aspect="auto", interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=QUIET, linewidth=0.5)

    def save(self, path: Path) -> None:
        """Write a PNG, which appears complete or not at all; the same figure gives the same bytes.

        Raises:
          OSError: the file cannot be written.
        """
        with naming_file(path), atomic_write(path) as aside:
            self.figure.savefig(aside, format="png", dpi=_DPI, metadata={"Software": None})


def display_bands(bands: Sequence[str], sensor: str | None = None) -> tuple[int, int, int]:
    """Return the positions of the bands to show as red, green and blue.

    They are the bands of these names, or else the display bands of the sensor, or else the first three.

    Args:
      bands: names of the bands.
      sensor: name of a sensor; unknown ones are ignored.
    """
    known = visible(bands, sensor if sensor in SENSORS else None)
    return known or ((0, 1, 2) if len(bands) >= 3 else (0, 0, 0))


def stretched(pixels: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Stretch pixels to a picture.

    Args:
      pixels: (h, w, 3).
      limits: pixel values to show as black and as full colour, (2, 3).

    Returns:
      (h, w, 3) uint8.
    """
    low, high = limits
    scaled = np.clip((pixels - low) / np.maximum(high - low, 1e-9), 0, 1)
    return np.rint(255 * scaled).astype(np.uint8)


def coloured(label: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Return training ids (h, w) as a picture (h, w, 3) uint8; a chequerboard means no label."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    height, width = label.shape
    grey = chequers(height, width, side=max(1, max(height, width) // 32))
    return np.where((label == IGNORE)[..., None], grey, table[label])


def chequers(height: int, width: int, side: int) -> np.ndarray:
    """Return the chequerboard (height, width, 3) uint8 that means "no label".

    Args:
      height: in pixels.
      width: in pixels.
      side: side of its squares in pixels.
    """
    odd = (np.arange(height)[:, None] // side + np.arange(width) // side) % 2
    grey = np.where(odd, *_UNLABELLED).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def counted(number: int, noun: str) -> str:
    """Format a number with its noun, as in "1 tile" and "1,366 tiles"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def short(text: str, length: int) -> str:
    """Shorten a text to `length` letters by leaving out its middle."""
    tail = length // 2 + 1
    return text if len(text) <= length else f"{text[: length - tail - 1]}…{text[-tail:]}"
