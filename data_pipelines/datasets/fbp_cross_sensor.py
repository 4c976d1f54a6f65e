"""Five-Billion-Pixels, cross-sensor: Gaofen-2 to Sentinel-2, Gaofen-1 and PlanetScope images of five cities.

Gaofen-2 images lose their border and are cut into 14 rows of 15 tiles, those at the edges padded. Of a
city's image the 1024 x 1024 window around its labelled part is cut into four tiles, as the authors' released
code does it. Which image shows which city is from the dataset's own code (x-ytong/DPA).
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from data_pipelines.datasets import downloaded_files as files
from data_pipelines.datasets import five_billion_pixels as fbp
from data_pipelines.datasets import tile_grids as grids
from data_pipelines.datasets.dataset import Benchmark, Listing, Pair
from data_pipelines.datasets.label_rules import EitherRule
from data_pipelines.readers.raster_file import Header, read_header, read_mask
from data_pipelines.records import Window
from spectralmoe_jax.errors import UserError

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
LABELS = ("label_dense__index", "label_dense__color")  # folders; the first that is there
LABELLED_SIDE = 1024
_SCANNED_ROWS = 1024


def find(root: Path) -> Listing:
    """The Gaofen-2 images, and `C-megacities/Image__8bit_NirRGB/NAME.tif` with their dense masks."""
    return files.together(
        (fbp.gaofen2_images(root, "gaofen2"), _city_images(files.folder(root, "C-megacities")))
    )


def _city_images(root: Path) -> Listing:
    found, lines = files.image_files(root / "Image__8bit_NirRGB", "of each city")
    images = {path.stem: path for path in found}
    folder = next((root / name for name in LABELS if (root / name).is_dir()), root / LABELS[0])
    masks = {path.stem: path for path in folder.glob("*_dense.*")}
    listing = files.with_masks(
        Pair(city, city, name, images[name], masks.get(f"{name}_dense", folder / f"{name}_dense.tif"))
        for city, names in CITIES.items()
        for name in names
        if name in images
    )
    for city, names in CITIES.items():
        gone = [f"{name}.tif" for name in names if name not in images]
        if gone and images:
            lines = (
                *lines,
                f"split {city}: images not in {root / 'Image__8bit_NirRGB'}: {files.listed(gone)}",
            )
    return Listing(listing.pairs, (*lines, *listing.missing))


def area(pair: Pair, image: Header) -> Window:
    """What is cut into tiles."""
    if pair.split == "gaofen2":
        return fbp.inside_border(pair, image)
    state = pair.label.stat()
    return labelled_window(pair.label, state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=64)  # it decodes the whole mask, and every tile of the image asks for it
def labelled_window(mask: Path, _modified: int, _size: int) -> Window:
    """The window of at most 1024 x 1024 pixels around the middle of what is labelled, moved into the image.

    Raises UserError for a mask without any label.
    """
    header = read_header(mask)
    rows, cols = np.zeros(header.height, bool), np.zeros(header.width, bool)
    for row in range(0, header.height, _SCANNED_ROWS):
        part = Window(row, 0, min(_SCANNED_ROWS, header.height - row), header.width)
        labelled = np.any(read_mask(mask, part)[0][..., :3], axis=-1)  # alpha is no label
        rows[row : row + part.height] = labelled.any(axis=1)
        cols |= labelled.any(axis=0)
    if not rows.any():
        raise UserError(f"{mask}: nothing is labelled in it: restore the published file")
    (row, height), (col, width) = _around_middle(rows), _around_middle(cols)
    return Window(row, col, height, width)


def _around_middle(labelled: np.ndarray) -> tuple[int, int]:
    """(start, length) of the window along an axis on which `labelled` says where labels are."""
    first, last = np.flatnonzero(labelled)[[0, -1]].tolist()
    end = min(max((first + last) // 2 - LABELLED_SIDE // 2, 0) + LABELLED_SIDE, len(labelled))
    start = max(end - LABELLED_SIDE, 0)
    return start, end - start


TILES = grids.Tiles(
    count=4, dtype=np.uint8, rule=EitherRule(fbp.INDEX_RULE, fbp.COLOUR_RULE), grid=grids.padded, area=area
)
BENCHMARK = Benchmark(
    name="fbp_cross_sensor",
    title="Five-Billion-Pixels, cross-sensor",
    citation=fbp.CITATION,
    licence=fbp.LICENCE,
    homepage=fbp.HOMEPAGE,
    download=f"{fbp.DOWNLOAD}; and the folder C-megacities (22 images of five cities) with its "
    f"Image__8bit_NirRGB and {LABELS[0]} or {LABELS[1]}.",
    classes=fbp.CLASSES,
    palette=fbp.PALETTE,
    bands=fbp.BANDS,
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
    find=find,
    cells=TILES.cells,
    read_tile=TILES.read,
    counts={"gaofen2": 150, **{city: len(images) for city, images in CITIES.items()}},
)
