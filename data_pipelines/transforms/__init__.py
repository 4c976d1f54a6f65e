"""Random transforms of tiles and examples, as functions of (example, random generator)."""

from data_pipelines.transforms.augment import Augment, visible_bands
from data_pipelines.transforms.geometry import flip, quarter_turns, resized_crop, vertical_flip
from data_pipelines.transforms.radiometry import (
    Distortion,
    Jitter,
    distort,
    draw_jitter,
    jitter,
    normalise,
    photometric_distortion,
    spectral_jitter,
)

__all__ = [
    "Augment",
    "Distortion",
    "Jitter",
    "distort",
    "draw_jitter",
    "flip",
    "jitter",
    "normalise",
    "photometric_distortion",
    "quarter_turns",
    "resized_crop",
    "spectral_jitter",
    "vertical_flip",
    "visible_bands",
]
