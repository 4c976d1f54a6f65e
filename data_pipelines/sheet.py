"""A sheet of tiles and masks for people to look at, and how pixels and labels are coloured on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.records import IGNORE
from data_pipelines.sensors import SENSORS, visible

INK, QUIET = "#1b1f24", "#5b6470"
_DPI = 120
_UNLABELLED = (226, 192)  # greys of the chequers that mean "no label"


class Sheet:
    """A white figure measured in inches from its upper left corner.

    Args:
      width, height: inches.
      cell: side of the square that a picture is fitted into, inches.
    """

    def __init__(self, width: float, height: float, cell: float):
        from matplotlib.figure import Figure

        self.width, self.height, self.cell = width, height, cell
        self.figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")

    def text(
        self, left: float, top: float, text: str, size: float = 10, color: str = INK, **style: Any
    ) -> None:
        """Writes a line whose left end and middle are at (left, top)."""
        place = left / self.width, 1 - top / self.height
        self.figure.text(
            *place, text, size=size, color=color, **{"va": "center", "parse_math": False, **style}
        )

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes of matplotlib in a rectangle."""
        box = left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height
        return self.figure.add_axes(box)

    def picture(self, left: float, top: float, picture: np.ndarray) -> None:
        """Draws (h, w, 3) uint8 in the middle of a cell, with its own proportions."""
        height, width = (self.cell * side / max(picture.shape[:2]) for side in picture.shape[:2])
        axes = self.axes(left + (self.cell - width) / 2, top + (self.cell - height) / 2, width, height)
        axes.imshow(picture, interpolation="antialiased", aspect="auto")
        axes.set_axis_off()

    def swatch(self, left: float, top: float, colour: np.ndarray) -> None:
        """Draws a small rectangle beside a line of text at `top`: a colour (3,), or a picture (8, 12, 3)."""
        axes = self.axes(left, top - 0.08, 0.24, 0.16)
        axes.imshow(np.broadcast_to(colour, (8, 12, 3)), aspect="auto", interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(color=QUIET, linewidth=0.5)

    def save(self, path: Path) -> None:
        """Writes a PNG in one step; the same drawing gives the same bytes. Raises OSError."""
        aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            self.figure.savefig(aside, format="png", dpi=_DPI, metadata={"Software": None})
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def display_bands(bands: Sequence[str], sensor: str | None = None) -> tuple[int, int, int]:
    """Places of the bands to show as red, green and blue.

    Those of these names; else those that `sensor`, of `data_pipelines.sensors`, is shown with; else the first
    three.
    """
    known = visible(bands, sensor if sensor in SENSORS else None)
    return known or ((0, 1, 2) if len(bands) >= 3 else (0, 0, 0))


def stretched(pixels: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Pixels (h, w, 3) as a picture uint8 on which the first of `limits` (2, 3) is black, the second full."""
    low, high = limits
    scaled = np.clip((pixels - low) / np.maximum(high - low, 1e-9), 0, 1)
    return np.rint(255 * scaled).astype(np.uint8)


def coloured(label: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Ids (h, w) as a picture (h, w, 3) uint8 in the palette's colours, chequered where there is no label."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    height, width = label.shape
    grey = chequers(height, width, side=max(1, max(height, width) // 32))
    return np.where((label == IGNORE)[..., None], grey, table[label])


def chequers(height: int, width: int, side: int) -> np.ndarray:
    """The pattern (height, width, 3) uint8 that means "no label", in squares of `side` pixels."""
    odd = (np.arange(height)[:, None] // side + np.arange(width) // side) % 2
    grey = np.where(odd, *_UNLABELLED).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def counted(number: int, noun: str) -> str:
    """As in "1 tile" and "1,366 tiles"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def short(text: str, length: int) -> str:
    """`text` without its middle, where it is longer than `length` letters."""
    tail = length // 2 + 1
    return text if len(text) <= length else f"{text[: length - tail - 1]}…{text[-tail:]}"
