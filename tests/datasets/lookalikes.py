"""Small look-alikes of the seven benchmarks: their folders, file names and formats, with made-up pixels.

`write(name, folder)` returns every tile that has to come out of them, worked out here from the arrays that
were written and from each benchmark's rules in words: nothing of `data_pipelines` is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning

IGNORE = 255


class Tile(NamedTuple):
    """A tile as it has to be: where it is from, its pixels (h, w, C) and its ids (h, w) uint8."""

    split: str
    domain: str
    name: str
    row: int
    col: int
    image: np.ndarray
    label: np.ndarray


def write(name: str, folder: Path) -> list[Tile]:
    """Writes the look-alike of benchmark `name` into `folder`; returns its tiles, in no particular order."""
    return WRITERS[name](folder, np.random.default_rng(len(name)))


def write_whu_ohs(folder: Path, rng: np.random.Generator) -> list[Tile]:
    """Scenes O1 and O7 divided by region, O2 by the published split; reflectances x 10000, some below 0."""
    merged = [0] * 2 + [1] * 4 + [2] * 3 + [3] * 5 + [4] * 3 + [5] * 6 + [6]  # of label 1, 2, ... 24
    places = {"O1": "source", "O7": "target"}
    published = {"tr": "train", "val": "validation", "ts": "test"}
    tiles = []
    for part, names in {
        "tr": ("O1_0001", "O2_0001", "O7_0003"),
        "val": ("O1_0007", "O2_0002"),
        "ts": ("O1_0002", "O2_0003", "O7_0001"),
    }.items():
        for name in names:
            image = rng.integers(-40, 9000, (96, 96, 32)).astype(np.int16)
            stored = blocks(rng, 96, 96, range(25))
            write_tiff(folder / part / "image" / f"{name}.tif", image)
            write_tiff(folder / part / "label" / f"{name}.tif", stored)
            scene = name.split("_")[0]
            tiles.append(
                Tile(places.get(scene, published[part]), scene, name, 0, 0, image, ids(stored, merged))
            )
    (folder / "split.txt").write_text("# scenes by region\nO1 source\nO7 target  # not near O1\n\n")
    return tiles


def write_fbp_cross_sensor(folder: Path, rng: np.random.Generator) -> list[Tile]:
    """Two Gaofen-2 images with borders, and one image of each city with its dense colour mask."""
    tiles = []
    for name in ("GF2_PMS1__L1A0000564539-MSS1", "GF2_PMS2__L1A0001118839-MSS2"):
        tiles += write_gaofen2(folder, rng, "gaofen2", name)
    for city, name, size, labelled, window in (
        # size, then rows and columns of the labelled part, then those of the 1024 window around its middle
        ("beijing", "T50TMK_20210929T030539", (600, 530), (10, 90, 5, 60), (0, 600, 0, 530)),
        ("guangzhou", "T49QGF_20210218T025749", (1100, 1030), (500, 900, 2, 10), (76, 1100, 0, 1024)),
        ("wuhan", "GF1_PMS2_E113.7_N30.2_20160614_L1A0001642547-MSS2", (1200, 1024), (400, 700, 0, 1024),
         (37, 1061, 0, 1024)),
        ("chengdu", "20190815_031457_0e20_3B_AnalyticMS_SR", (1030, 1300), (1, 4, 700, 901),
         (0, 1024, 276, 1300)),
        ("shanghai", "20191030_024347_05_106e_3B_AnalyticMS_SR", (1060, 1040), (500, 530, 500, 521),
         (2, 1026, 0, 1024)),
    ):  # fmt: skip
        image = rng.integers(0, 256, (*size, 4), np.uint8)
        stored = np.zeros(size, np.uint8)
        top, bottom, left, right = labelled
        stored[top:bottom, left:right] = 1 + blocks(rng, bottom - top, right - left, range(24))
        colours = np.array([(0, 0, 0), *FBP_COLOURS], np.uint8)
        write_cmyk(folder / "C-megacities" / "Image__8bit_NirRGB" / f"{name}.tif", image)
        write_tiff(folder / "C-megacities" / "label_dense__color" / f"{name}_dense.tif", colours[stored])
        top, bottom, left, right = window
        tiles += cut(city, city, name, image[top:bottom, left:right],
                     ids(stored, range(24))[top:bottom, left:right], top, left)  # fmt: skip
    return tiles


def write_fbp_cross_geospatial(folder: Path, rng: np.random.Generator) -> list[Tile]:
    """Seven Gaofen-2 images and no split file: 24 of 150 are target, so the one of the highest number is."""
    numbers = (1757429, 564539, 1064454, 1118839, 1346919, 607681, 1787564)
    tiles = []
    for place, number in enumerate(numbers):
        split = "target" if number == max(numbers) else "source"
        camera = 1 + place % 2
        tiles += write_gaofen2(folder, rng, split, f"GF2_PMS{camera}__L1A{number:010d}-MSS{camera}")
    return tiles


def write_gaofen2(folder: Path, rng: np.random.Generator, split: str, name: str) -> list[Tile]:
    """An image of 540 x 520 pixels within the published border, and its index mask."""
    left, right, top, bottom = 60, 40, 54, 54
    height, width = top + 520 + bottom, left + 540 + right
    image = rng.integers(0, 256, (height, width, 4), np.uint8)
    stored = blocks(rng, height, width, range(25))
    write_cmyk(folder / "Image__8bit_NirRGB" / f"{name}.tif", image)
    write_png(folder / "Annotation__index" / f"{name}_24label.png", stored)
    inner = np.s_[top : height - bottom, left : width - right]
    return cut(split, "gaofen2", name, image[inner], ids(stored, range(24))[inner], top, left)


def write_flair(folder: Path, rng: np.random.Generator) -> list[Tile]:
    """Five bands, of which the fifth is elevation; labels up to 19, of which the last seven do not count."""
    kept = [*range(12), *[IGNORE] * 7]
    tiles = []
    for split, images, masks, patches in (
        ("train", "flair_aerial_train", "flair_labels_train",
         (("D006_2020", "Z1_UN", 1), ("D006_2020", "Z10_AU", 2), ("D041_2021", "Z2_AF", 3))),
        ("validation", "flair_aerial_train", "flair_labels_train",
         (("D004_2021", "Z10_AU", 826), ("D067_2021", "Z3_NN", 827))),
        ("test", "flair_1_aerial_test", "flair_1_labels_test",
         (("D012_2019", "Z1_FF", 61713), ("D085_2019", "Z9_UU", 61714))),
    ):  # fmt: skip
        for domain, zone, number in patches:
            image = rng.integers(0, 256, (80, 80, 5), np.uint8)
            stored = blocks(rng, 80, 80, range(20))
            write_tiff(folder / images / domain / zone / "img" / f"IMG_{number:06d}.tif", image)
            write_tiff(folder / masks / domain / zone / "msk" / f"MSK_{number:06d}.tif", stored)
            name = f"IMG_{number:06d}"
            tiles.append(Tile(split, domain, name, 0, 0, image[..., :4], ids(stored, kept)))
    return tiles


def write_loveda(folder: Path, rng: np.random.Generator) -> list[Tile]:
    """PNG files of different sizes, numbered across the splits."""
    tiles, number = [], 0
    for split, place, sizes in (
        ("train_rural", "Train/Rural", ((300, 280), (530, 300), (512, 512))),
        ("train_urban", "Train/Urban", ((290, 290),)),
        ("val_rural", "Val/Rural", ((512, 520),)),
        ("val_urban", "Val/Urban", ((300, 512), (520, 300))),
    ):
        for size in sizes:
            image = rng.integers(0, 256, (*size, 3), np.uint8)
            stored = blocks(rng, *size, range(8))
            write_png(folder / place / "images_png" / f"{number}.png", image)
            write_png(folder / place / "masks_png" / f"{number}.png", stored)
            tiles += cut(split, split.split("_")[1], str(number), image, ids(stored, range(7)))
            number += 1
    return tiles


def write_potsdam_vaihingen(folder: Path, rng: np.random.Generator) -> list[Tile]:
    """Three images of Potsdam, two of them with masks like the published faulty ones; two of Vaihingen."""
    colours = np.array(
        [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0), (0, 0, 0)],
        np.uint8,
    )  # the last means no label
    tiles = []
    for split, name, size in (
        ("potsdam", "2_10", (560, 600)),
        ("potsdam", "4_12", (512, 530)),
        ("potsdam", "6_7", (512, 512)),
        ("vaihingen_train", "area1", (600, 520)),
        ("vaihingen_test", "area24", (530, 512)),
    ):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        label = blocks(rng, *size, range(7))
        mask = colours[label]
        if name == "4_12":  # blurred
            blur = rng.integers(0, 71, mask.shape, np.uint8)
            mask = np.where(mask == 255, 255 - blur, blur)
        if name == "6_7":  # most cars in another yellow
            mask[label == 4] = (252, 255, 0)
        label = np.where(label == 6, IGNORE, label)
        if split == "potsdam":
            stem, domain = f"top_potsdam_{name}_RGB", "potsdam"
            write_tiff(folder / "Potsdam" / "2_Ortho_RGB" / f"{stem}.tif", image)
            write_tiff(folder / "Potsdam" / "5_Labels_all" / f"top_potsdam_{name}_label.tif", mask)
        else:
            stem, domain = f"top_mosaic_09cm_{name}", "vaihingen"
            truth = "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE"
            write_tiff(folder / "Vaihingen" / "top" / f"{stem}.tif", image)
            write_tiff(folder / "Vaihingen" / truth / f"{stem}.tif", mask)
        for row in sorted({0, size[0] - 512}):  # none is larger than two tiles: the second ends at the edge
            for col in sorted({0, size[1] - 512}):
                here = np.s_[row : row + 512, col : col + 512]
                tiles.append(Tile(split, domain, stem, row, col, image[here], label[here]))
    return tiles


def write_open_earth_map(folder: Path, rng: np.random.Generator) -> list[Tile]:
    """Regions in and outside Africa, and one of xBD, whose labels come without images."""
    home = folder / "OpenEarthMap" / "OpenEarthMap_wo_xBD"
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    tiles = []
    for part, split, region, number, size in (
        ("train", "source_train", "aachen", 1, (512, 520)),
        ("train", "source_train", "aachen", 12, (300, 300)),
        ("val", "source_val", "aachen", 5, (300, 310)),
        ("train", "source_train", "tokyo", 3, (400, 512)),
        ("train", "target", "san_tome", 2, (530, 512)),
        ("val", "target", "accra", 14, (310, 300)),
        ("train", "", "houston", 4, (300, 300)),
        ("test", "", "aachen", 3, (300, 300)),
    ):
        name = f"{region}_{number}"
        lists[part].append(f"{name}.tif")
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        stored = blocks(rng, *size, range(9))
        if region != "houston":
            write_tiff(home / region / "images" / f"{name}.tif", image)
        if part != "test":
            write_tiff(home / region / "labels" / f"{name}.tif", stored)
        if split:
            tiles += cut(split, region, name, image, ids(stored, range(8)))
    for part, names in lists.items():
        (home / f"{part}.txt").write_text("\n".join(names) + "\n")
    return tiles


FBP_COLOURS = (
    (200, 0, 0), (0, 200, 0), (150, 250, 0), (150, 200, 150), (200, 0, 200), (150, 0, 250), (150, 150, 250),
    (200, 150, 200), (250, 200, 0), (200, 200, 0), (0, 0, 200), (250, 0, 150), (0, 150, 200), (0, 200, 250),
    (150, 200, 250), (250, 250, 250), (200, 200, 200), (200, 150, 150), (250, 200, 150), (150, 150, 0),
    (250, 150, 150), (250, 150, 0), (250, 200, 250), (200, 150, 0),
)  # fmt: skip
WRITERS: dict[str, Callable[[Path, np.random.Generator], list[Tile]]] = {
    "whu_ohs": write_whu_ohs,
    "fbp_cross_sensor": write_fbp_cross_sensor,
    "fbp_cross_geospatial": write_fbp_cross_geospatial,
    "flair": write_flair,
    "loveda": write_loveda,
    "potsdam_vaihingen": write_potsdam_vaihingen,
    "open_earth_map": write_open_earth_map,
}


def cut(
    split: str, domain: str, name: str, image: np.ndarray, label: np.ndarray, top: int = 0, left: int = 0
) -> list[Tile]:
    """Tiles of 512 side by side, zeros (pixels) and 255 (labels) having made both sides multiples of 512."""
    more = [(0, -side % 512) for side in label.shape]
    image = np.pad(image, [*more, (0, 0)])
    label = np.pad(label, more, constant_values=IGNORE)
    return [
        Tile(split, domain, name, top + row, left + col, image[row : row + 512, col : col + 512],
             label[row : row + 512, col : col + 512])
        for row in range(0, label.shape[0], 512)
        for col in range(0, label.shape[1], 512)
    ]  # fmt: skip


def ids(stored: np.ndarray, of_labels_from_1: Iterable[int]) -> np.ndarray:
    """Training ids of stored labels: those given for 1, 2, ... in turn; 0 means no label."""
    return np.array([IGNORE, *of_labels_from_1], np.uint8)[stored]


def blocks(rng: np.random.Generator, height: int, width: int, values: Iterable[int]) -> np.ndarray:
    """(height, width) uint8 in blocks of 20 pixels; the first blocks take every value in turn."""
    values = np.array([*values], np.uint8)
    rows, cols = -(-height // 20), -(-width // 20)
    chosen = rng.choice(values, rows * cols)
    chosen[: len(values)] = values[: rows * cols]
    return chosen.reshape(rows, cols).repeat(20, 0).repeat(20, 1)[:height, :width]


def write_tiff(path: Path, pixels: np.ndarray) -> None:
    """A TIFF of the array (H, W) or (H, W, bands), in its type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = np.moveaxis(np.atleast_3d(pixels), -1, 0)
    count, height, width = bands.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": pixels.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as file:
            file.write(bands)


def write_cmyk(path: Path, pixels: np.ndarray) -> None:
    """An 8-bit TIFF of four samples (H, W, 4) that says they are cyan, magenta, yellow and black."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes("CMYK", pixels.shape[1::-1], np.ascontiguousarray(pixels).tobytes()).save(path)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """A PNG of the array (H, W) or (H, W, 3) uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)
