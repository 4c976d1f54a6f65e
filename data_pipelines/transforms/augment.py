"""The whole augmentation of a training tile, as the configuration describes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from data_pipelines.tiles.class_balance import ClassDraw
from data_pipelines.tiles.tile_index import Tile
from data_pipelines.transforms.geometry import Example, flip, quarter_turns, resized_crop, vertical_flip
from data_pipelines.transforms.photometric import photometric_distortion
from data_pipelines.transforms.spectral import spectral_jitter
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.sensors import place_of, visible


@dataclass(frozen=True)
class Augment:
    """(tile, generator) -> example of `crop` x `crop` pixels. The functions it calls say what each does.

    Defaults are the paper's for RGB. `photometric_bands` are the indices of red, green and blue, or None
    for no photometric distortion. `gain`, `offset`, `drop_bands` and `tilt` are `draw_jitter`'s. Scale (1, 1)
    and probabilities of 0 leave a plain random crop.

    Raises:
      UserError: a value that no crop can have, naming its key.
    """

    crop: int
    scale: tuple[float, float] = (0.5, 2.0)
    scale_step: float = 0.1
    max_edge: int = 1024
    max_class_share: float = 0.75
    flip: float = 0.5
    vertical_flip: float = 0.0
    turns: bool = False
    photometric_bands: tuple[int, int, int] | None = None
    gain: float = 0.0
    offset: float = 0.0
    drop_bands: float = 0.0
    tilt: float = 0.0

    def __post_init__(self):
        for name, ok, allowed in (
            ("data.crop", self.crop >= 1, "at least 1 pixel"),
            ("augment.scale", 0 < self.scale[0] <= self.scale[1], "(low, high) with 0 < low <= high"),
            ("augment.scale_step", self.scale_step > 0, "a number above 0"),
            ("augment.max_edge", self.max_edge >= 1, "at least 1 pixel"),
            ("augment.max_class_share", 0 < self.max_class_share <= 1, "a share above 0 and at most 1"),
            ("augment.flip", 0 <= self.flip <= 1, "a probability"),
            ("augment.vertical_flip", 0 <= self.vertical_flip <= 1, "a probability"),
            ("augment.gain", 0 <= self.gain < 1, "0 or more and below 1"),
            ("augment.offset", 0 <= self.offset < inf, "a number of standard deviations, 0 or more"),
            ("augment.drop_bands", 0 <= self.drop_bands <= 1, "a probability"),
            ("augment.tilt", 0 <= self.tilt < 1, "0 or more and below 1"),
        ):
            if not ok:
                raise UserError(f"{name}={getattr(self, name.split('.')[1])}: give {allowed}")

    def __call__(self, tile: Tile | ClassDraw, rng: np.random.Generator) -> Example:
        example = resized_crop(
            tile.draw(rng),
            rng,
            crop=self.crop,
            scale=self.scale,
            scale_step=self.scale_step,
            max_edge=self.max_edge,
            max_class_share=self.max_class_share,
        )
        example = flip(example, rng, self.flip)
        example = vertical_flip(example, rng, self.vertical_flip)
        if self.turns:
            example = quarter_turns(example, rng)
        if self.photometric_bands is not None:
            example = photometric_distortion(example, rng, self.photometric_bands)
        if self.gain or self.offset or self.drop_bands or self.tilt:
            example = spectral_jitter(
                example,
                rng,
                gain=self.gain,
                offset=self.offset,
                drop_bands=self.drop_bands,
                tilt=self.tilt,
            )
        return example


def visible_bands(bands: Sequence[str], sensor: str | None = None) -> tuple[int, int, int]:
    """Indices of red, green and blue in `bands`, by these names, others of `sensor`'s, or its own three.

    Raises:
      UserError: one of the three is not there.
    """
    found = visible(bands, sensor)
    if found is None:
        missing = [name for name in ("red", "green", "blue") if place_of(name, bands, sensor) is None]
        raise UserError(
            f"augment.photometric needs bands red, green and blue, {', '.join(missing)} not among "
            f"{', '.join(bands)}: set it to False, or give config.sensor"
        )
    return found
