"""The segmenter: raw pixels in, class and mask logits out."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.base import Rule, uses_depth
from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.config.model import (
    EncoderConfig,
    LinearHeadConfig,
    Mask2FormerConfig,
    ModelConfig,
    PlainDecoderConfig,
)
from spectralmoe_jax.errors import UserError, bad_value
from spectralmoe_jax.layers import Frozen
from spectralmoe_jax.mask2former.head import Mask2FormerHead, semantic_scores
from spectralmoe_jax.mask2former.masks import Masks
from spectralmoe_jax.models.backbone import Backbone, Features
from spectralmoe_jax.models.linear_head import LinearHead, pixel_scores
from spectralmoe_jax.models.plain_decoder import PlainDecoder
from spectralmoe_jax.parameters import Path

DTYPES = {"bfloat16": jnp.bfloat16, "float32": jnp.float32, "float64": jnp.float64}


@dataclasses.dataclass(frozen=True)
class SegmenterConfig:
    """Parts and settings of a segmenter, checked against each other.

    Attributes:
      visual: the visual encoder.
      depth: the depth encoder, None without the depth modality.
      adapter: settings of the adapter of kind `adapter_kind`.
      head: settings of Mask2Former, of the linear head, or of the plain mask decoder.
      depth_bands: indices of the bands that the depth encoder sees: red, green, blue.
      out_layers: the layers whose features go to the head, finest map first; four for Mask2Former.
      dtype: of the computation; parameters are float32, or float64 with `float64`.
      remat: `none`, `layer` (visual block and adapter are rematerialised in the backward pass) or `full`
        (the depth block too).
      pixel_mean: one value for each band, in raw pixel units.
      pixel_std: likewise.
      adapter_kind: name of the adapter.
    """

    visual: EncoderConfig
    depth: EncoderConfig | None
    adapter: Any
    head: Mask2FormerConfig | LinearHeadConfig | PlainDecoderConfig
    depth_bands: tuple[int, ...] = (0, 1, 2)
    out_layers: tuple[int, ...] = (7, 11, 15, 23)
    dtype: str = ModelConfig.dtype
    remat: str = ModelConfig.remat
    pixel_mean: tuple[float, ...] = (0.0,)
    pixel_std: tuple[float, ...] = (1.0,)
    adapter_kind: str = SpectralMoEConfig.kind

    def __post_init__(self) -> None:
        """Check that the parts go together.

        Raises:
          UserError: they do not; names the key.
        """
        if self.dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise bad_value("config.model.dtype", "float64", "set the environment variable JAX_ENABLE_X64=1")
        self._check_layers()
        if self.uses_depth:
            self._check_depth()
        for key in ("pixel_mean", "pixel_std"):
            if len(getattr(self, key)) != self.visual.in_channels:
                raise UserError(
                    f"config.model.{key} has {len(getattr(self, key))} values for the "
                    f"{self.visual.in_channels} of config.bands: name there the bands that the images have, "
                    "and give one value for each"
                )
        if isinstance(self.head, Mask2FormerConfig):
            self._check_link(self.head)

    def _check_layers(self) -> None:
        layers, count = self.out_layers, self.visual.layers
        if isinstance(self.head, Mask2FormerConfig) and len(layers) != len(self.head.scales):
            raise bad_value("config.model.out_layers", layers, f"give {len(self.head.scales)} layers")
        if not layers or min(layers) < 0 or max(layers) >= count:
            raise bad_value("config.model.out_layers", layers, f"layers are numbered 0..{count - 1}")

    def _check_depth(self) -> None:
        visual, depth = self.visual, self.depth
        if depth is None:
            is_setting = any(field.name == "use_depth" for field in dataclasses.fields(self.adapter))
            raise UserError(
                "config.model.depth is None but config.model.adapter.use_depth is True: "
                "give a depth encoder or set use_depth to False"
                if is_setting
                else "config.model.depth is None but config.model.adapter.kind reads depth tokens: give a "
                "depth encoder or another kind"
            )
        for key in ("width", "layers", "patch_size"):
            ours, theirs = getattr(visual, key), getattr(depth, key)
            if ours != theirs:
                must = f"must equal config.model.visual.{key} = {ours}: the two encoders run layer by layer"
                if key == "patch_size":
                    must += f"; config.model.depth.patch_size={ours} resamples its weights"
                raise bad_value(f"config.model.depth.{key}", theirs, must)
        if visual.family.metadata and visual.patch_size < 3:
            must = "must be at least 3 beside a depth encoder: of smaller patches there are more"
            raise bad_value("config.model.visual.patch_size", visual.patch_size, must)
        if len(self.depth_bands) != depth.in_channels or max(self.depth_bands) >= visual.in_channels:
            must = f"give {depth.in_channels} band numbers between 0 and {visual.in_channels - 1}"
            raise bad_value("config.model.depth.bands", self.depth_bands, must)

    def _check_link(self, head: Mask2FormerConfig) -> None:
        tokens = getattr(self.adapter, "num_tokens", head.num_queries)
        if tokens != head.num_queries:
            must = f"must equal config.model.head.num_queries = {head.num_queries}: tokens become queries"
            raise bad_value("config.model.adapter.num_tokens", tokens, must)
        width = getattr(self.adapter, "query_dim", head.width)
        if width != head.width:
            must = f"must equal config.model.head.width = {head.width}"
            raise bad_value("config.model.adapter.query_dim", width, must)

    @property
    def uses_depth(self) -> bool:
        """True if the adapter reads depth tokens."""
        return uses_depth(self.adapter)

    @property
    def compute_dtype(self) -> jnp.dtype:
        """Type of activations."""
        return DTYPES[self.dtype]

    @property
    def param_dtype(self) -> jnp.dtype:
        """Type of parameters."""
        return jnp.float64 if self.dtype == "float64" else jnp.float32


class Output(NamedTuple):
    """Output of a segmenter whose head predicts masks, K = 1 + decoder layers.

    Attributes:
      class_logits: (K, B, Q, C + 1); the last of the K is the one to predict with.
      masks: masks of the queries, not yet multiplied out, or mask logits (K, B, Q, h, w).
      auxiliary_loss: see `Features`.
      experts: see `Features`.
      statistics: values that a training step has to carry along, by path in the segmenter; None for none.
    """

    class_logits: Array
    masks: Masks | Array
    auxiliary_loss: Array
    experts: Array | None
    statistics: dict[Path, Array] | None = None

    @property
    def mask_logits(self) -> Array:
        """Mask logits of all queries, (K, B, Q, h, w)."""
        return self.masks.logits() if isinstance(self.masks, Masks) else self.masks


class PixelOutput(NamedTuple):
    """Output of a segmenter with the linear head.

    Attributes:
      logits: (B, h, w, C).
      auxiliary_loss: see `Features`.
      experts: see `Features`.
    """

    logits: Array
    auxiliary_loss: Array
    experts: Array | None


class Segmenter(nnx.Module):
    """Encoders, adapter and head, with the statistics that normalise raw pixels.

    Attributes:
      backbone: encoders and adapter.
      head: Mask2Former, the linear head, or the plain mask decoder.
      pixel_mean: one value for each band.
      pixel_std: likewise.
    """

    def __init__(self, config: SegmenterConfig, *, rngs: nnx.Rngs):
        dtype = config.param_dtype
        self.config = config
        self.backbone = Backbone(
            config.visual,
            config.depth,
            config.adapter,
            kind=config.adapter_kind,
            out_layers=config.out_layers,
            depth_bands=config.depth_bands,
            whole_tokens=config.head.whole_tokens,
            remat=config.remat,
            param_dtype=dtype,
            rngs=rngs,
        )
        self.head = _make_head(config, self.backbone, rngs)
        self.pixel_mean = Frozen(jnp.asarray(config.pixel_mean, dtype))
        self.pixel_std = Frozen(jnp.asarray(config.pixel_std, dtype))

    def normalise(self, pixels: Array) -> Array:
        """Raw pixels (B, H, W, C) of any dtype -> mean zero, deviation one, in the compute dtype."""
        wide = pixels.astype(self.pixel_mean.dtype)
        return ((wide - self.pixel_mean[...]) / self.pixel_std[...]).astype(self.config.compute_dtype)

    def features(self, image: Array, *, key: Array | None = None, noise: Array | None = None) -> Features:
        """Backbone features of a normalised image; see `Backbone.__call__`."""
        with _precision(self.config.dtype):
            return self.backbone(image, key=key, noise=noise)

    def head_features(self, image: Array) -> Array:
        """Inputs of the linear head for a normalised image (B, H, W, C): (B, h, w, maps * D)."""
        assert isinstance(self.head, LinearHead)
        maps = self.features(image).maps
        maps, _ = self.backbone.adapter.refine_maps(maps, (1.0,) * len(maps))
        return self.head.join(maps)

    @property
    def optimizer_rules(self) -> tuple[Rule, ...]:
        """Parameter groups that come before those of the configuration: of the adapter, then of the head."""
        return self.backbone.adapter.optimizer_rules + getattr(self.head, "optimizer_rules", ())

    def __call__(
        self,
        image: Array,
        *,
        key: Array | None = None,
        all_layers: bool = True,
        progress: Array | float = 0.0,
    ) -> Output | PixelOutput:
        """Logits of a normalised image.

        Args:
          image: (B, H, W, C) in the compute dtype.
          key: draws what training draws, such as the adapter's noise; None for evaluation.
          all_layers: False gives the logits of the last decoder layer alone, K = 1.
          progress: share of the training that is done; the plain mask decoder alone reads it.
        """
        adapter = self.backbone.adapter
        with _precision(self.config.dtype):
            if isinstance(self.head, PlainDecoder):
                return self._plain_output(image, key, all_layers, progress)
            # 1. encoders and adapter
            features = self.backbone(image, key=key)
            rest = (features.auxiliary_loss, features.experts)
            _check_experts(self.config, features.experts)
            # 2. head
            if isinstance(self.head, LinearHead):
                maps, _ = adapter.refine_maps(features.maps, (1.0,) * len(features.maps))
                return PixelOutput(self.head(maps), *rest)
            maps, scales = adapter.refine_maps(features.maps, self.head.config.scales)
            queries = features.queries
            class_logits, masks = self.head.predict(
                maps,
                queries,
                all_layers=all_layers,
                scales=scales,
                query_features=None if queries is None else adapter.query_features(queries),
            )
        return Output(class_logits, masks, *rest)

    def _plain_output(
        self, image: Array, key: Array | None, all_layers: bool, progress: Array | float
    ) -> Output:
        """Logits of the plain mask decoder; its queries are its own, whatever the adapter links."""
        assert isinstance(self.head, PlainDecoder)
        # 1. encoders and adapter
        noise_key, head_key = (None, None) if key is None else jax.random.split(key)
        features = self.backbone(image, key=noise_key)
        _check_experts(self.config, features.experts)
        # 2. whole tokens (levels, B, T, D): prefix tokens, then patches
        maps, _ = self.backbone.adapter.refine_maps(features.maps, (1.0,) * len(features.maps))
        batch, *grid, width = maps[0].shape
        assert features.prefixes is not None
        tokens = jnp.stack([
            jnp.concatenate([prefix, x.reshape(batch, -1, width)], axis=1)
            for prefix, x in zip(features.prefixes, maps, strict=True)
        ])  # fmt: skip
        # 3. head
        classes, masks, statistics = self.head(
            tokens,
            (grid[0], grid[1]),
            self.backbone.visual.rope(*grid),
            all_layers=all_layers,
            key=head_key,
            progress=progress,
        )
        if statistics is not None:
            statistics = {("head", *path): value for path, value in statistics.items()}
        return Output(classes, masks, features.auxiliary_loss, features.experts, statistics)

    def scores(self, pixels: Array) -> Array:
        """Class scores (B, H, W, C), float32 and not negative, of raw pixels (B, H, W, C)."""
        return self.scores_and_experts(pixels)[0]

    def scores_and_experts(self, pixels: Array) -> tuple[Array, Array | None]:
        """`scores`, and the experts of `Features`."""
        out, size = self(self.normalise(pixels), all_layers=False), (pixels.shape[1], pixels.shape[2])
        if isinstance(out, PixelOutput):
            return pixel_scores(out.logits, size), out.experts
        return semantic_scores(out.class_logits[-1], out.mask_logits[-1], size), out.experts


def _make_head(
    config: SegmenterConfig, backbone: Backbone, rngs: nnx.Rngs
) -> Mask2FormerHead | LinearHead | PlainDecoder:
    """Make the head, with queries of its own where the adapter links none."""
    kwargs: dict[str, Any] = {
        "in_features": config.visual.width,
        "dtype": config.compute_dtype,
        "param_dtype": config.param_dtype,
        "rngs": rngs,
    }
    if isinstance(config.head, LinearHeadConfig):
        return LinearHead(config.head, maps=len(config.out_layers), **kwargs)
    kwargs["remat"] = config.remat != "none"
    if isinstance(config.head, PlainDecoderConfig):
        sizes: dict[str, Any] = {"levels": len(config.out_layers), "patch_size": config.visual.patch_size}
        return PlainDecoder(config.head, heads=config.visual.heads, **sizes, **kwargs)
    adapter, shape = backbone.adapter, (config.head.num_queries, config.head.width)
    queries = jax.eval_shape(adapter.queries)
    features = None if queries is None else jax.eval_shape(adapter.query_features, queries)
    for name, found in (("queries", queries), ("query_features", features)):
        if found is not None and tuple(found.shape) != shape:
            must = f"its {name} are {tuple(found.shape)}, config.model.head.num_queries and width are {shape}"
            raise bad_value("config.model.adapter.kind", config.adapter_kind, must)
    return Mask2FormerHead(
        config.head,
        own_positions=queries is None,
        own_features=features is None,
        **kwargs,
    )


def _check_experts(config: SegmenterConfig, experts: Array | None) -> None:
    """Check that an adapter that returns the expert of each token has the number of its experts.

    Raises:
      UserError: it has not.
    """
    if experts is not None and experts.size and not hasattr(config.adapter, "num_experts"):
        must = "it returns the expert of each token, so its Config has to have num_experts"
        raise bad_value("config.model.adapter.kind", config.adapter_kind, must)


def _precision(dtype: str) -> contextlib.AbstractContextManager:
    """Full precision of products but for bfloat16: by default accelerators round float32 inputs."""
    return jax.default_matmul_precision("highest") if dtype != "bfloat16" else contextlib.nullcontext()
