"""Random transforms of tiles and examples, as functions of (example, generator)."""

from data_pipelines.transforms.augment import Augment, visible_bands
from data_pipelines.transforms.geometry import flip, quarter_turns, resized_crop, vertical_flip
from data_pipelines.transforms.photometric import Distortion, distort, photometric_distortion

__all__ = [
    "Augment",
    "Distortion",
    "distort",
    "flip",
    "photometric_distortion",
    "quarter_turns",
    "resized_crop",
    "vertical_flip",
    "visible_bands",
]
