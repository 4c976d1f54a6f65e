"""What is measured of a step: the sizes of a case, its data, and the settings of our side."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.config.model import EncoderConfig, LinearHeadConfig, Mask2FormerConfig
from spectralmoe_jax.config.presets import PRESETS
from spectralmoe_jax.config.schema import LossConfig, TrainConfig
from spectralmoe_jax.models.segmenter import SegmenterConfig

PATCH = 16  # of both encoders: the depth encoder's patches of 14 are resampled, as in the published runs
TABLE = 32  # side of the depth encoder's position table, likewise
BANDS = 3
BLOCKS = 16  # labels are this many blocks along each side

# `--tiny`: sizes that check the script itself
TINY_ENCODER = {"width": 32, "layers": 4, "heads": 2}
TINY_HEAD = {"width": 32, "num_queries": 8, "num_heads": 2, "encoder_layers": 1, "decoder_layers": 1,
             "encoder_ffn": 32, "decoder_ffn": 32}  # fmt: skip
TINY_POINTS = 64


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes of one comparison.

    Attributes:
      size: side of the images in pixels.
      batch: B.
      classes: C.
      present: classes that the labels of each image have.
      experts: E, at least 2.
      reading: `paper` or `released`, of the adapter.
      head: `mask2former` or `linear`.
      visual: preset of the visual encoder, of the family DINOv3.
      depth: preset of the depth encoder, of the family DINOv2.
      dtype: `float32` or `bfloat16`, of the computation.
      remat: of our segmenter; see `SegmenterConfig`.
      tiny: replace encoders, head and points by tiny ones.
    """

    size: int = 256
    batch: int = 2
    classes: int = 24
    present: int = 6
    experts: int = 6
    reading: str = "paper"
    head: str = "mask2former"
    visual: str = "dinov3_s"
    depth: str = "dinov2_s"
    dtype: str = "float32"
    remat: str = "none"
    tiny: bool = False

    def segmenter(self) -> SegmenterConfig:
        """Return the settings of the segmenter: the published ones but for the sizes of the case."""
        visual = self._encoder(self.visual)
        depth = dataclasses.replace(self._encoder(self.depth), table_size=TABLE, name="depth")
        head: Any = LinearHeadConfig(num_classes=self.classes)
        if self.head == "mask2former":
            head = Mask2FormerConfig(num_classes=self.classes, **(TINY_HEAD if self.tiny else {}))
        queries = TINY_HEAD["num_queries"] if self.tiny else Mask2FormerConfig.num_queries
        adapter = SpectralMoEConfig(
            preset=self.reading,
            num_experts=self.experts,
            num_tokens=queries,
            query_dim=TINY_HEAD["width"] if self.tiny else Mask2FormerConfig.width,
        )
        return SegmenterConfig(
            visual=visual,
            depth=depth,
            adapter=adapter,
            head=head,
            # of ViT-L they are layers 7, 11, 15 and 23
            out_layers=tuple(visual.layers * third // 6 - 1 for third in (2, 3, 4, 6)),
            dtype=self.dtype,
            remat=self.remat,
            pixel_mean=(128.0,) * BANDS,
            pixel_std=(64.0,) * BANDS,
        )

    def _encoder(self, preset: str) -> EncoderConfig:
        """Return the sizes of an encoder."""
        sizes = {**PRESETS[preset], "patch_size": PATCH, "in_channels": BANDS}
        return EncoderConfig(**{**sizes, **(TINY_ENCODER if self.tiny else {})})

    def loss(self) -> LossConfig:
        """Return the settings of the loss."""
        return LossConfig(num_points=TINY_POINTS) if self.tiny else LossConfig()

    def training(self, clip_norm: float | None = None) -> TrainConfig:
        """Return the settings of the optimizer; the published ones clip no gradient."""
        return TrainConfig(steps=100_000, batch_size=self.batch, clip_norm=clip_norm)

    def data(self) -> dict[str, np.ndarray]:
        """Return a batch: `image` (B, H, W, bands) uint8 noise, `label` (B, H, W) uint8 in blocks.

        Each image has all of the present classes, the same ones in each.
        """
        rng = np.random.default_rng(0)
        image = rng.integers(0, 256, (self.batch, self.size, self.size, BANDS), np.uint8)
        chosen = rng.choice(self.classes, self.present, replace=False)
        labels = []
        for _ in range(self.batch):
            block = rng.permutation(np.resize(chosen, BLOCKS * BLOCKS)).reshape(BLOCKS, BLOCKS)
            row = np.arange(self.size) * BLOCKS // self.size
            labels.append(block[row][:, row])
        return {"image": image, "label": np.stack(labels).astype(np.uint8)}
