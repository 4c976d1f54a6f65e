"""One picture of what a model sees, says and does: a row a scene; input, truth, map and experts beside."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.files import atomic_write

EXPERT_COLOURS = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0),
    (240, 228, 66), (60, 60, 60),
)  # fmt: skip
"""The palette of Okabe and Ito (2008), which colour-blind readers can tell apart; repeated beyond eight."""

_DPI = 110
_MAX_WIDTH = 1800  # pixels
_IGNORE = 255
_IGNORED = (255, 255, 255)
_RIGHT, _WRONG = (226, 228, 230), (170, 20, 70)
_INK, _QUIET = "#1b1f24", "#5b6470"


def stretch(image: np.ndarray, bands: Sequence[int] = (0, 1, 2), gamma: float = 0.75) -> np.ndarray:
    """Three bands as a picture (H, W, 3) float in 0..1, stretched between percentiles.

    Each band loses its own 1st percentile, which is mostly haze, and all three share one range, up to the
    98th percentile of the brightest: colours keep their balance.

    Args:
      image: (H, W, C), any type; pixels that are not finite become black.
      bands: of red, green and blue.
      gamma: exponent after stretching; below 1 brightens shadows.
    """
    chosen = np.asarray(image)[..., list(bands)].astype(np.float64)
    finite: np.ndarray = np.all(np.isfinite(chosen), axis=-1)
    if not finite.any():
        return np.zeros(chosen.shape)
    low, high = np.percentile(chosen[finite], (1, 98), axis=0)
    scaled = (np.where(finite[..., None], chosen, low) - low) / max(float((high - low).max()), 1e-9)
    return np.where(finite[..., None], np.clip(scaled, 0, 1) ** gamma, 0)


def write_panel(
    path: str | Path,
    images: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    predictions: Sequence[np.ndarray],
    experts: Sequence[Mapping[str, np.ndarray]] | None = None,
    *,
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
    expert_count: int = 0,
    titles: Sequence[str] | None = None,
    rgb_bands: Sequence[int] = (0, 1, 2),
    false_colour_bands: Sequence[int] | None = None,
    error: bool = True,
    heading: str = "",
) -> None:
    """Writes a PNG: a row a scene, and columns input, (false colour), truth, prediction, (errors), experts.

    Args:
      path: of the PNG; replaced in one step.
      images: (H, W, C) each.
      truths: training ids (H, W), 255 where unlabelled.
      predictions: training ids (H, W).
      experts: a scene's token grids by column title, such as {"expert a token, layer 4": (h, w) int}, of
        numbers 0..E-1; the grid spans the image. Every scene has the same titles. None: no such columns.
      names, palette: of the classes; colours are (r, g, b) in 0..255.
      expert_count: E.
      titles: of the rows; a line break starts a smaller second line.
      rgb_bands: shown as red, green and blue.
      false_colour_bands: three more bands to show in a column, near infrared first by custom.
      error: adds a column of right and wrong pixels.
      heading: above everything.

    Raises:
      UserError: the file cannot be written, or its ending is not .png.
      ValueError: numbers of scenes, shapes or expert numbers that do not fit.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: the panel is a PNG, give a name that ends in .png")
    titles = [""] * len(images) if titles is None else titles
    _check(images, truths, predictions, experts, titles, expert_count)
    rows = []
    for i, (image, truth, prediction) in enumerate(zip(images, truths, predictions, strict=True)):
        row = {"input": stretch(image, rgb_bands)}
        if false_colour_bands is not None:
            row["near infrared"] = stretch(image, false_colour_bands)
        row["truth"] = _coloured(truth, palette)
        row["prediction"] = _coloured(prediction, palette)
        if error:
            row["errors"] = _errors(truth, prediction)
        if experts is not None:
            row |= {title: _expert_map(grid) for title, grid in experts[i].items()}
        rows.append(row)
    figure = _draw(rows, titles, heading)
    _legends(figure, names, palette, expert_count if experts else 0, error)
    _save(figure, path)


def _check(images, truths, predictions, experts, titles, expert_count: int) -> None:
    counts = {len(images), len(truths), len(predictions), len(titles)}
    counts |= set() if experts is None else {len(experts)}
    if counts == {0} or len(counts) != 1:
        raise ValueError(f"give one of each for every scene, and at least one scene; there are {counts}")
    for image, truth, prediction in zip(images, truths, predictions, strict=True):
        if not image.shape[:2] == truth.shape == prediction.shape:
            raise ValueError(f"shapes {image.shape}, {truth.shape}, {prediction.shape} do not fit")
    for scene in experts or ():
        if tuple(scene) != tuple(experts[0]):
            raise ValueError("every scene needs expert maps of the same titles")
        for title, grid in scene.items():
            if grid.ndim != 2 or grid.min() < 0 or grid.max() >= expert_count:
                raise ValueError(f"experts[{title!r}]: give (h, w) numbers from 0 to {expert_count - 1}")


def _coloured(label: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    table = np.tile(np.array(_IGNORED, np.uint8), (256, 1))
    table[: len(palette)] = palette
    return table[label]


def _errors(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    picture = np.where((truth == prediction)[..., None], _RIGHT, _WRONG)
    return np.where((truth == _IGNORE)[..., None], _IGNORED, picture).astype(np.uint8)


def _expert_map(grid: np.ndarray) -> np.ndarray:
    colours = np.array(EXPERT_COLOURS, np.uint8)
    return colours[grid % len(colours)]


def _draw(rows: Sequence[Mapping[str, np.ndarray]], titles: Sequence[str], heading: str) -> Any:
    """The pictures in a grid, with titles above and beside them, and room for legends below."""
    from matplotlib.figure import Figure

    columns = len(rows[0])
    cell = min(2.45, (_MAX_WIDTH / _DPI - 0.9) / columns)  # inches
    left, right, top, bottom, gap = 0.62, 0.12, 0.42 + 0.36 * bool(heading), 0.86, 0.07
    width = left + right + columns * cell + (columns - 1) * gap
    if width > _MAX_WIDTH / _DPI:
        cell -= (width - _MAX_WIDTH / _DPI) / columns
        width = _MAX_WIDTH / _DPI
    height = top + bottom + len(rows) * cell + (len(rows) - 1) * gap
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    for i, row in enumerate(rows):
        low = height - top - (i + 1) * cell - i * gap
        for j, (title, picture) in enumerate(row.items()):
            box = ((left + j * (cell + gap)) / width, low / height, cell / width, cell / height)
            _picture(figure.add_axes(box), picture, title if i == 0 else "")
        main, _, small = titles[i].partition("\n")
        middle = (low + cell / 2) / height
        beside: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center"}
        figure.text(0.20 / width, middle, main, size=11, weight="bold", color=_INK, **beside)
        figure.text(0.44 / width, middle, small, size=9.5, color=_QUIET, **beside)
    if heading:
        figure.text(left / width, 1 - 0.22 / height, heading, size=13, weight="bold", color=_INK, va="center")
    return figure


def _picture(axes: Any, picture: np.ndarray, title: str) -> None:
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(title, size=11, color=_INK, pad=5)


def _legends(figure, names, palette, expert_count: int, error: bool) -> None:
    """Classes in one line below the pictures, experts and errors in a second."""
    from matplotlib.patches import Patch

    height = figure.get_figheight()
    patch = lambda colour, text: Patch(facecolor=tuple(c / 255 for c in colour), edgecolor="none", label=text)
    style: dict[str, Any] = {
        "frameon": False, "fontsize": 10.5, "handlelength": 1.1, "handleheight": 1.1, "columnspacing": 1.5,
        "handletextpad": 0.5, "labelcolor": _INK, "loc": "center",
    }  # fmt: skip
    classes = [patch(colour, name) for name, colour in zip(names, palette, strict=True)]
    figure.legend(handles=classes, ncols=len(classes), bbox_to_anchor=(0.5, 0.60 / height), **style)
    second = [patch(EXPERT_COLOURS[e % len(EXPERT_COLOURS)], f"expert {e + 1}") for e in range(expert_count)]
    second += [patch(_WRONG, "wrong class")] if error else []
    if second:
        figure.legend(handles=second, ncols=len(second), bbox_to_anchor=(0.5, 0.26 / height), **style)


def _save(figure: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as aside:
            figure.savefig(aside, dpi=_DPI)
    except OSError as problem:
        raise UserError(f"{path}: cannot be written ({problem}): choose another place") from problem
