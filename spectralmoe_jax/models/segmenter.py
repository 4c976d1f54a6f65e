"""The whole segmenter: raw pixels in, class and mask logits out."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.base import hook
from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.config.model import EncoderConfig, LinearHeadConfig, Mask2FormerConfig, ModelConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.layers import Frozen
from spectralmoe_jax.mask2former.head import Mask2FormerHead, semantic_scores
from spectralmoe_jax.models.backbone import Backbone, Features, check_parts, uses_depth
from spectralmoe_jax.models.linear_head import LinearHead, pixel_scores

DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32, "float64": jnp.float64}


@dataclasses.dataclass(frozen=True)
class SegmenterConfig:
    """What a segmenter is made of.

    Attributes:
      visual, depth: encoders; depth is None without the depth modality.
      depth_bands: numbers of the bands that the depth encoder sees, red, green, blue.
      adapter: its settings, those of `adapter_kind`. head: of Mask2Former, or of the linear head.
      out_layers: the layers whose features go to the head, finest map first; four for Mask2Former.
      dtype: of the computation; parameters are float32, or float64 with `float64`.
      remat: `none`, `layer` (visual block and adapter recomputed in the backward pass) or `full`
        (the depth block too).
      pixel_mean, pixel_std: one value a band, in raw pixel units.
    """

    visual: EncoderConfig
    depth: EncoderConfig | None
    adapter: Any
    head: Mask2FormerConfig | LinearHeadConfig
    depth_bands: tuple[int, ...] = (0, 1, 2)
    out_layers: tuple[int, ...] = (7, 11, 15, 23)
    dtype: str = ModelConfig.dtype
    remat: str = ModelConfig.remat
    pixel_mean: tuple[float, ...] = (0.0,)
    pixel_std: tuple[float, ...] = (1.0,)
    adapter_kind: str = SpectralMoEConfig.kind

    def __post_init__(self):
        if self.dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise UserError("config.model.dtype = 'float64': set the environment variable JAX_ENABLE_X64=1")
        if isinstance(self.head, Mask2FormerConfig) and len(self.out_layers) != len(self.head.scales):
            raise UserError(
                f"config.model.out_layers = {self.out_layers}: give {len(self.head.scales)} layers"
            )
        check_parts(self.visual, self.depth, self.adapter, self.out_layers, self.depth_bands)
        for key in ("pixel_mean", "pixel_std"):
            if len(getattr(self, key)) != self.visual.in_channels:
                raise UserError(
                    f"config.model.{key} has {len(getattr(self, key))} values for the "
                    f"{self.visual.in_channels} of config.bands: name there the bands that the images have, "
                    "and give one value for each"
                )
        if isinstance(self.head, Mask2FormerConfig):
            self._check_link(self.head)

    def _check_link(self, head: Mask2FormerConfig) -> None:
        tokens = getattr(self.adapter, "num_tokens", head.num_queries)
        if tokens != head.num_queries:
            raise UserError(
                f"config.model.adapter.num_tokens = {tokens} must equal "
                f"config.model.head.num_queries = {head.num_queries}: the tokens become the queries"
            )
        width = getattr(self.adapter, "query_dim", head.width)
        if width != head.width:
            raise UserError(
                f"config.model.adapter.query_dim = {width} must equal config.model.head.width = {head.width}"
            )

    @property
    def uses_depth(self) -> bool:
        """Whether the depth modality is there."""
        return uses_depth(self.adapter)

    @property
    def compute_dtype(self) -> jnp.dtype:
        return DTYPES[self.dtype]

    @property
    def param_dtype(self) -> jnp.dtype:
        return jnp.float64 if self.dtype == "float64" else jnp.float32


class Output(NamedTuple):
    """class_logits: (K, B, Q, classes + 1), mask_logits: (K, B, Q, h, w), K = 1 + decoder layers, the
    last the one to predict with. auxiliary_loss, experts: see `Features`."""

    class_logits: Array
    mask_logits: Array
    auxiliary_loss: Array
    experts: Array | None


class PixelOutput(NamedTuple):
    """Of the linear head. logits: (B, h, w, classes). auxiliary_loss, experts: see `Features`."""

    logits: Array
    auxiliary_loss: Array
    experts: Array | None


class Segmenter(nnx.Module):
    """Encoders, adapter and head, with the statistics that normalise raw pixels.

    Attributes: backbone, head, pixel_mean (C,), pixel_std (C,).
    """

    def __init__(self, config: SegmenterConfig, *, rngs: nnx.Rngs):
        dtype = config.param_dtype
        self.config = config
        self.backbone = Backbone(
            config.visual, config.depth, config.adapter, kind=config.adapter_kind,
            out_layers=config.out_layers, depth_bands=config.depth_bands, remat=config.remat,
            param_dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.head = _make_head(config, self.backbone, rngs)
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

    def __call__(
        self, image: Array, *, key: Array | None = None, all_layers: bool = True
    ) -> Output | PixelOutput:
        """Logits of a normalised image (B, H, W, C); `key` turns the adapter's noise on, and
        `all_layers=False` gives those of the last decoder layer alone."""
        with _precision(self.config.dtype):
            features = self.backbone(image, key=key)
            rest = (features.auxiliary_loss, features.experts)
            _check_experts(self.config, features.experts)
            if isinstance(self.head, LinearHead):
                maps, _ = self.backbone.refine_maps(features.maps, (1.0,) * len(features.maps))
                return PixelOutput(self.head(maps), *rest)
            maps, scales = self.backbone.refine_maps(features.maps, self.head.config.scales)
            class_logits, mask_logits = self.head(
                maps, features.queries, all_layers=all_layers, scales=scales,
                query_features=self.backbone.query_features(features.queries),
            )  # fmt: skip
        return Output(class_logits, mask_logits, *rest)

    def scores(self, pixels: Array) -> Array:
        """Class scores (B, H, W, classes), float32 and not negative, of raw pixels (B, H, W, C)."""
        return self.scores_and_experts(pixels)[0]

    def scores_and_experts(self, pixels: Array) -> tuple[Array, Array | None]:
        """`scores`, and the experts of `Features`."""
        out, size = self(self.normalise(pixels), all_layers=False), (pixels.shape[1], pixels.shape[2])
        if isinstance(out, PixelOutput):
            return pixel_scores(out.logits, size), out.experts
        return semantic_scores(out.class_logits[-1], out.mask_logits[-1], size), out.experts


def _make_head(config: SegmenterConfig, backbone: Backbone, rngs: nnx.Rngs) -> Mask2FormerHead | LinearHead:
    """The head, with queries of its own where the adapter links none."""
    kwargs: dict[str, Any] = {"in_features": config.visual.width, "dtype": config.compute_dtype,
                              "param_dtype": config.param_dtype, "rngs": rngs}  # fmt: skip
    if isinstance(config.head, LinearHeadConfig):
        return LinearHead(config.head, maps=len(config.out_layers), **kwargs)
    adapter, shape = backbone.adapter, (config.head.num_queries, config.head.width)
    queries = jax.eval_shape(adapter.queries)
    given = hook(adapter, "query_features")
    features = None if given is None or queries is None else jax.eval_shape(given, queries)
    for name, found in (("queries", queries), ("query_features", features)):
        if found is not None and tuple(found.shape) != shape:
            raise UserError(
                f"config.model.adapter.kind = {config.adapter_kind!r}: its {name} are {tuple(found.shape)}, "
                f"config.model.head.num_queries and width are {shape}"
            )
    return Mask2FormerHead(
        config.head, remat=config.remat != "none", own_positions=queries is None,
        own_features=features is None, **kwargs,
    )  # fmt: skip


def _check_experts(config: SegmenterConfig, experts: Array | None) -> None:
    """Raises UserError where an adapter tells the expert of each token and not how many experts it has."""
    if experts is not None and experts.size and not hasattr(config.adapter, "num_experts"):
        raise UserError(
            f"config.model.adapter.kind = {config.adapter_kind!r}: it returns the expert of each token, so "
            "its Config has to have num_experts"
        )


def _precision(dtype: str):
    """Full products where full precision was asked for: accelerators round float32 inputs otherwise."""
    return jax.default_matmul_precision("highest") if dtype != "bfloat16" else contextlib.nullcontext()
