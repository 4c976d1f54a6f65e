"""FLAIR #1: aerial patches at 0.2 m from all over France, a domain being a department and a year.

Tiles carry red, green, blue and near infrared; the elevation, the files' fifth band, is left out. Labels 13
to 19 (swimming pool, snow, clear cut, mixed, ligneous, greenhouse, other) mean "no label".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipelines.datasets import downloaded_files as files
from data_pipelines.datasets import tile_grids as grids
from data_pipelines.datasets.dataset import Benchmark, Listing, Pair
from data_pipelines.datasets.label_rules import IndexRule

VALIDATION_DOMAINS = (
    "D004_2021", "D014_2020", "D029_2021", "D031_2019", "D058_2020", "D066_2021", "D067_2021", "D070_2020",
)  # fmt: skip
TEST_DOMAINS = (
    "D012_2019", "D022_2021", "D026_2020", "D064_2021", "D068_2021", "D071_2020", "D075_2021", "D076_2019",
    "D083_2020", "D085_2019",
)  # fmt: skip
TRAIN_AND_VALIDATION = 61_712
TILES = grids.Tiles(
    count=5,
    dtype=np.uint8,
    rule=IndexRule(range(1, 13), ignore=(0, *range(13, 20))),
    channels=(0, 1, 2, 3),
)


def find(root: Path) -> Listing:
    """`flair_aerial_train/DOMAIN/ZONE/img/IMG_N.tif`, `flair_labels_train/DOMAIN/ZONE/msk/MSK_N.tif`; so the
    test.
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
        here = {pair.domain for pair in listing.pairs}
        gone = [domain for domain in domains if domain not in here]
        if gone and here:
            lines.append(f"domains without any image: {', '.join(gone)}")
    return Listing((*pairs, *test.pairs), (*training.missing, *test.missing, *lines))


def _patches(images: Path, masks: Path, split: str) -> Listing:
    found, lines = files.image_files(images, split, "*/*/img/IMG_*.tif")
    pairs = []
    for path in found:
        domain, zone = path.relative_to(images).parts[:2]
        mask = masks / domain / zone / "msk" / path.name.replace("IMG_", "MSK_")
        pairs.append(Pair(split, domain, path.stem, path, mask))
    listing = files.with_masks(pairs)
    return Listing(listing.pairs, (*lines, *listing.missing))


BENCHMARK = Benchmark(
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
    "flair_1_labels_test.zip of https://huggingface.co/datasets/IGNF/FLAIR, unpacked in the source folder, "
    "each to a folder of its name.",
    classes=(
        "building", "pervious surface", "impervious surface", "bare soil", "water", "coniferous", "deciduous",
        "brushwood", "vineyard", "herbaceous vegetation", "agricultural land", "plowed land",
    ),
    palette=(
        (219, 14, 154), (147, 142, 123), (248, 12, 0), (169, 113, 1), (21, 83, 174), (25, 74, 38),
        (70, 228, 131), (243, 166, 13), (102, 0, 130), (85, 255, 0), (255, 243, 13), (228, 223, 124),
    ),
    bands=("red", "green", "blue", "nir"),
    sensors={"train": "aerial_rgbn", "validation": "aerial_rgbn", "test": "aerial_rgbn"},
    splits=("train", "validation", "test"),
    source=("train", "validation"),
    target=("test",),
    tile=None,
    dtype=np.uint8,
    find=find,
    cells=TILES.cells,
    read_tile=TILES.read,
    holdout=("validation",),
    counts={"test": 15_700},
)  # fmt: skip
