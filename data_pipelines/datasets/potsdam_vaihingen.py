"""ISPRS Potsdam to Vaihingen: RGB at 5 cm to near infrared, red and green at 9 cm.

The channels of Vaihingen's tiles are near infrared, red and green where Potsdam's are red, green and blue:
this is the published domain shift.

Adjacent tiles of 512 pixels, with the last row and column shifted back to the edge, give the published
numbers exactly: 38 x 144 = 5,472 tiles of Potsdam; 344 and 398 tiles of the 16 and 17 images of Vaihingen
that the contest published with and without labels. Black means no label. It fills the class boundaries in the
`noBoundary` masks, which are used only where the full masks are missing.

Channels within 80 grey levels of 0 or 255 count as 0 or 255: `top_potsdam_4_12_label.tif` was published with
blurred colours, and most cars in `top_potsdam_6_7_label.tif` are (252, 255, 0). A converter that compares
colours exactly loses them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data_pipelines.datasets import downloaded_files as files
from data_pipelines.datasets.dataset import Dataset, Listing, Pair
from data_pipelines.datasets.tile_reader import ColourRule, TileReader, flush

PALETTE = ((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0))
VAIHINGEN_TRAIN = (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37)
IMAGES = {"potsdam": "2_Ortho_RGB/top_potsdam_*_RGB.tif", "vaihingen": "top/top_mosaic_09cm_area*.tif"}
MASKS = {  # in order of preference; * is the same as in the name of the image
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
READER = TileReader(count=3, dtype=np.uint8, rule=ColourRule(PALETTE, snap=80), grid=flush)


def find(root: Path) -> Listing:
    """List the images and masks that match `IMAGES` and `MASKS` anywhere below `root`."""
    return files.merge(_images_of(root, place) for place in IMAGES)


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
    """Return the files that match a pattern below `root`, by the text that * stands for."""
    name = re.compile(re.escape(Path(pattern).name).replace(r"\*", r"([0-9_]+)"))
    found: dict[str, Path] = {}
    for path in _sorted(root.glob(f"**/{pattern}")):
        if match := name.fullmatch(path.name):
            found.setdefault(match[1], path)  # the first of several
    return found


def _sorted(paths: Iterable[Path]) -> list[Path]:
    """Sort by the numbers in the names."""
    return sorted(paths, key=lambda path: ([int(n) for n in re.findall(r"\d+", path.name)], path))


def _split(place: str, number: str) -> str:
    if place == "potsdam":
        return place
    return "vaihingen_train" if int(number) in VAIHINGEN_TRAIN else "vaihingen_test"


DATASET = Dataset(
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
    "Unpack each in the download folder so that the folders 2_Ortho_RGB, 5_Labels_all, top and "
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
    cells=READER.cells,
    read_tile=READER.read,
    counts={"potsdam": 38, "vaihingen_train": 16, "vaihingen_test": 17},
)
