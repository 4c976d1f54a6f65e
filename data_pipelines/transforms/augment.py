"""Augmentation of training tiles, as `config.augment` describes it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_pipelines.tiles.tile_index import ClassDraw, Tile
from data_pipelines.transforms.geometry import Example, flip, quarter_turns, resized_crop, vertical_flip
from data_pipelines.transforms.radiometry import photometric_distortion, spectral_jitter
from spectralmoe_jax.config.schema import AugmentConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.sensors import place_of, visible


@dataclass(frozen=True)
class Augment:
    """A transform from (tile, random generator) to an example of `crop` x `crop` pixels.

    Scale (1, 1) and probabilities of 0 leave a plain random crop.

    Attributes:
      crop: side of the example in pixels.
      settings: the section `config.augment`.
      photometric_bands: positions of red, green and blue; None for no photometric distortion.
    """

    crop: int
    settings: AugmentConfig = field(default_factory=AugmentConfig)
    photometric_bands: tuple[int, int, int] | None = None

    def __call__(self, tile: Tile | ClassDraw, rng: np.random.Generator) -> Example:
        """Return image (crop, crop, C) of the source's dtype and label (crop, crop) uint8."""
        settings = self.settings
        example = resized_crop(
            tile.draw(rng, settings.crop_on_labels),
            rng,
            crop=self.crop,
            scale=settings.scale,
            scale_step=settings.scale_step,
            max_edge=settings.max_edge,
            max_class_share=settings.max_class_share,
        )
        example = flip(example, rng, settings.flip)
        example = vertical_flip(example, rng, settings.vertical_flip)
        if settings.turns:
            example = quarter_turns(example, rng)
        if self.photometric_bands is not None:
            example = photometric_distortion(example, rng, self.photometric_bands)
        if settings.gain or settings.offset or settings.drop_bands or settings.tilt:
            example = spectral_jitter(
                example,
                rng,
                gain=settings.gain,
                offset=settings.offset,
                drop_bands=settings.drop_bands,
                tilt=settings.tilt,
            )
        return example


def visible_bands(bands: Sequence[str], sensor: str | None = None) -> tuple[int, int, int]:
    """Return the positions of red, green and blue in `bands`.

    Args:
      bands: names of bands.
      sensor: name of the sensor; its three display bands are used if red, green and blue are not all there.

    Raises:
      UserError: one of the three is missing.
    """
    found = visible(bands, sensor)
    if found is None:
        missing = [name for name in ("red", "green", "blue") if place_of(name, bands, sensor) is None]
        raise UserError(
            f"config.augment.photometric = True: needs bands red, green and blue, {', '.join(missing)} not "
            f"among {', '.join(bands)}: set it to False, or give config.sensor"
        )
    return found
