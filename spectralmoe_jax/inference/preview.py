"""A picture of a scene and its class map, side by side, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spectralmoe_jax.inference.scene import NODATA, georeference_optional

_LONGEST = 1000  # pixels of a picture's longer side
_NAMES_OF = {"red": ("red", "b04", "b4"), "green": ("green", "b03", "b3"), "blue": ("blue", "b02", "b2")}


def write_preview(
    path: Path,
    scene_path: Path,
    map_path: Path,
    names: Sequence[str],
    palette: Sequence[Sequence[int]] | np.ndarray,
    shown: Sequence[int] | None = None,
) -> None:
    """Write a PNG: the scene, its bands stretched from the 2nd to the 98th percentile, the map in its
    colours, and a legend with each class's share of the pixels with data. Nodata is white. `shown` are the
    scene's bands, from 1, to show as red, green and blue; by default those that the file calls so.

    The files are read decimated to at most 1000 pixels a side; the shares count every pixel of the map.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    classes, shares = _read_map(map_path, len(names))
    scene = _read_scene(scene_path, classes != NODATA, shown)
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
        figure.subplots(1, 2), ("scene", "map"), (scene, lookup[classes]), strict=True
    ):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title)
        axes.set_xticks([])
        axes.set_yticks([])
    patches = [
        Patch(facecolor=colour / 255, edgecolor="0.4", label=f"{name}  {share:.1%}")
        for name, colour, share in zip(names, colours, shares, strict=True)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(4, len(names)), frameon=False)
    figure.savefig(path, format="png")


def _decimated(dataset: Any) -> tuple[int, int]:
    factor = max(1.0, max(dataset.shape) / _LONGEST)
    return max(1, round(dataset.height / factor)), max(1, round(dataset.width / factor))


def _read_map(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The map (h, w) uint8, decimated, and the share of each class (K,)."""
    import rasterio

    with georeference_optional(), rasterio.open(path) as dataset:
        counts = np.zeros(256, np.int64)
        for _, window in dataset.block_windows(1):
            counts += np.bincount(dataset.read(1, window=window).ravel(), minlength=256)
        decimated = dataset.read(1, out_shape=_decimated(dataset))
    counts = counts[:classes]
    return decimated, counts / max(counts.sum(), 1)


def _read_scene(path: Path, valid: np.ndarray, shown: Sequence[int] | None) -> np.ndarray:
    """The scene (h, w, 3) uint8, decimated and stretched."""
    from data_pipelines.readers.raster_file import open_as_stored

    with georeference_optional(), open_as_stored(path) as dataset:
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
    """Bands shown as red, green, blue: those named so, else the first three, else the first in grey."""
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
