"""WHU-OHS, cross-region: hyperspectral patches of 42 Orbita scenes in China, 32 bands at 10 m.

The published split (tr, val, ts) divides the patches of every scene. To train on some regions and test on
others, put a file `split.txt` into the download folder with one line per scene, `O1 source` or `O1 target`;
the scene is the part of a patch's name before the first _. All patches of these scenes, whatever their
published split, then form the splits `source` and `target`. Scenes without a line stay in the published
splits. The city pairs for transfer are published (`CITY_PAIRS`), but not which scene shows which city.

The merging of the 24 labels into 7 classes is inferred from their names and the palette (unsure).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipelines.datasets import downloaded_files as files
from data_pipelines.datasets.dataset import Dataset, Listing
from data_pipelines.datasets.tile_reader import IndexRule, TileReader

CLASSES_AND_LABELS = {
    "farmland": (1, 2),  # paddy, dry farm
    "forest": (3, 4, 5, 6),  # woodland, shrubbery, sparse woodland, other forest
    "grassland": (7, 8, 9),  # of high, medium, low cover
    "water": (10, 11, 12, 13, 14),  # river canal, lake, reservoir pond, beach, shoal
    "built-up": (15, 16, 17),  # urban, rural settlement, other construction
    "unused": (18, 19, 20, 21, 22, 23),  # sand, gobi, saline-alkali soil, marsh, bare land, bare rock
    "ocean": (24,),
}
FOLDERS = {"train": "tr", "validation": "val", "test": "ts"}
COUNTS = {"train": 4822, "validation": 513, "test": 2460}
CITY_PAIRS = (  # (source, target)
    ("Changchun", "Jilin"),
    ("Wuxi", "Shanghai"),
    ("Guangzhou", "Zhongshan"),
    ("Xining", "Lanzhou"),
    ("Hetian", "Kelamayi"),
    ("Anyi", "Nanchang"),
    ("Changde", "Changsha"),
    ("Tianjin", "Tangshan"),
)
READER = TileReader(count=32, dtype=np.int16, rule=IndexRule(tuple(CLASSES_AND_LABELS.values())))


def find(root: Path) -> Listing:
    """List `{tr,val,ts}/{image,label}/NAME.tif`; each scene is a domain.

    Raises:
      UserError: `split.txt` has a line that is not understood.
    """
    found = files.merge(
        files.images_and_masks(root / place / "image", root / place / "label", split=split, domain="")
        for split, place in FOLDERS.items()
    )
    pairs = [pair._replace(domain=pair.name.partition("_")[0]) for pair in found.pairs]
    here = {split: sum(pair.split == split for pair in pairs) for split in FOLDERS}
    short = (
        f"split {split}: {here[split]:,} images are here, {COUNTS[split]:,} are published"
        for split in FOLDERS
        if here[split] < COUNTS[split]
    )
    if (root / files.SPLIT_FILE).is_file():
        sides = files.read_split(root / files.SPLIT_FILE, {pair.domain for pair in pairs}, "scene")
        pairs = [pair._replace(split=sides.get(pair.domain, pair.split)) for pair in pairs]
    return Listing(tuple(pairs), (*found.missing, *short))


DATASET = Dataset(
    name="whu_ohs",
    title="WHU-OHS",
    citation="""@article{li2022whuohs,
  title={{WHU-OHS}: A benchmark dataset for large-scale Hersepctral Image classification},
  author={Li, Jiayi and Huang, Xin and Tu, Lilin},
  journal={International Journal of Applied Earth Observation and Geoinformation},
  volume={113},
  pages={103022},
  year={2022}
}""",
    licence="not known here: see the homepage",
    homepage="http://irsip.whu.edu.cn/resources/WHU_OHS_show.php",
    download="from http://irsip.whu.edu.cn/resources/WHU_OHS_show.php: the folders tr, val and ts into the "
    "download folder, each with its image and label; and, to divide by region, your split.txt with a line "
    "`SCENE source` or `SCENE target` a scene.",
    classes=tuple(CLASSES_AND_LABELS),
    palette=(
        (0, 255, 197),
        (38, 115, 0),
        (85, 255, 0),
        (0, 92, 230),
        (115, 0, 0),
        (255, 255, 0),
        (0, 38, 115),
    ),
    bands=tuple(f"band {number}" for number in range(1, 33)),
    sensors=dict.fromkeys((*FOLDERS, "source", "target"), "orbita_ohs"),
    splits=(*FOLDERS, "source", "target"),
    source=("source",),
    target=("target",),
    tile=None,
    dtype=np.int16,
    find=find,
    cells=READER.cells,
    read_tile=READER.read,
)
