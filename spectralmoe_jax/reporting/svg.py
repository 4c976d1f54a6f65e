"""Charts as SVG text, and pictures as `data:` addresses: graphics that a page carries in itself.

Charts are drawn at the width of a phone, so that their letters stay legible there. Colours are classes of the
page's style sheet (`s0`, `s1`, ... for series, `e0`, ... for experts), so a chart follows its light and dark
scheme. Every chart has a title that describes it in words.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from spectralmoe_jax.escapes import html
from spectralmoe_jax.inference.preview import EXPERT_COLOURS, class_map, error_map

EXPERTS = (
    *EXPERT_COLOURS,
    (146, 73, 0),
    (182, 109, 255),
    (0, 73, 73),
    (255, 182, 219),
    (36, 255, 36),
    (146, 0, 0),
    (0, 109, 219),
    (182, 219, 255),
)
"""Colours of sixteen experts, as distinct for colour-blind readers as sixteen can be; repeated beyond."""
WIDTH, HEIGHT = 340, 210
SERIES = 8
"""Number of series colours; repeated beyond."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 40
_QUALITY = 82  # of JPEG pictures


class Line(NamedTuple):
    """One curve.

    Attributes:
      name: in the legend.
      x: (n,), whole numbers such as steps.
      y: (n,); NaN breaks the curve.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]


def line_chart(
    lines: Sequence[Line],
    title: str,
    x_label: str,
    *,
    y_range: tuple[float, float] | None = None,
    markers: bool = False,
) -> str:
    """Draw curves over a common axis as an `<svg>` element.

    Args:
      lines: the curves.
      title: description in words, for readers who cannot see the chart.
      x_label: label below the axis.
      y_range: instead of the range of the data.
      markers: draw a dot at every point.
    """
    x_low, x_high = _span([v for line in lines for v in line.x])
    y_low, y_high = y_range or _span([v for line in lines for v in line.y], from_zero=True)
    x_of = lambda v: _LEFT + (v - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)
    y_of = lambda v: HEIGHT - _BOTTOM - (v - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)
    parts = []
    for tick in ticks(y_low, y_high):
        y = y_of(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in _whole_ticks(x_low, x_high):
        parts.append(_below(x_of(tick), HEIGHT - _BOTTOM + 16, number(tick)))
    parts.append(_below((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 6, html(x_label)))
    for i, line in enumerate(lines):
        points = [(x_of(x), y_of(y)) for x, y in zip(line.x, line.y, strict=True)]
        parts.append(f'<path class="line s{i % SERIES} d{min(i, 3)}" d="{_path(points)}"/>')
        if markers:
            parts += [
                f'<circle class="s{i % SERIES} dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
                for x, y in points
                if math.isfinite(y)
            ]
    return _svg(parts, title)


def stacked_chart(shares: np.ndarray, x: Sequence[float], title: str, x_label: str) -> str:
    """Draw shares as stacked bands, the first at the bottom, as an `<svg>` element.

    Args:
      shares: (n, E), each row adding up to one.
      x: (n,), whole numbers.
      title: description in words.
      x_label: label below the axis.
    """
    x_low, x_high = _span(x)
    height = 120
    x_of = lambda v: _LEFT + (v - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)
    y_of = lambda v: height - _BOTTOM - v * (height - _TOP - _BOTTOM)
    edges = np.concatenate([np.zeros((len(shares), 1)), np.cumsum(shares, axis=1)], axis=1)
    parts = []
    for i in range(shares.shape[1]):
        top = [(x_of(v), y_of(edge)) for v, edge in zip(x, edges[:, i + 1], strict=True)]
        bottom = [(x_of(v), y_of(edge)) for v, edge in zip(x, edges[:, i], strict=True)]
        parts.append(f'<path class="e{i % len(EXPERTS)}" d="{_path([*top, *reversed(bottom)])}Z"/>')
    for tick in (0.0, 1.0):
        parts.append(f'<text x="{_LEFT - 6}" y="{y_of(tick) + 4:.1f}" text-anchor="end">{tick:.0%}</text>')
    for tick in _whole_ticks(x_low, x_high):
        parts.append(_below(x_of(tick), height - _BOTTOM + 16, number(tick)))
    parts.append(_below((_LEFT + WIDTH - _RIGHT) / 2, height - 6, html(x_label)))
    return _svg(parts, title, height)


class Dots(NamedTuple):
    """One row of a dot chart.

    Attributes:
      name: of the variant.
      values: of its runs.
      is_reference: whether the variant is the reference.
    """

    name: str
    values: Sequence[float]
    is_reference: bool


def dot_chart(rows: Sequence[Dots], title: str, x_label: str) -> str:
    """Draw one row of dots for each variant, as an `<svg>` element.

    A bar marks the mean of a row, a line across all rows the mean of the reference.

    Args:
      rows: the variants.
      title: description in words.
      x_label: label below the axis.
    """
    x_low, x_high = _span([v for row in rows for v in row.values], margin=0.05)
    step, top, left = 34, 6, 10
    height = top + step * len(rows) + 40
    x_of = lambda v: left + (v - x_low) / (x_high - x_low) * (WIDTH - left - _RIGHT)
    parts = []
    for tick in ticks(x_low, x_high):
        parts.append(f'<path class="grid" d="M{x_of(tick):.1f} {top}V{height - 36}"/>')
        parts.append(_below(x_of(tick), height - 22, number(tick)))
    for row in rows:
        if row.is_reference and row.values:
            x = x_of(float(np.mean(row.values)))
            parts.append(f'<path class="line s0 d1" d="M{x:.1f} {top}V{height - 36}"/>')
    for i, row in enumerate(rows):
        y = top + step * i + 23
        parts.append(f'<text x="{left}" y="{y - 10}">{html(_short(row.name))}</text>')
        kind = "s0" if row.is_reference else "s7"
        parts += [f'<circle class="dot {kind}" cx="{x_of(v):.1f}" cy="{y}" r="3.5"/>' for v in row.values]
        if row.values:
            mean = x_of(float(np.mean(row.values)))
            parts.append(f'<path class="line {kind} d0" d="M{mean:.1f} {y - 7}v14"/>')
    parts.append(_below(WIDTH / 2, height - 5, html(x_label)))
    return _svg(parts, title, height)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return round numbers between two, roughly `about` of them."""
    rough = (high - low) / about
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    return [
        round(k * step, 10) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _whole_ticks(low: float, high: float) -> list[float]:
    """Return those of `ticks` that can be a step or a layer: around a single one there are halves."""
    return [tick for tick in ticks(low, high) if tick == round(tick)]


def number(value: float) -> str:
    """Format a number in short: 12k for 12000."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def thin(count: int, at_most: int = 120) -> np.ndarray:
    """Return evenly spaced indices of at most `at_most` of `count` points, first and last included."""
    return np.unique(np.linspace(0, count - 1, min(count, at_most)).round().astype(int))


def _span(values: Sequence[float], from_zero: bool = False, margin: float = 0.0) -> tuple[float, float]:
    known = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(known), max(known)
    low = min(low, 0.0) if from_zero else low
    if high - low < 1e-12:
        low, high = low - 0.5 * (not from_zero), high + 0.5
    room = margin * (high - low)
    return low - room, high + room


def _path(points: Sequence[tuple[float, float]]) -> str:
    drawn, pen = [], "M"
    for x, y in points:
        if not math.isfinite(y):
            pen = "M"
            continue
        drawn.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(drawn)


def _below(x: float, y: float, text: str) -> str:
    """Draw a text centred at x, or ending at the right edge where it would be cut off."""
    anchor = "end" if x > WIDTH - 24 and len(text) > 2 else "middle"
    x = WIDTH - 1 if anchor == "end" else x
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _short(text: str, longest: int = 48) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _svg(parts: Sequence[str], title: str, height: int = HEIGHT) -> str:
    label = html(title, quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{label}">'
        f"<title>{html(title)}</title>{''.join(parts)}</svg>"
    )


def photo(image: np.ndarray) -> str:
    """Encode an image (h, w, 3) uint8 as a JPEG address."""
    return _encoded(image, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])


def drawing(image: np.ndarray) -> str:
    """Encode an image (h, w, 3) uint8 of few colours as a PNG address."""
    return _encoded(image, ".png", [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _encoded(image: np.ndarray, kind: str, options: Sequence[int]) -> str:
    done, data = cv2.imencode(kind, np.ascontiguousarray(image[..., ::-1]), options)
    assert done
    mime = {".jpg": "jpeg", ".png": "png"}[kind]
    return f"data:image/{mime};base64,{base64.b64encode(data.tobytes()).decode()}"


def class_picture(label: np.ndarray, palette: Sequence[Sequence[int]]) -> str:
    """Draw class ids (h, w) in the colours of the classes, unlabelled pixels white."""
    return drawing(class_map(label, palette))


def error_picture(truth: np.ndarray, prediction: np.ndarray) -> str:
    """Draw right pixels grey, wrong ones red, unlabelled ones white."""
    return drawing(error_map(truth, prediction))


def expert_picture(numbers: np.ndarray) -> str:
    """Draw expert numbers (h, w) in the colours of the experts."""
    table = np.array(EXPERTS, np.uint8)
    return drawing(table[numbers % len(table)])
