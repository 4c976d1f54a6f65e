"""Five-Billion-Pixels: 24 classes in Gaofen-2 images at 4 m, as two data sets with their own target domains.

`CROSS_SENSOR` transfers from Gaofen-2 to Sentinel-2, Gaofen-1 and PlanetScope images of five cities. Gaofen-2
images lose their border and are cut into 14 rows of 15 tiles; tiles at the edges are padded. Of each city
image, the 1024 x 1024 window around its labelled part is cut into four tiles, as in the authors' released
code. The images of each city are taken from the data set's own code (x-ytong/DPA).

`CROSS_GEOSPATIAL` divides the 150 Gaofen-2 images into 126 of the source and 24 of the target domain. The
published lists of names were not found. A file `split.txt` in the download folder gives them, with a line
`NAME source` or `NAME target` for each image to use. Without it, images are ordered by their L1A number,
which follows the time of acquisition, and the last 24 are target (of fewer images, the same share).
Neighbours along an orbit have neighbouring numbers, so this order separates few of them. Scores on this
default cannot be compared with the published ones.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.datasets import downloaded_files as files
from data_pipelines.datasets.dataset import Dataset, Listing, Pair
from data_pipelines.datasets.tile_reader import (
    ColourRule,
    EitherRule,
    IndexRule,
    TileReader,
    padded,
    read_header,
    read_mask,
)
from data_pipelines.records import Window
from spectralmoe_jax.errors import UserError

if TYPE_CHECKING:
    from data_pipelines.readers.raster_header import Header

CLASSES = {  # with their colours
    "industrial area": (200, 0, 0),
    "paddy field": (0, 200, 0),
    "irrigated field": (150, 250, 0),
    "dry cropland": (150, 200, 150),
    "garden land": (200, 0, 200),
    "arbor forest": (150, 0, 250),
    "shrub forest": (150, 150, 250),
    "park": (200, 150, 200),
    "natural meadow": (250, 200, 0),
    "artificial meadow": (200, 200, 0),
    "river": (0, 0, 200),
    "urban residential": (250, 0, 150),
    "lake": (0, 150, 200),
    "pond": (0, 200, 250),
    "fish pond": (150, 200, 250),
    "snow": (250, 250, 250),
    "bare land": (200, 200, 200),
    "rural residential": (200, 150, 150),
    "stadium": (250, 200, 150),
    "square": (150, 150, 0),
    "road": (250, 150, 150),
    "overpass": (250, 150, 0),
    "railway station": (250, 200, 250),
    "airport": (200, 150, 0),
}
PALETTE = tuple(CLASSES.values())
BANDS = ("nir", "red", "green", "blue")
INDEX_RULE = IndexRule(range(1, 25))
LEFT, RIGHT, TOP, BOTTOM = 60, 40, 54, 54  # border without data: 7300 x 6908 pixels become 7200 x 6800

IMAGES, TARGETS = 150, 24  # Gaofen-2 images, and those of the target domain of CROSS_GEOSPATIAL

CITIES = {
    "beijing": ("T50TMK_20210929T030539",),
    "guangzhou": ("T49QGF_20210218T025749",),
    "wuhan": (
        "GF1_PMS1_E114.0_N30.5_20160328_L1A0001492006-MSS1",
        "GF1_PMS1_E114.6_N30.5_20160512_L1A0001577965-MSS1",
        "GF1_PMS2_E113.7_N30.2_20160614_L1A0001642547-MSS2",
        "GF1_PMS2_E114.4_N30.5_20160328_L1A0001492076-MSS2",
    ),
    "chengdu": (
        "20190713_032217_1003_3B_AnalyticMS_SR",
        "20190811_032055_1024_3B_AnalyticMS_SR",
        "20190811_032058_1024_3B_AnalyticMS_SR",
        "20190811_032450_1005_3B_AnalyticMS_SR",
        "20190812_032440_1040_3B_AnalyticMS_SR",
        "20190815_031457_0e20_3B_AnalyticMS_SR",
        "20190815_032240_1024_3B_AnalyticMS_SR",
        "20190815_032243_1024_3B_AnalyticMS_SR",
    ),
    "shanghai": (
        "20190821_024714_84_1069_3B_AnalyticMS_SR",
        "20190918_020334_0e26_3B_AnalyticMS_SR",
        "20190918_021512_1035_3B_AnalyticMS_SR",
        "20190918_021706_1014_3B_AnalyticMS_SR",
        "20190924_024646_59_1069_3B_AnalyticMS_SR",
        "20191030_024347_05_106e_3B_AnalyticMS_SR",
        "20191101_021351_101b_3B_AnalyticMS_SR",
        "20191108_024548_60_1065_3B_AnalyticMS_SR",
    ),
}
MASK_FOLDERS = ("label_dense__index", "label_dense__color")  # of the cities; the first that exists
LABELLED_SIDE = 1024
_ROWS_AT_A_TIME = 1024

CITATION = """@article{tong2023enabling,
  title={Enabling Country-Scale Land Cover Mapping with Meter-Resolution Satellite Imagery},
  author={Tong, Xin-Yi and Xia, Gui-Song and Zhu, Xiao Xiang},
  journal={ISPRS Journal of Photogrammetry and Remote Sensing},
  volume={196},
  pages={178--196},
  year={2023}
}"""
LICENCE = "not known here: see the homepage"
HOMEPAGE = "https://x-ytong.github.io/project/Five-Billion-Pixels.html"
DOWNLOAD = (
    f"from {HOMEPAGE}: the folders Image__8bit_NirRGB (150 .tif) and Annotation__index (150 _24label.png) "
    "into the download folder"
)


def gaofen2_images(root: Path, split: str) -> Listing:
    """List `Image__8bit_NirRGB/NAME.tif` with `Annotation__index/NAME_24label.png`."""
    return files.images_and_masks(
        root / "Image__8bit_NirRGB",
        root / "Annotation__index",
        split=split,
        domain="gaofen2",
        mask_name="{}_24label.png".format,
    )


def inside_border(_pair: Pair, image: Header) -> Window:
    """Return a Gaofen-2 image without its border as the area to cut into tiles."""
    return Window(TOP, LEFT, image.height - TOP - BOTTOM, image.width - LEFT - RIGHT)


def find_cross_sensor(root: Path) -> Listing:
    """List the Gaofen-2 images, and `C-megacities/Image__8bit_NirRGB/NAME.tif` with their dense masks."""
    gaofen2 = gaofen2_images(root, "gaofen2")
    return files.merge((gaofen2, _city_images(files.find_folder(root, "C-megacities"))))


def _city_images(root: Path) -> Listing:
    found, lines = files.image_files(root / "Image__8bit_NirRGB", "of each city")
    images = {path.stem: path for path in found}
    folder = next((root / name for name in MASK_FOLDERS if (root / name).is_dir()), root / MASK_FOLDERS[0])
    masks = {path.stem: path for path in folder.glob("*_dense.*")}
    listing = files.drop_unlabelled(
        Pair(city, city, name, images[name], masks.get(f"{name}_dense", folder / f"{name}_dense.tif"))
        for city, names in CITIES.items()
        for name in names
        if name in images
    )
    for city, names in CITIES.items():
        missing = [f"{name}.tif" for name in names if name not in images]
        if missing and images:
            place = root / "Image__8bit_NirRGB"
            lines = (*lines, f"split {city}: images not in {place}: {files.first_few(missing)}")
    return Listing(listing.pairs, (*lines, *listing.missing))


def cross_sensor_area(pair: Pair, image: Header) -> Window:
    """Return the part of an image to cut into tiles: without its border, or around the labels of a city."""
    if pair.split == "gaofen2":
        return inside_border(pair, image)
    state = pair.label.stat()
    return labelled_window(pair.label, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=64)  # decodes the whole mask, and every tile of the image asks for it
def labelled_window(mask: Path, _modified: int, _size: int) -> Window:
    """Return the window of at most 1024 x 1024 pixels around the middle of the labelled part of a mask.

    It is shifted if it would extend beyond the image.

    Raises:
      UserError: nothing in the mask is labelled.
    """
    header = read_header(mask)
    rows, cols = np.zeros(header.height, bool), np.zeros(header.width, bool)
    for row in range(0, header.height, _ROWS_AT_A_TIME):
        part = Window(row, 0, min(_ROWS_AT_A_TIME, header.height - row), header.width)
        labelled = np.any(read_mask(mask, part)[..., :3], axis=-1)  # (h, W); alpha is no label
        rows[row : row + part.height] = labelled.any(axis=1)
        cols |= labelled.any(axis=0)
    if not rows.any():
        raise UserError(f"{mask}: nothing is labelled in it: restore the published file")
    (row, height), (col, width) = _around_middle(rows), _around_middle(cols)
    return Window(row, col, height, width)


def _around_middle(labelled: np.ndarray) -> tuple[int, int]:
    """Return (start, length) of the window along one axis; `labelled` marks rows or columns with labels."""
    first, last = np.flatnonzero(labelled)[[0, -1]].tolist()
    end = min(max((first + last) // 2 - LABELLED_SIDE // 2, 0) + LABELLED_SIDE, len(labelled))
    start = max(end - LABELLED_SIDE, 0)
    return start, end - start


def find_cross_geospatial(root: Path) -> Listing:
    """List the Gaofen-2 images, divided by `split.txt` or by the default in the module's docstring.

    Raises:
      UserError: `split.txt` has a line that is not understood.
    """
    images = gaofen2_images(root, "source")
    sides = _sides(root, images.pairs)
    pairs = (pair._replace(split=sides[pair.name]) for pair in images.pairs if pair.name in sides)
    return Listing(tuple(pairs), images.missing)


def _sides(root: Path, pairs: tuple[Pair, ...]) -> dict[str, str]:
    """Return "source" or "target" by name of the image."""
    names = [pair.name for pair in pairs]
    if (root / files.SPLIT_FILE).is_file():
        return files.read_split(root / files.SPLIT_FILE, names, "image")
    ordered = sorted(names, key=lambda name: (name.rpartition("L1A")[2], name))
    targets = ordered[len(ordered) - round(len(ordered) * TARGETS / IMAGES) :]
    return {name: "target" if name in targets else "source" for name in names}


_CROSS_SENSOR_READER = TileReader(
    count=4,
    dtype=np.uint8,
    rule=EitherRule(INDEX_RULE, ColourRule(PALETTE)),
    grid=padded,
    area=cross_sensor_area,
)
CROSS_SENSOR = Dataset(
    name="fbp_cross_sensor",
    title="Five-Billion-Pixels, cross-sensor",
    citation=CITATION,
    licence=LICENCE,
    homepage=HOMEPAGE,
    download=f"{DOWNLOAD}; and the folder C-megacities (22 images of five cities) with its "
    f"Image__8bit_NirRGB and {MASK_FOLDERS[0]} or {MASK_FOLDERS[1]}.",
    classes=tuple(CLASSES),
    palette=PALETTE,
    bands=BANDS,
    sensors={
        "gaofen2": "gaofen2",
        "beijing": "sentinel2",
        "guangzhou": "sentinel2",
        "wuhan": "gaofen1",
        "chengdu": "planetscope",
        "shanghai": "planetscope",
    },
    splits=("gaofen2", *CITIES),
    source=("gaofen2",),
    target=tuple(CITIES),
    tile=512,
    dtype=np.uint8,
    find=find_cross_sensor,
    cells=_CROSS_SENSOR_READER.cells,
    read_tile=_CROSS_SENSOR_READER.read,
    counts={"gaofen2": IMAGES, **{city: len(images) for city, images in CITIES.items()}},
)

_CROSS_GEOSPATIAL_READER = TileReader(
    count=4, dtype=np.uint8, rule=INDEX_RULE, grid=padded, area=inside_border
)
CROSS_GEOSPATIAL = Dataset(
    name="fbp_cross_geospatial",
    title="Five-Billion-Pixels, cross-geospatial",
    citation=CITATION,
    licence=LICENCE,
    homepage=HOMEPAGE,
    download=f"{DOWNLOAD}; and your split.txt, with a line `NAME source` or `NAME target` an image, or "
    "none for the default split.",
    classes=tuple(CLASSES),
    palette=PALETTE,
    bands=BANDS,
    sensors={"gaofen2": "gaofen2"},
    splits=("source", "target"),
    source=("source",),
    target=("target",),
    tile=512,
    dtype=np.uint8,
    find=find_cross_geospatial,
    cells=_CROSS_GEOSPATIAL_READER.cells,
    read_tile=_CROSS_GEOSPATIAL_READER.read,
    counts={"source": IMAGES - TARGETS, "target": TARGETS},
)
