"""GeoTIFF files of generated scenes, which any GIS opens."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.transform import Affine

from data_pipelines.synthetic.render import SCALE, Domain, Scene
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.files import atomic_write

_COLOURS = {"red": ColorInterp.red, "green": ColorInterp.green, "blue": ColorInterp.blue}


def write_scene(
    folder: Path,
    name: str,
    scene: Scene,
    domain: Domain,
    corner: tuple[float, float],
    pixel: float,
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
) -> Path:
    """Write `images/<name>.tif`, `masks/<name>.tif` and `heights/<name>.tif` below a folder.

    Args:
      folder: where to write.
      name: name of the scene.
      scene: the scene.
      domain: its domain.
      corner: easting and northing of the north-western corner in the domain's UTM zone, in metres.
      pixel: side of a pixel in metres.
      classes: names of the classes.
      palette: their colours.

    Returns:
      The path of the image.

    Raises:
      UserError: the folder cannot be written; existing files are then unchanged.
    """
    georeference = {
        "crs": f"EPSG:{domain.epsg}",
        "transform": Affine(pixel, 0, corner[0], 0, -pixel, corner[1]),
    }
    sun = {"SUN_AZIMUTH": f"{scene.sun.azimuth:.2f}", "SUN_ELEVATION": f"{scene.sun.elevation:.2f}"}

    def finish_image(dataset: Any) -> None:
        """Set band names, scales and sensor of an image."""
        dataset.colorinterp = [_COLOURS.get(b.name, ColorInterp.undefined) for b in domain.sensor.bands]
        dataset.scales = (1 / SCALE,) * dataset.count
        dataset.update_tags(SENSOR=domain.sensor.name, **sun)
        for index, band in enumerate(domain.sensor.bands, 1):
            dataset.set_band_description(index, band.name)
            wavelength = {"CENTRAL_WAVELENGTH_UM": f"{band.centre:.3f}", "FWHM_UM": f"{band.width:.3f}"}
            dataset.update_tags(index, ns="IMAGERY", **wavelength)

    def finish_label(dataset: Any) -> None:
        """Set colours and class names of a label."""
        dataset.write_colormap(1, {i: (*colour, 255) for i, colour in enumerate(palette)})
        dataset.update_tags(1, **{f"CLASS_{i}": title for i, title in enumerate(classes)})

    def finish_height(dataset: Any) -> None:
        """Set description and unit of a height map."""
        dataset.set_band_description(1, "height above the lowest ground")
        dataset.units = ("m",)

    image = folder / "images" / f"{name}.tif"
    # the image last: if it exists, so does its mask
    _write(folder / "masks" / f"{name}.tif", scene.label[..., None], georeference, finish_label)
    _write(folder / "heights" / f"{name}.tif", scene.height[..., None], georeference, finish_height)
    _write(image, scene.image, georeference, finish_image)
    return image


def _write(
    path: Path, pixels: np.ndarray, georeference: Mapping[str, Any], finish: Callable[[Any], None]
) -> None:
    """Write pixels (H, W, bands) to a temporary file, and rename it to `path`.

    Args:
      path: the file.
      pixels: its pixels.
      georeference: CRS and transform.
      finish: sets tags, colours and names of the open file.
    """
    height, width, count = pixels.shape
    shape = {"height": height, "width": width, "count": count, "dtype": pixels.dtype}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_write(path) as aside,
            rasterio.open(aside, "w", driver="GTiff", compress="deflate", **shape, **georeference) as dataset,
        ):
            finish(dataset)  # before the pixels, as colours are in the first part of the file
            dataset.write(np.moveaxis(pixels, -1, 0))
    except (OSError, RasterioError) as problem:
        raise UserError(f"{path}: cannot be written ({problem}): choose another folder") from problem
