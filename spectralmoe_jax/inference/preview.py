"""PNG pictures: a scene beside its map (`write_preview`), and rows of input, truth, prediction and experts.

`write_preview` reads files of any size at reduced resolution. `write_panel` draws arrays, one row for each
scene.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from data_pipelines.readers.raster_file import open_as_stored
from data_pipelines.records import IGNORE
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.escapes import drawn
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.inference.scene import NODATA, reading

EXPERT_COLOURS = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (60, 60, 60),
)
"""The colour-blind safe palette of Okabe and Ito (2008); repeated beyond eight experts."""
RIGHT, WRONG, IGNORED = (226, 228, 230), (170, 20, 70), (255, 255, 255)
"""Colours of right, wrong and unlabelled pixels."""

_LONGEST = 1000  # pixels, longer side of a picture in a preview
_NAMES_OF = {"red": ("red", "b04", "b4"), "green": ("green", "b03", "b3"), "blue": ("blue", "b02", "b2")}
_DPI = 110  # of a panel
_MAX_WIDTH = 1800  # pixels, of a panel
_INK, _QUIET = "#1b1f24", "#5b6470"


def write_preview(
    path: Path,
    scene: str,
    map_path: Path,
    names: Sequence[str],
    palette: Sequence[Sequence[int]] | np.ndarray,
    shown: Sequence[int] | None = None,
) -> None:
    """Write a PNG of a scene beside its class map, with a legend.

    Bands are stretched from the 2nd to the 98th percentile; nodata is white. The legend gives each class's
    share of the pixels with data. Both files are read decimated to at most 1000 pixels a side; the shares
    count every pixel of the map.

    Args:
      path: PNG to write.
      scene: the scene, a file or another name that GDAL opens.
      map_path: its class map.
      names: of the classes.
      palette: colours of the classes, (C, 3) in 0..255.
      shown: numbers of the scene's bands, from 1, to show as red, green and blue; by default those that the
        file names so.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    classes, shares = _read_map(map_path, len(names))
    shown_scene = scene_picture(scene, classes != NODATA, shown)
    colours = np.asarray(palette, np.uint8)
    lookup = np.full((256, 3), 255, np.uint8)
    lookup[: len(colours)] = colours

    height, width = classes.shape
    side = 5.0  # inches of a picture's longer side
    scale = side / max(height, width)
    legend_rows = -(-len(names) // 4)
    tall, wide = max(height * scale, 1.2), max(width * scale, 2.0)
    figure = Figure(figsize=(2 * wide + 0.4, tall + 0.5 + 0.3 * legend_rows), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, title, picture in zip(
        figure.subplots(1, 2), ("scene", "map"), (shown_scene, lookup[classes]), strict=True
    ):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
    patches = [
        Patch(facecolor=colour / 255, edgecolor="0.4", label=drawn(f"{name}  {share:.1%}"))
        for name, colour, share in zip(names, colours, shares, strict=True)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
    figure.savefig(path, format="png")


def decimated_shape(dataset: Any, longest: int = _LONGEST) -> tuple[int, int]:
    """Return the height and width of an open raster, reduced so that no side is longer than `longest`."""
    factor = max(1.0, max(dataset.shape) / longest)
    return max(1, round(dataset.height / factor)), max(1, round(dataset.width / factor))


def _read_map(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the map (h, w) uint8, decimated, and the share of each class (C,)."""
    with reading(str(path)), rasterio.open(path) as dataset:
        counts = np.zeros(256, np.int64)
        for _, window in dataset.block_windows(1):
            counts += np.bincount(dataset.read(1, window=window).ravel(), minlength=256)
        decimated = dataset.read(1, out_shape=decimated_shape(dataset))
    counts = counts[:classes]
    return decimated, counts / max(counts.sum(), 1)


def scene_picture(name: str, valid: np.ndarray, shown: Sequence[int] | None) -> np.ndarray:
    """Read a scene as a picture: decimated, and stretched from the 2nd to the 98th percentile.

    Args:
      name: the scene, a file or another name that GDAL opens.
      valid: (h, w) bool, where the picture has data; elsewhere it is white.
      shown: numbers of the bands, from 1, to show as red, green and blue; None for those that the file names
        so.

    Returns:
      (h, w, 3) uint8.
    """
    with reading(name), open_as_stored(name) as dataset:
        bands = list(shown or _display_bands(dataset))
        pixels = dataset.read(bands, out_shape=valid.shape).astype(np.float32)
    picture = np.full((*valid.shape, 3), 255, np.uint8)
    for channel, band in enumerate(pixels):
        seen = band[valid & np.isfinite(band)]
        if seen.size:
            low, high = np.percentile(seen, (2, 98))
            stretched = np.clip((seen - low) / max(high - low, 1e-12), 0, 1)
            picture[valid & np.isfinite(band), channel] = np.rint(stretched * 255)
    return picture


def _display_bands(dataset: Any) -> list[int]:
    """Return the bands to show as red, green, blue: those named so, else the first three, else the first."""
    if dataset.count < 3:
        return [1, 1, 1]
    described = [(text or "").lower() for text in dataset.descriptions]
    tagged = [kind.name for kind in dataset.colorinterp]
    chosen = []
    for colour, known in _NAMES_OF.items():
        here = [i for i, text in enumerate(described, 1) if text in known]
        here += [i for i, kind in enumerate(tagged, 1) if kind == colour]
        if not here:
            return [1, 2, 3]
        chosen.append(here[0])
    return chosen


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
    """Write a PNG with one row for each scene.

    Columns are input, false colour (optional), truth, prediction, errors (optional) and experts (optional).

    Args:
      path: of the PNG; replaced in one step.
      images: (H, W, bands) each.
      truths: class ids (H, W), 255 where unlabelled.
      predictions: class ids (H, W).
      experts: a scene's token grids by column title, such as {"expert, layer 4": (h, w) int}, of numbers
        0..E-1; the grid spans the image. Every scene has the same titles. None for no such columns.
      names: of the classes.
      palette: colours of the classes, (r, g, b) in 0..255.
      expert_count: E.
      titles: of the rows; a line break starts a smaller second line.
      rgb_bands: shown as red, green and blue.
      false_colour_bands: three more bands to show in a column, near infrared first by convention.
      error: add a column of right and wrong pixels.
      heading: above everything.

    Raises:
      UserError: the file cannot be written, or its ending is not .png.
      ValueError: numbers of scenes, shapes or expert numbers do not fit.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: the panel is a PNG, give a name that ends in .png")
    titles = [""] * len(images) if titles is None else titles
    _check_panel(images, truths, predictions, experts, titles, expert_count)
    rows = []
    for i, (image, truth, prediction) in enumerate(zip(images, truths, predictions, strict=True)):
        row = {"input": stretch(image, rgb_bands)}
        if false_colour_bands is not None:
            row["near infrared"] = stretch(image, false_colour_bands)
        row["truth"] = class_map(truth, palette)
        row["prediction"] = class_map(prediction, palette)
        if error:
            row["errors"] = error_map(truth, prediction)
        if experts is not None:
            row |= {title: _expert_map(grid) for title, grid in experts[i].items()}
        rows.append(row)
    figure = _draw(rows, titles, heading)
    _legends(figure, names, palette, expert_count if experts else 0, error)
    _save(figure, path)


def _check_panel(images, truths, predictions, experts, titles, expert_count: int) -> None:
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


def class_map(label: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Colour class ids (h, w): (h, w, 3) uint8, unlabelled pixels white."""
    table = np.tile(np.array(IGNORED, np.uint8), (256, 1))
    table[: len(palette)] = palette
    return table[label]


def error_map(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Colour right and wrong pixels of class ids (h, w): (h, w, 3) uint8, unlabelled pixels white."""
    picture = np.where((truth == prediction)[..., None], RIGHT, WRONG)
    return np.where((truth == IGNORE)[..., None], IGNORED, picture).astype(np.uint8)


def _expert_map(grid: np.ndarray) -> np.ndarray:
    colours = np.array(EXPERT_COLOURS, np.uint8)
    return colours[grid % len(colours)]


def _draw(rows: Sequence[Mapping[str, np.ndarray]], titles: Sequence[str], heading: str) -> Any:
    """Draw the pictures in a grid, with titles above and beside them, and room for legends below."""
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
        figure.text(0.20 / width, middle, drawn(main), size=11, weight="bold", color=_INK, **beside)
        figure.text(0.44 / width, middle, drawn(small), size=9.5, color=_QUIET, **beside)
    if heading:
        figure.text(
            left / width, 1 - 0.22 / height, drawn(heading), size=13, weight="bold", color=_INK, va="center"
        )
    return figure


def _picture(axes: Any, picture: np.ndarray, title: str) -> None:
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(drawn(title), size=11, color=_INK, pad=5)


def _legends(figure, names, palette, expert_count: int, error: bool) -> None:
    """Draw a legend of classes in one line below the pictures, of experts and errors in a second."""
    from matplotlib.patches import Patch

    height = figure.get_figheight()
    patch = lambda colour, text: Patch(
        facecolor=tuple(c / 255 for c in colour), edgecolor="none", label=drawn(text)
    )
    style: dict[str, Any] = {
        "frameon": False,
        "fontsize": 10.5,
        "handlelength": 1.1,
        "handleheight": 1.1,
        "columnspacing": 1.5,
        "handletextpad": 0.5,
        "labelcolor": _INK,
        "loc": "center",
    }
    classes = [patch(colour, name) for name, colour in zip(names, palette, strict=True)]
    figure.legend(handles=classes, ncols=len(classes), bbox_to_anchor=(0.5, 0.60 / height), **style)
    second = [patch(EXPERT_COLOURS[e % len(EXPERT_COLOURS)], f"expert {e + 1}") for e in range(expert_count)]
    second += [patch(WRONG, "wrong class")] if error else []
    if second:
        figure.legend(handles=second, ncols=len(second), bbox_to_anchor=(0.5, 0.26 / height), **style)


def _save(figure: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as aside:
            figure.savefig(aside, dpi=_DPI)
    except OSError as problem:
        raise UserError(f"{path}: cannot be written ({problem}): choose another place") from problem


def stretch(image: np.ndarray, bands: Sequence[int] = (0, 1, 2), gamma: float = 0.75) -> np.ndarray:
    """Stretch three bands between percentiles, to a picture (H, W, 3) float in 0..1.

    Each band loses its own 1st percentile, which is mostly haze. All three share one range, up to the 98th
    percentile of the brightest, so that colours keep their balance.

    Args:
      image: (H, W, bands), any type; pixels that are not finite become black.
      bands: indexes of red, green and blue.
      gamma: exponent after stretching; below 1 brightens shadows.
    """
    chosen = np.asarray(image)[..., list(bands)].astype(np.float64)
    finite: np.ndarray = np.all(np.isfinite(chosen), axis=-1)
    if not finite.any():
        return np.zeros(chosen.shape)
    low, high = np.percentile(chosen[finite], (1, 98), axis=0)
    scaled = (np.where(finite[..., None], chosen, low) - low) / max(float((high - low).max()), 1e-9)
    return np.where(finite[..., None], np.clip(scaled, 0, 1) ** gamma, 0)
