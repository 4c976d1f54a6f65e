"""LoveDA, rural to urban: RGB images at 0.3 m of three Chinese cities and the country around them.

The third published split has no public labels and is not used. Tiles of 512 are what the published schedule
counts: 20 epochs of 9,432 tiles, four of each rural image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipelines.datasets import downloaded_files as files
from data_pipelines.datasets import tile_grids as grids
from data_pipelines.datasets.dataset import Benchmark, Listing
from data_pipelines.datasets.label_rules import IndexRule

FOLDERS = {
    "train_rural": "Train/Rural",
    "train_urban": "Train/Urban",
    "val_rural": "Val/Rural",
    "val_urban": "Val/Urban",
}
TILES = grids.Tiles(count=3, dtype=np.uint8, rule=IndexRule(range(1, 8)), grid=grids.padded)


def find(root: Path) -> Listing:
    """`{Train,Val}/{Rural,Urban}/{images_png,masks_png}/N.png`. A domain is a kind of scene."""
    return files.together(
        files.images_and_masks(
            root / place / "images_png",
            root / place / "masks_png",
            split=split,
            domain=split.partition("_")[2],
            glob="*.png",
            mask_name="{}.png".format,
        )
        for split, place in FOLDERS.items()
    )


BENCHMARK = Benchmark(
    name="loveda",
    title="LoveDA, rural to urban",
    citation="""@inproceedings{wang2021loveda,
  title={{LoveDA}: A Remote Sensing Land-Cover Dataset for Domain Adaptive Semantic Segmentation},
  author={Wang, Junjue and Zheng, Zhuo and Ma, Ailong and Lu, Xiaoyan and Zhong, Yanfei},
  booktitle={Advances in Neural Information Processing Systems, Track on Datasets and Benchmarks},
  year={2021}
}""",
    licence="CC BY-NC-SA 4.0",
    homepage="https://zenodo.org/records/5706578",
    download="Train.zip and Val.zip of https://zenodo.org/records/5706578, both unpacked in the source "
    "folder, so that it holds Train/Rural/images_png and so on.",
    classes=("background", "building", "road", "water", "barren", "forest", "agricultural"),
    palette=(
        (255, 255, 255), (255, 0, 0), (255, 255, 0), (0, 0, 255), (159, 129, 183), (0, 255, 0),
        (255, 195, 128),
    ),
    bands=("red", "green", "blue"),
    sensors={"rural": "aerial_rgb", "urban": "aerial_rgb"},
    splits=tuple(FOLDERS),
    source=("train_rural",),
    target=("val_urban",),
    tile=512,
    dtype=np.uint8,
    find=find,
    cells=TILES.cells,
    read_tile=TILES.read,
    counts={"train_rural": 1366, "train_urban": 1156, "val_rural": 992, "val_urban": 677},
    checksums={
        "Train.zip": "de2b196043ed9b4af1690b3f9a7d558f",
        "Val.zip": "84cae2577468ff0b5386758bb386d31d",
    },
)  # fmt: skip
