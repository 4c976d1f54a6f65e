"""The whole segmenter: raw pixels in, class and mask logits out."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.settings import AdapterConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.layers import Frozen
from spectralmoe_jax.mask2former.head import HeadConfig, Mask2FormerHead, semantic_scores
from spectralmoe_jax.models.backbone import Backbone, Features, check_parts
from spectralmoe_jax.models.encoder import EncoderConfig

DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32, "float64": jnp.float64}


@dataclasses.dataclass(frozen=True)
class SegmenterConfig:
    """What a segmenter is made of.

    Attributes:
      visual, depth: encoders; depth is None without the depth modality.
      depth_bands: numbers of the bands that the depth encoder sees, red, green, blue.
      out_layers: the four layers whose features go to the head, finest map first.
      dtype: of the computation; parameters are float32, or float64 with `float64`.
      remat: `none`, `layer` (visual block and adapter recomputed in the backward pass) or `full`
        (the depth block too).
      pixel_mean, pixel_std: one value a band, in raw pixel units.
    """

    visual: EncoderConfig
    depth: EncoderConfig | None
    adapter: AdapterConfig
    head: HeadConfig
    depth_bands: tuple[int, ...] = (0, 1, 2)
    out_layers: tuple[int, ...] = (7, 11, 15, 23)
    dtype: str = "bfloat16"
    remat: str = "none"
    pixel_mean: tuple[float, ...] = (0.0,)
    pixel_std: tuple[float, ...] = (1.0,)

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise UserError(f"config.model.dtype = {self.dtype!r}: choose from {', '.join(DTYPES)}")
        if self.dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise UserError("config.model.dtype = 'float64': set the environment variable JAX_ENABLE_X64=1")
        maps = len(self.head.scales)
        if len(self.out_layers) != maps:
            raise UserError(f"config.model.out_layers = {self.out_layers}: give {maps} layers")
        check_parts(self.visual, self.depth, self.adapter, self.out_layers, self.depth_bands, self.remat)
        for key in ("pixel_mean", "pixel_std"):
            if len(getattr(self, key)) != self.visual.in_channels:
                raise UserError(
                    f"config.model.{key} has {len(getattr(self, key))} values for the "
                    f"{self.visual.in_channels} of config.bands: name there the bands that the images have, "
                    "and give one value for each"
                )
        if self.adapter.num_tokens != self.head.num_queries:
            raise UserError(
                f"config.model.adapter.num_tokens = {self.adapter.num_tokens} must equal "
                f"config.model.head.num_queries = {self.head.num_queries}: the tokens become the queries"
            )
        if self.adapter.query_dim != self.head.width:
            raise UserError(
                f"config.model.adapter.query_dim = {self.adapter.query_dim} must equal "
                f"config.model.head.width = {self.head.width}"
            )

    @property
    def compute_dtype(self) -> jnp.dtype:
        return DTYPES[self.dtype]

    @property
    def param_dtype(self) -> jnp.dtype:
        return jnp.float64 if self.dtype == "float64" else jnp.float32


class Output(NamedTuple):
    """class_logits: (K, B, Q, classes + 1), mask_logits: (K, B, Q, h, w), K = 1 + decoder layers, the
    last the one to predict with. balance_loss: scalar. experts: (L, J, B, N) int32."""

    class_logits: Array
    mask_logits: Array
    balance_loss: Array
    experts: Array


class Segmenter(nnx.Module):
    """Encoders, adapter and Mask2Former head, with the statistics that normalise raw pixels.

    Attributes: backbone, head, pixel_mean (C,), pixel_std (C,).
    """

    def __init__(self, config: SegmenterConfig, *, rngs: nnx.Rngs):
        dtype = config.param_dtype
        self.config = config
        self.backbone = Backbone(
            config.visual, config.depth, config.adapter, out_layers=config.out_layers,
            depth_bands=config.depth_bands, remat=config.remat, param_dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.head = Mask2FormerHead(
            config.head, in_features=config.visual.width, dtype=config.compute_dtype,
            remat=config.remat != "none", param_dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.pixel_mean = Frozen(jnp.asarray(config.pixel_mean, dtype))
        self.pixel_std = Frozen(jnp.asarray(config.pixel_std, dtype))

    def normalise(self, pixels: Array) -> Array:
        """Raw pixels (B, H, W, C) of any dtype -> zero mean, unit deviation, in the compute dtype."""
        wide = pixels.astype(self.pixel_mean.dtype)
        return ((wide - self.pixel_mean[...]) / self.pixel_std[...]).astype(self.config.compute_dtype)

    def features(self, image: Array, *, key: Array | None = None, noise: Array | None = None) -> Features:
        """Backbone features of a normalised image; see `Backbone.__call__`."""
        with _precision(self.config.dtype):
            return self.backbone(image, key=key, noise=noise)

    def __call__(self, image: Array, *, key: Array | None = None, all_layers: bool = True) -> Output:
        """Logits of a normalised image (B, H, W, C); `key` turns the router's noise on, and
        `all_layers=False` gives those of the last decoder layer alone."""
        with _precision(self.config.dtype):
            features = self.backbone(image, key=key)
            class_logits, mask_logits = self.head(features.maps, features.queries, all_layers=all_layers)
        return Output(class_logits, mask_logits, features.balance_loss, features.experts)

    def scores(self, pixels: Array) -> Array:
        """Class scores (B, H, W, classes), float32 and not negative, of raw pixels (B, H, W, C)."""
        out = self(self.normalise(pixels), all_layers=False)
        return semantic_scores(out.class_logits[-1], out.mask_logits[-1], (pixels.shape[1], pixels.shape[2]))


def _precision(dtype: str):
    """Full products where full precision was asked for: accelerators round float32 inputs otherwise."""
    return jax.default_matmul_precision("highest") if dtype != "bfloat16" else contextlib.nullcontext()
