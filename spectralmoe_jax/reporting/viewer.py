"""`spectralmoe view`: a predicted scene as one HTML page, to pan, zoom and ask pixel by pixel.

The page holds the image, the classes with their confidence, and the experts of every token, and needs neither
network nor server. Scenes are shown at 2000 pixels a side at most; the experts of scenes of more than 250
million values, which are held in memory, are left out.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import rasterio

from data_pipelines.sheet import display_bands
from spectralmoe_jax.config.load import Configuration
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.escapes import printable
from spectralmoe_jax.evaluation.score_table import MODALITIES
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.inference.model import Model, load
from spectralmoe_jax.inference.predict_step import make_routed_step
from spectralmoe_jax.inference.preview import NODATA, decimated_shape, scene_picture
from spectralmoe_jax.inference.products import product_file
from spectralmoe_jax.inference.scene import Scene, open_scene, reading
from spectralmoe_jax.inference.sliding_window import expert_maps
from spectralmoe_jax.part_files import scratch_folder
from spectralmoe_jax.reporting.page import rendered
from spectralmoe_jax.reporting.svg import EXPERTS, drawing, photo

LONGEST = 2000
"""Longest side of the page's pictures in pixels."""
_WITH_EXPERTS = 250_000_000  # values of a scene at most, which is read at once
_LEVELS = 254  # of the confidence in the page; 255 is no data


def view(
    checkpoint: str | os.PathLike[str],
    config: Configuration | None = None,
    *,
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    allow_code: bool = False,
) -> Path:
    """Map a scene and write the page that shows the map over it.

    Args:
      checkpoint: the model, as `inference.model.load` takes it.
      config: in any form of `config.load.Configuration`; None for the model's own.
      input: scene, a file or a name that GDAL opens.
      output: HTML file to write.
      allow_code: as in `inference.model.load`.

    Returns:
      The file.

    Raises:
      UserError: names the file or key that is wrong.
    """
    output = Path(output)
    if output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{output}: the page is written as .html; let its name end so")
    if not output.parent.is_dir():
        raise UserError(f"{output}: the folder {output.parent} does not exist; create it first")
    page = scene_page(load(checkpoint, config, allow_code=allow_code), os.fspath(input))
    try:
        with atomic_write(output) as aside:
            aside.write_text(page, encoding="utf-8")
    except OSError as problem:
        raise UserError(
            f"{output}: cannot be written ({problem.strerror}); choose another --output"
        ) from None
    return output


def scene_page(model: Model, scene: str) -> str:
    """Render the page of a scene, which is mapped first."""
    with scratch_folder() as folder:
        map_path = folder / "map.tif"
        done = model.map(scene, map_path, confidence=True)
        classes, transform, crs = _decimated(map_path)
        confidence, _, _ = _decimated(product_file(map_path, "confidence"))
    height, width = done["shape"]
    values, experts = _values(classes, confidence), []
    with reading(scene), open_scene(scene) as dataset:
        opened = Scene(dataset, scene, model.bands, model.sensor, model.config.data.file_bands)
        bands = (
            [opened.indexes[i] for i in display_bands(model.bands, model.sensor)] if model.sensor else None
        )
        if height * width * len(model.bands) <= _WITH_EXPERTS:
            experts = _experts(model, opened)
    palette, name = model.config.classes.colours, PurePosixPath(scene.partition("?")[0]).name
    about = {
        "size": [height, width],
        "shown": list(classes.shape),
        "classes": list(map(printable, model.classes)),
        "palette": [list(map(int, colour)) for colour in palette],
        "experts": [list(colour) for colour in EXPERTS],
        "image": photo(scene_picture(scene, classes != NODATA, bands)),
        "values": drawing(values),
        "layers": experts,
        "patch": model.segmenter.config.visual.patch_size,
        "transform": None if transform.is_identity else list(transform)[:6],
        "crs": crs.to_string() if crs is not None and len(crs.to_string()) < 40 else "",
    }
    return rendered(
        "viewer.html",
        title=f"{name}: map by {model.config.name}",
        shown=name,
        command="view",
        run=model.config.name,
        about=about,
        names=model.classes,
        shares=[done["shares"][name] for name in model.classes],
        palette=palette,
        expert_colours=EXPERTS,
        has_experts=bool(experts),
    )


def _decimated(path: Path) -> tuple[np.ndarray, Any, Any]:
    """Read a raster at the size of the page, with the transform and the CRS of its full size."""
    with reading(str(path)), rasterio.open(path) as dataset:
        reduced = dataset.read(1, out_shape=decimated_shape(dataset, LONGEST))
        return reduced, dataset.transform, dataset.crs


def _values(classes: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Pack classes and confidence into the channels of a picture (h, w, 3) uint8."""
    levels = np.where(np.isfinite(confidence), np.rint(np.nan_to_num(confidence) * _LEVELS), 255)
    return np.stack([classes, levels.astype(np.uint8), np.zeros_like(classes)], axis=-1)


def _experts(model: Model, scene: Scene) -> list[dict[str, str]]:
    """Draw the number of every token's expert for each layer and modality; nothing without experts."""
    if not hasattr(model.segmenter.config.adapter, "num_experts"):
        return []
    image, _ = scene.read(0, scene.height)
    step = make_routed_step(model.segmenter)
    settings = model.config.evaluate
    found = expert_maps(step, image, window=settings.window, batch_size=settings.batch_size)
    return [
        {
            "name": f"layer {layer + 1}, {MODALITIES[modality]}",
            "picture": drawing(np.repeat(found[layer, modality][..., None].astype(np.uint8), 3, axis=-1)),
        }
        for layer in range(found.shape[0])
        for modality in range(found.shape[1])
    ]
