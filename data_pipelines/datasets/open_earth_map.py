"""OpenEarthMap, cross-continent: RGB images at 0.25 to 0.5 m of 97 regions on six continents.

Images of the published lists train.txt and val.txt, whose labels are public. A domain is a region.

The published division by continent was not found. A file `split.txt` in the download folder gives it, with a
line `REGION source` or `REGION target` for each region; regions without a line are left out.
Without the file, the regions in Africa are target and all others source; scores on this default cannot be
compared with the published ones.

Regions whose images belong to xBD are in the lists but not in the archive: they are used if their images were
added.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipelines.datasets import downloaded_files as files
from data_pipelines.datasets.dataset import Dataset, Listing, Pair
from data_pipelines.datasets.tile_reader import IndexRule, TileReader, padded

CLASSES = {  # with their colours
    "bareland": (128, 0, 0),
    "rangeland": (0, 255, 36),
    "developed space": (148, 148, 148),
    "road": (255, 255, 255),
    "tree": (34, 97, 38),
    "water": (0, 69, 255),
    "agriculture land": (75, 181, 73),
    "building": (222, 31, 7),
}
SPLITS = ("source_train", "source_val", "target")
LISTS = {"train": "train.txt", "val": "val.txt"}
AFRICA = (
    "accra",
    "daressalaam",
    "dowa",
    "kagera",
    "kampala",
    "khartoum",
    "kinshasa",
    "mahe",
    "maputo",
    "monrovia",
    "ngaoundere",
    "niamey",
    "pointenoire",
    "san_tome",
    "western",
    "zanzibar",
)
READER = TileReader(count=3, dtype=np.uint8, rule=IndexRule(range(1, 9)), grid=padded)


def find(root: Path) -> Listing:
    """List `OpenEarthMap_wo_xBD/REGION/{images,labels}/REGION_N.tif` for the names in its lists.

    The splits source_train and source_val are the images of source regions in train.txt and val.txt; target
    is all images of target regions.

    Raises:
      UserError: `split.txt` has a line that is not understood.
    """
    home = files.find_folder(root, "OpenEarthMap_wo_xBD")
    listed = {part: home / name for part, name in LISTS.items()}
    missing = tuple(f"list {path} is not there" for path in listed.values() if not path.is_file())
    if missing:
        return Listing((), missing)
    names = [(part, name) for part, path in listed.items() for name in files.read_names(path)]
    regions = {_region(name) for _, name in names}
    split_file = root / files.SPLIT_FILE
    if split_file.is_file():
        sides = files.read_split(split_file, regions, "region")
    else:
        sides = {region: "target" if region in AFRICA else "source" for region in regions}
    pairs = [_pair(home, part, name, sides[_region(name)]) for part, name in names if _region(name) in sides]
    present = {pair.image for pair in pairs if pair.image.is_file()}
    folders = {image.parent for image in present}  # a region of xBD has none and is not reported
    lost = [str(pair.image) for pair in pairs if pair.image.parent in folders and pair.image not in present]
    listing = files.drop_unlabelled(pair for pair in pairs if pair.image in present)
    lines = (f"images of the lists that are not there: {files.first_few(lost)}",) if lost else ()
    return Listing(listing.pairs, (*lines, *listing.missing))


def _pair(home: Path, part: str, name: str, side: str) -> Pair:
    region = _region(name)
    split = f"source_{part}" if side == "source" else side
    return Pair(
        split, region, Path(name).stem, home / region / "images" / name, home / region / "labels" / name
    )


def _region(name: str) -> str:
    return name.rpartition("_")[0]


DATASET = Dataset(
    name="open_earth_map",
    title="OpenEarthMap, cross-continent",
    citation="""@inproceedings{xia2023openearthmap,
  title={{OpenEarthMap}: A Benchmark Dataset for Global High-Resolution Land Cover Mapping},
  author={Xia, Junshi and Yokoya, Naoto and Adriano, Bruno and Broni-Bediako, Clifford},
  booktitle={IEEE/CVF Winter Conference on Applications of Computer Vision (WACV)},
  pages={6254--6264},
  year={2023}
}""",
    licence="of the images' sources, which differs by region: see the homepage",
    homepage="https://zenodo.org/records/7223446",
    download="OpenEarthMap.zip of https://zenodo.org/records/7223446, unpacked in the download folder, so "
    "that OpenEarthMap_wo_xBD with train.txt, val.txt and a folder for each region is in it; and, to choose "
    "the regions, your split.txt with a line `REGION source` or `REGION target` each.",
    classes=tuple(CLASSES),
    palette=tuple(CLASSES.values()),
    bands=("red", "green", "blue"),
    sensors=dict.fromkeys(SPLITS, "aerial_rgb"),
    splits=SPLITS,
    source=SPLITS[:2],
    target=("target",),
    tile=512,
    dtype=np.uint8,
    find=find,
    cells=READER.cells,
    read_tile=READER.read,
)
