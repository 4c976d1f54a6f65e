"""FLAIR #1: aerial patches at 0.2 m from all over France; a domain is a department in one year.

Tiles have red, green, blue and near infrared. Elevation, the fifth band of the files, is left out. Labels 13
to 19 (swimming pool, snow, clear cut, mixed, ligneous, greenhouse, other) count as unlabelled.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipelines.datasets import downloaded_files as files
from data_pipelines.datasets.dataset import Dataset, Listing, Pair
from data_pipelines.datasets.tile_reader import IndexRule, TileReader

CLASSES = {  # with their colours
    "building": (219, 14, 154),
    "pervious surface": (147, 142, 123),
    "impervious surface": (248, 12, 0),
    "bare soil": (169, 113, 1),
    "water": (21, 83, 174),
    "coniferous": (25, 74, 38),
    "deciduous": (70, 228, 131),
    "brushwood": (243, 166, 13),
    "vineyard": (102, 0, 130),
    "herbaceous vegetation": (85, 255, 0),
    "agricultural land": (255, 243, 13),
    "plowed land": (228, 223, 124),
}
VALIDATION_DOMAINS = (
    "D004_2021",
    "D014_2020",
    "D029_2021",
    "D031_2019",
    "D058_2020",
    "D066_2021",
    "D067_2021",
    "D070_2020",
)
TEST_DOMAINS = (
    "D012_2019",
    "D022_2021",
    "D026_2020",
    "D064_2021",
    "D068_2021",
    "D071_2020",
    "D075_2021",
    "D076_2019",
    "D083_2020",
    "D085_2019",
)
TRAIN_AND_VALIDATION = 61_712
READER = TileReader(
    count=5,
    dtype=np.uint8,
    rule=IndexRule(range(1, 13), ignore=(0, *range(13, 20))),
    channels=(0, 1, 2, 3),
)


def find(root: Path) -> Listing:
    """List `flair_aerial_train/DOMAIN/ZONE/img/IMG_N.tif` and the same of `flair_1_aerial_test`.

    Masks are `flair_labels_train/DOMAIN/ZONE/msk/MSK_N.tif` and the same of `flair_1_labels_test`.
    """
    training = _patches(root / "flair_aerial_train", root / "flair_labels_train", "train")
    test = _patches(root / "flair_1_aerial_test", root / "flair_1_labels_test", "test")
    pairs = tuple(
        pair._replace(split="validation") if pair.domain in VALIDATION_DOMAINS else pair
        for pair in training.pairs
    )
    lines = []
    if pairs and len(pairs) < TRAIN_AND_VALIDATION:
        published = f"{TRAIN_AND_VALIDATION:,} are published"
        lines.append(f"splits train and validation: {len(pairs):,} images are here, {published}")
    for listing, domains in ((training, VALIDATION_DOMAINS), (test, TEST_DOMAINS)):
        present = {pair.domain for pair in listing.pairs}
        missing = [domain for domain in domains if domain not in present]
        if missing and present:
            lines.append(f"domains without any image: {', '.join(missing)}")
    return Listing((*pairs, *test.pairs), (*training.missing, *test.missing, *lines))


def _patches(images: Path, masks: Path, split: str) -> Listing:
    found, lines = files.image_files(images, split, "*/*/img/IMG_*.tif")
    pairs = []
    for path in found:
        domain, zone = path.relative_to(images).parts[:2]
        mask = masks / domain / zone / "msk" / path.name.replace("IMG_", "MSK_")
        pairs.append(Pair(split, domain, path.stem, path, mask))
    listing = files.drop_unlabelled(pairs)
    return Listing(listing.pairs, (*lines, *listing.missing))


DATASET = Dataset(
    name="flair",
    title="FLAIR #1",
    citation="""@article{garioud2022flair1,
  title={{FLAIR} \\#1: semantic segmentation and domain adaptation dataset},
  author={Garioud, Anatol and Peillet, St{\\'e}phane and Bookjans, Eva and Giordano, S{\\'e}bastien and
    Wattrelos, Boris},
  journal={arXiv:2211.12979},
  year={2022}
}""",
    licence="Etalab Open Licence 2.0",
    homepage="https://huggingface.co/datasets/IGNF/FLAIR",
    download="flair_aerial_train.zip, flair_labels_train.zip, flair_1_aerial_test.zip and "
    "flair_1_labels_test.zip of https://huggingface.co/datasets/IGNF/FLAIR, unpacked in the download folder, "
    "each to a folder of its name.",
    classes=tuple(CLASSES),
    palette=tuple(CLASSES.values()),
    bands=("red", "green", "blue", "nir"),
    sensors={"train": "aerial_rgbn", "validation": "aerial_rgbn", "test": "aerial_rgbn"},
    splits=("train", "validation", "test"),
    source=("train", "validation"),
    target=("test",),
    tile=None,
    dtype=np.uint8,
    find=find,
    cells=READER.cells,
    read_tile=READER.read,
    holdout=("validation",),
    counts={"test": 15_700},
)
