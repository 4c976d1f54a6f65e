"""What both benchmarks on Five-Billion-Pixels share: classes, the 150 Gaofen-2 images, label rules."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.datasets import downloaded_files as files
from data_pipelines.datasets.dataset import Listing, Pair
from data_pipelines.datasets.label_rules import ColourRule, IndexRule
from data_pipelines.readers.raster_file import Header
from data_pipelines.records import Window

CLASSES_AND_COLOURS = (
    ("industrial area", (200, 0, 0)),
    ("paddy field", (0, 200, 0)),
    ("irrigated field", (150, 250, 0)),
    ("dry cropland", (150, 200, 150)),
    ("garden land", (200, 0, 200)),
    ("arbor forest", (150, 0, 250)),
    ("shrub forest", (150, 150, 250)),
    ("park", (200, 150, 200)),
    ("natural meadow", (250, 200, 0)),
    ("artificial meadow", (200, 200, 0)),
    ("river", (0, 0, 200)),
    ("urban residential", (250, 0, 150)),
    ("lake", (0, 150, 200)),
    ("pond", (0, 200, 250)),
    ("fish pond", (150, 200, 250)),
    ("snow", (250, 250, 250)),
    ("bare land", (200, 200, 200)),
    ("rural residential", (200, 150, 150)),
    ("stadium", (250, 200, 150)),
    ("square", (150, 150, 0)),
    ("road", (250, 150, 150)),
    ("overpass", (250, 150, 0)),
    ("railway station", (250, 200, 250)),
    ("airport", (200, 150, 0)),
)
CLASSES = tuple(name for name, _ in CLASSES_AND_COLOURS)
PALETTE = tuple(colour for _, colour in CLASSES_AND_COLOURS)
INDEX_RULE = IndexRule(range(1, 25))
COLOUR_RULE = ColourRule(PALETTE)
BANDS = ("nir", "red", "green", "blue")
LEFT, RIGHT, TOP, BOTTOM = 60, 40, 54, 54  # border without data: 7300 x 6908 pixels become 7200 x 6800

CITATION = """@article{tong2023enabling,
  title={Enabling Country-Scale Land Cover Mapping with Meter-Resolution Satellite Imagery},
  author={Tong, Xin-Yi and Xia, Gui-Song and Zhu, Xiao Xiang},
  journal={ISPRS Journal of Photogrammetry and Remote Sensing},
  volume={196},
  pages={178--196},
  year={2023}
}"""
LICENCE = "not stated with the facts known here: see the homepage"
HOMEPAGE = "https://x-ytong.github.io/project/Five-Billion-Pixels.html"
DOWNLOAD = (
    f"from {HOMEPAGE}: the folders Image__8bit_NirRGB (150 .tif) and Annotation__index (150 _24label.png) "
    "into the source folder"
)


def gaofen2_images(root: Path, split: str) -> Listing:
    """`Image__8bit_NirRGB/NAME.tif` with `Annotation__index/NAME_24label.png`."""
    return files.images_and_masks(
        root / "Image__8bit_NirRGB",
        root / "Annotation__index",
        split=split,
        domain="gaofen2",
        mask_name="{}_24label.png".format,
    )


def inside_border(_pair: Pair, image: Header) -> Window:
    """A Gaofen-2 image without its border."""
    return Window(TOP, LEFT, image.height - TOP - BOTTOM, image.width - LEFT - RIGHT)
