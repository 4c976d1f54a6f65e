"""A folder of images with colour-coded masks, one sub-folder a domain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data_pipelines.sources.colours import ColourCode
from data_pipelines.sources.geotiff_tiles import GeoTiffTiles
from data_pipelines.sources.labels import RasterLabels


class ImageFolder(GeoTiffTiles):
    """`GeoTiffTiles` for masks that people painted: JPEG, PNG, GeoTIFF and whatever GDAL reads.

    Masks are one of
      - three or four 8-bit bands: colours of `palette`; transparent pixels are ignored;
      - one band with a colour table: the same, through the table;
      - one band without: training ids 0..K-1, 255 for ignore.
    Colours that are neither in `palette` nor in `ignore_colours` are ignored, counted and logged in one
    warning, whatever the worker count.

    Args:
      palette: colour (r, g, b) of each class; the training id is the index.
      ignore_colours: colours that mean "no label".
      others: as `GeoTiffTiles`'s.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        palette: Sequence[Sequence[int]],
        bands: Sequence[str],
        domains: Sequence[str] | None = None,
        image_glob: str = "*/images/*.jpg",
        mask_template: str = "{domain}/masks/{stem}.png",
        ignore_colours: Sequence[Sequence[int]] = (),
        sensor: str | None = None,
        file_bands: Sequence[str] | None = None,
        corrupt: str = "stop",
        cache_bytes: int = 512 << 20,
    ):
        super().__init__(
            root,
            bands=bands,
            labels=RasterLabels(ColourCode(palette, ignore_colours)),
            classes=len(palette),
            domains=domains,
            image_glob=image_glob,
            mask_template=mask_template,
            sensor=sensor,
            file_bands=file_bands,
            corrupt=corrupt,
            cache_bytes=cache_bytes,
        )
