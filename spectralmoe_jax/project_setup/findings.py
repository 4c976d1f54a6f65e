"""Everything that a configuration is written from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipelines.survey.band_statistics import Statistics
from data_pipelines.survey.bands import Bands
from data_pipelines.survey.label_contents import Classes, LabelContents
from data_pipelines.survey.layout import Layout
from spectralmoe_jax.config.presets import preset
from spectralmoe_jax.project_setup.sizes import Sizes


@dataclass(frozen=True)
class Findings:
    """What was found in a folder, and what follows from it.

    Attributes:
      folder: the folder, as the user gave it.
      layout: its images and labels, those of `source` and `target` only.
      source: domains to train on.
      target: domains to test on.
      held_out: domains of `source` to hold out as a whole; empty to hold out images of every domain.
      bands: the bands of the files.
      statistics: of the source.
      contents: values or colours of the labels.
      classes: the classes.
      sizes: of crops, tiles and batches.
      side: shorter side of nearly all images in pixels, or more.
      eight_bit: pixels are stored in 8 bits.
      encoder: name of a preset; None for a small encoder trained from random weights.
      weights: the preset's weights; empty if they are still to be given.
      stored_as: how reflectance is stored, for an encoder that needs it.
    """

    folder: str
    layout: Layout
    source: tuple[str, ...]
    target: tuple[str, ...]
    held_out: tuple[str, ...]
    bands: Bands
    statistics: Statistics
    contents: LabelContents
    classes: Classes
    sizes: Sizes
    side: int
    eight_bit: bool
    encoder: str | None
    weights: str
    stored_as: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the bands that are used: those that have data and vary."""
        used = self.statistics.used
        return tuple(name for name, keep in zip(self.bands.names, used, strict=True) if keep)

    @property
    def empty(self) -> tuple[str, ...]:
        """Names of the bands that are left out, as they have no data or only one value."""
        return tuple(name for name in self.bands.names if name not in self.names)

    @property
    def pixel_statistics(self) -> np.ndarray:
        """Value that becomes 0 and width of what becomes 1, of the bands that are used, (2, bands).

        These are mean and standard deviation; for SoftCon they are the lower end and the width of the window
        of two deviations on either side of the mean, as in its pretraining.
        """
        used = self.statistics.used
        mean, std = self.statistics.mean[used], self.statistics.std[used]
        window = self.encoder is not None and preset(self.encoder, "--encoder")["kind"] == "softcon"
        return np.stack([mean - 2 * std, 4 * std] if window else [mean, std])

    @property
    def labelled(self) -> float:
        """Share of pixels that have a class."""
        counts = self.contents.counts
        return sum(counts[value] for value in self.classes.values) / self.contents.pixels

    def share(self, value: object) -> float:
        """Share of the pixels that have a value or colour."""
        return self.contents.counts[value] / self.contents.pixels
