"""Sizes of the Mask2Former head."""

from __future__ import annotations

import dataclasses

from spectralmoe_jax.errors import UserError

LEVELS = 3  # feature levels the deformable encoder and the mask decoder attend to


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Settings of the head; the defaults are the published ones (arXiv 2112.01527).

    Attributes:
      num_classes: classes without the "no object" one.
      num_queries: Q, equal to the adapter's tokens an expert.
      width: of every feature and query inside the head.
      num_heads: of every attention.
      encoder_layers, decoder_layers: deformable encoder and mask decoder, any number from 1.
      encoder_ffn, decoder_ffn: hidden width of their feed-forward blocks.
      points: sampling points a head and level of the deformable attention.
      group_norm_groups: groups of every group normalisation.
      scales: how much each of the four feature maps is resized, finest first.
    """

    num_classes: int
    num_queries: int = 100
    width: int = 256
    num_heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 9
    encoder_ffn: int = 1024
    decoder_ffn: int = 2048
    points: int = 4
    group_norm_groups: int = 32
    scales: tuple[float, ...] = (4.0, 2.0, 1.0, 0.5)

    def __post_init__(self):
        prefix = "config.model.head"
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if field.name != "scales" and not (whole and value >= 1):
                raise UserError(f"{prefix}.{field.name} = {value!r}: must be a whole number, at least 1")
        if self.width % 4:
            raise UserError(
                f"{prefix}.width = {self.width}: must be a multiple of 4, for sine and cosine of x and y"
            )
        for key in ("num_heads", "group_norm_groups"):
            if self.width % getattr(self, key):
                raise UserError(
                    f"{prefix}.{key} = {getattr(self, key)}: must divide {prefix}.width = {self.width}"
                )
        object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        if len(self.scales) != LEVELS + 1 or min(self.scales) <= 0:
            raise UserError(
                f"{prefix}.scales = {self.scales}: give {LEVELS + 1} positive numbers, finest level first"
            )
