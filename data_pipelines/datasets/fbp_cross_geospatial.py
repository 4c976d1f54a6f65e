"""Five-Billion-Pixels, cross-geospatial: the 150 Gaofen-2 images, 126 of them source and 24 target.

The published lists of names were not found. `split.txt` in the source folder decides, with a line `NAME
source` or `NAME target` for each image to use. Without it, images are ordered by their L1A number, which
follows the time of acquisition, and the last 24 are target (of fewer images, the same share): neighbours
along an orbit have neighbouring numbers, so few pairs of them are divided. Scores on this default are not
the published ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipelines.datasets import downloaded_files as files
from data_pipelines.datasets import five_billion_pixels as fbp
from data_pipelines.datasets import tile_grids as grids
from data_pipelines.datasets.dataset import Benchmark, Listing, Pair

IMAGES, TARGETS = 150, 24
TILES = grids.Tiles(count=4, dtype=np.uint8, rule=fbp.INDEX_RULE, grid=grids.padded, area=fbp.inside_border)


def find(root: Path) -> Listing:
    """The Gaofen-2 images, divided by `split.txt` or as the module says.

    Raises UserError for a `split.txt` that is not understood.
    """
    images = fbp.gaofen2_images(root, "source")
    sides = _sides(root, images.pairs)
    pairs = (pair._replace(split=sides[pair.name]) for pair in images.pairs if pair.name in sides)
    return Listing(tuple(pairs), images.missing)


def _sides(root: Path, pairs: tuple[Pair, ...]) -> dict[str, str]:
    names = [pair.name for pair in pairs]
    if (root / files.SPLIT_FILE).is_file():
        return files.read_split(root / files.SPLIT_FILE, names, "image")
    ordered = sorted(names, key=lambda name: (name.rpartition("L1A")[2], name))
    targets = ordered[len(ordered) - round(len(ordered) * TARGETS / IMAGES) :]
    return {name: "target" if name in targets else "source" for name in names}


BENCHMARK = Benchmark(
    name="fbp_cross_geospatial",
    title="Five-Billion-Pixels, cross-geospatial",
    citation=fbp.CITATION,
    licence=fbp.LICENCE,
    homepage=fbp.HOMEPAGE,
    download=f"{fbp.DOWNLOAD}; and your split.txt, with a line `NAME source` or `NAME target` an image, or "
    "none for the default split.",
    classes=fbp.CLASSES,
    palette=fbp.PALETTE,
    bands=fbp.BANDS,
    sensors={"gaofen2": "gaofen2"},
    splits=("source", "target"),
    source=("source",),
    target=("target",),
    tile=512,
    dtype=np.uint8,
    find=find,
    cells=TILES.cells,
    read_tile=TILES.read,
    counts={"source": IMAGES - TARGETS, "target": TARGETS},
)
