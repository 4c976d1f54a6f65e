"""ISPRS Potsdam to Vaihingen: RGB at 5 cm to near infrared, red and green at 9 cm.

Vaihingen's tiles carry near infrared, red and green in the places of red, green and blue: that shift is the
benchmark.

Tiles of 512 lie side by side, the last row and column moved back to the edge. This gives the published
numbers exactly: 38 x 144 = 5,472 of Potsdam, 344 and 398 of the 16 and 17 images of Vaihingen that the
contest gave with and without labels. Black is no label; it fills the boundaries of classes in the
`noBoundary` masks, which are taken only where the whole masks are not there.

Channels within 80 grey levels of 0 or 255 count as these: `top_potsdam_4_12_label.tif` was published with
blurred colours, `top_potsdam_6_7_label.tif` has most cars in (252, 255, 0). Converters that compare colours
exactly lose them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data_pipelines.datasets import downloaded_files as files
from data_pipelines.datasets import tile_grids as grids
from data_pipelines.datasets.dataset import Benchmark, Listing, Pair
from data_pipelines.datasets.label_rules import ColourRule

PALETTE = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0))
VAIHINGEN_TRAIN = (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37)
IMAGES = {"potsdam": "2_Ortho_RGB/top_potsdam_*_RGB.tif", "vaihingen": "top/top_mosaic_09cm_area*.tif"}
MASKS = {  # in order of preference; * is the part of the name that its image has too
    "potsdam": (
        "5_Labels_all/top_potsdam_*_label.tif",
        "5_Labels_all_noBoundary/top_potsdam_*_label_noBoundary.tif",
    ),
    "vaihingen": (
        "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE/top_mosaic_09cm_area*.tif",
        "gts_for_participants/top_mosaic_09cm_area*.tif",
        "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE/top_mosaic_09cm_area*_noBoundary.tif",
    ),
}
TILES = grids.Tiles(count=3, dtype=np.uint8, rule=ColourRule(PALETTE, snap=80), grid=grids.flush)


def find(root: Path) -> Listing:
    """The images and masks of the folders of `IMAGES` and `MASKS`, wherever those lie below `root`."""
    return files.together(_images_of(root, place) for place in IMAGES)


def _images_of(root: Path, place: str) -> Listing:
    images = _by_number(root, IMAGES[place])
    masks: dict[str, Path] = {}
    for pattern in MASKS[place]:
        masks = {**_by_number(root, pattern), **masks}
    pairs = [
        Pair(_split(place, number), place, image.stem, image, masks[number])
        for number, image in images.items()
        if number in masks
    ]
    lines = [] if images else [f"no {IMAGES[place]} below {root}"]
    bare = [image.name for number, image in images.items() if number not in masks]
    if bare:
        lines.append(
            f"images without label: {', '.join(bare)} not in {' or '.join(MASKS[place])} below {root}"
        )
    return Listing(tuple(pairs), tuple(lines))


def _by_number(root: Path, pattern: str) -> dict[str, Path]:
    """The files of a pattern below `root` by what the * stands for; of several the first."""
    name = re.compile(re.escape(Path(pattern).name).replace(r"\*", r"([0-9_]+)"))
    found: dict[str, Path] = {}
    for path in _sorted(root.glob(f"**/{pattern}")):
        if match := name.fullmatch(path.name):
            found.setdefault(match[1], path)
    return found


def _sorted(paths: Iterable[Path]) -> list[Path]:
    """In the order of the numbers in their names."""
    return sorted(paths, key=lambda path: ([int(n) for n in re.findall(r"\d+", path.name)], path))


def _split(place: str, number: str) -> str:
    if place == "potsdam":
        return place
    return "vaihingen_train" if int(number) in VAIHINGEN_TRAIN else "vaihingen_test"


BENCHMARK = Benchmark(
    name="potsdam_vaihingen",
    title="ISPRS Potsdam to Vaihingen",
    citation="""@article{rottensteiner2012isprs,
  title={The {ISPRS} Benchmark on Urban Object Classification and {3D} Building Reconstruction},
  author={Rottensteiner, Franz and Sohn, Gunho and Jung, Jaewook and Gerke, Markus and Baillard, Caroline and
    B{\\'e}nitez, S{\\'e}bastien and Breitkopf, Uwe},
  journal={ISPRS Annals of the Photogrammetry, Remote Sensing and Spatial Information Sciences},
  volume={I-3},
  pages={293--298},
  year={2012}
}
@article{cramer2010dgpf,
  title={The {DGPF}-Test on Digital Airborne Camera Evaluation -- Overview and Test Design},
  author={Cramer, Michael},
  journal={Photogrammetrie - Fernerkundung - Geoinformation},
  number={2},
  pages={73--82},
  year={2010}
}""",
    licence="on request from ISPRS, for research; papers on Vaihingen cite Cramer (2010) and thank the DGPF",
    homepage="https://www.isprs.org/education/benchmarks/UrbanSemLab/default.aspx",
    download="on request from ISPRS. Of Potsdam 2_Ortho_RGB.zip and 5_Labels_all.zip; of Vaihingen "
    "ISPRS_semantic_labeling_Vaihingen.zip and ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE.zip. "
    "Unpack each in the source folder so that the folders 2_Ortho_RGB, 5_Labels_all, top and "
    "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE are somewhere in it.",
    classes=("impervious surface", "building", "low vegetation", "tree", "car", "clutter"),
    palette=PALETTE,
    bands=("red", "green", "blue"),
    sensors={"potsdam": "aerial_rgb", "vaihingen": "aerial_nirrg"},
    splits=("potsdam", "vaihingen_train", "vaihingen_test"),
    source=("potsdam",),
    target=("vaihingen_train", "vaihingen_test"),
    tile=512,
    dtype=np.uint8,
    find=find,
    cells=TILES.cells,
    read_tile=TILES.read,
    counts={"potsdam": 38, "vaihingen_train": 16, "vaihingen_test": 17},
)
