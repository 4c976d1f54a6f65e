"""LoveDA, rural to urban: RGB images at 0.3 m of three Chinese cities and the countryside around them.

The third published split has no public labels and is not used. The published schedule counts tiles of 512
pixels: 20 epochs of 9,432 tiles, four of each rural image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipelines.datasets import downloaded_files as files
from data_pipelines.datasets.dataset import Dataset, Listing
from data_pipelines.datasets.tile_reader import IndexRule, TileReader, padded

CLASSES = {  # with their colours
    "background": (255, 255, 255),
    "building": (255, 0, 0),
    "road": (255, 255, 0),
    "water": (0, 0, 255),
    "barren": (159, 129, 183),
    "forest": (0, 255, 0),
    "agricultural": (255, 195, 128),
}
FOLDERS = {
    "train_rural": "Train/Rural",
    "train_urban": "Train/Urban",
    "val_rural": "Val/Rural",
    "val_urban": "Val/Urban",
}
READER = TileReader(count=3, dtype=np.uint8, rule=IndexRule(range(1, 8)), grid=padded)


def find(root: Path) -> Listing:
    """List `{Train,Val}/{Rural,Urban}/{images_png,masks_png}/N.png`; the domains are rural and urban."""
    return files.merge(
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


DATASET = Dataset(
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
    classes=tuple(CLASSES),
    palette=tuple(CLASSES.values()),
    bands=("red", "green", "blue"),
    sensors={"rural": "aerial_rgb", "urban": "aerial_rgb"},
    splits=tuple(FOLDERS),
    source=("train_rural",),
    target=("val_urban",),
    tile=512,
    dtype=np.uint8,
    find=find,
    cells=READER.cells,
    read_tile=READER.read,
    counts={"train_rural": 1366, "train_urban": 1156, "val_rural": 992, "val_urban": 677},
    checksums={
        "Train.zip": "de2b196043ed9b4af1690b3f9a7d558f",
        "Val.zip": "84cae2577468ff0b5386758bb386d31d",
    },
)
