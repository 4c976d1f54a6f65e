"""Visual encoder, depth encoder and adapter, layer by layer in lockstep.

One scan carries the visual and the depth tokens through their l-th blocks and then through the l-th layer of
the adapter, so that the depth tokens of all layers never exist at the same time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.base import Adapter, Grid, LayerOutput, uses_depth
from spectralmoe_jax.adapters.registry import adapter_class
from spectralmoe_jax.config.adapters import AdapterSection, SpectralMoEConfig
from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.models.encoders.copernicus_fm import CopernicusFM
from spectralmoe_jax.models.encoders.encoder import Encoder, mean_over_groups, patch_grid
from spectralmoe_jax.models.encoders.galileo import GalileoEncoder
from spectralmoe_jax.models.encoders.sam import SamEncoder
from spectralmoe_jax.models.encoders.vit import VisionTransformer
from spectralmoe_jax.models.windows import OverlappingWindows
from spectralmoe_jax.parallel import constrain
from spectralmoe_jax.parallel.expert_parallel import gather_weights, remat_gathered_weights
from spectralmoe_jax.parameters import Path, train_some

Step = Callable[[Any, Any], tuple[Any, Any]]  # (carry, one layer's inputs) -> (carry, outputs)


class Features(NamedTuple):
    """Output of the backbone.

    Attributes:
      maps: refined patch tokens of the chosen layers, (B, h, w, D) each.
      prefixes: class and storage tokens of the same layers, (B, tokens, D) each; None where the head does not
        read them.
      queries: (Q, D of the head), linked to the adapter; None where the adapter links none.
      auxiliary_loss: scalar, the mean over layers.
      experts: (L, J, B, N) int32, the strongest expert of every token, visual first; None without experts.
        Of a place in several overlapping windows, that in the first of them.
    """

    maps: list[Array]
    prefixes: list[Array] | None
    queries: Array | None
    auxiliary_loss: Array
    experts: Array | None


class Backbone(nnx.Module):
    """Frozen encoders refined by an adapter.

    Attributes:
      visual: the visual encoder.
      depth: the depth encoder, None without the depth modality.
      adapter: the adapter.
    """

    def __init__(
        self,
        visual: EncoderConfig,
        depth: EncoderConfig | None,
        adapter: Any,
        *,
        kind: str = SpectralMoEConfig.kind,
        out_layers: tuple[int, ...],
        depth_bands: tuple[int, ...],
        whole_tokens: bool = False,
        remat: str = "none",
        param_dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Make encoders and adapter with random weights.

        Args:
          visual: the visual encoder.
          depth: the depth encoder; not made for an adapter that does not read depth tokens.
          adapter: settings of the adapter.
          kind: kind of the adapter.
          out_layers: layers whose tokens become maps, finest map first.
          depth_bands: indices of the bands that the depth encoder sees.
          whole_tokens: return prefix tokens too, and all tokens after the encoder's last norm.
          remat: `none`, `layer` or `full`, see `SegmenterConfig`.
          param_dtype: of the parameters.
          rngs: draws the weights.
        """
        self.visual: Encoder = make_encoder(visual, param_dtype=param_dtype, rngs=rngs)
        depth = depth if uses_depth(adapter) else None
        self.depth = None if depth is None else make_encoder(depth, param_dtype=param_dtype, rngs=rngs)
        self.adapter: Adapter = adapter_class(kind)(
            adapter, layers=visual.layers, width=visual.width, param_dtype=param_dtype, rngs=rngs
        )
        if self.adapter.chooses_weights():
            train_some(self.visual, self.adapter.trains, trainable_paths(visual))
        self.out_layers, self.depth_bands, self.remat = out_layers, depth_bands, remat
        self.whole_tokens = whole_tokens

    def __call__(self, image: Array, *, key: Array | None = None, noise: Array | None = None) -> Features:
        """Features of a normalised image.

        Args:
          image: (B, H, W, C) in the compute dtype.
          key: draws the router's noise in training; None for evaluation.
          noise: (L, J, B, N, E) standard normal draws to use in place of those of `key`; B counts windows
            where the encoder's windows overlap.
        """
        windows = self.windows(image.shape)
        if windows is None:
            return self._whole(image, key, noise)
        found = self._whole(windows.cut(image), key, noise)
        maps = [constrain(windows.mean(level), "batch", None, None, None) for level in found.maps]
        prefixes = found.prefixes
        if prefixes is not None:
            of_image = [rearrange(x, "(b n) t d -> b n t d", n=windows.count) for x in prefixes]
            prefixes = [x.mean(axis=1) for x in of_image]
        experts = None if found.experts is None else windows.pick(found.experts)
        return found._replace(maps=maps, prefixes=prefixes, experts=experts)

    def windows(self, shape: tuple[int, ...]) -> OverlappingWindows | None:
        """Return the overlapping windows of images (B, H, W, C), None if the encoders see them whole."""
        config = self.visual.config
        if not config.window_overlap:
            return None
        grid = self.visual.grid(shape)
        return OverlappingWindows(grid, config.window, config.window_overlap, config.patch_size)

    def _whole(self, image: Array, key: Array | None, noise: Array | None) -> Features:
        """Features of images that the encoders see whole."""
        # 1. embed: tokens (B, T, D) before the first layer; maps cover the image, so no pixel is dropped
        patch_grid(image.shape, self.visual.config.patch_size)
        h, w = self.visual.grid(image.shape)
        image = constrain(image, "batch", None, None, None)
        visual = constrain(self.visual.embed(image), "batch", None, None)
        depth = None
        if self.depth is not None:
            depth = jax.lax.stop_gradient(self.depth.embed(image[..., jnp.asarray(self.depth_bands)]))
            depth = constrain(depth, "batch", None, None)

        # 2. scan over the layers; it carries the maps of the chosen layers, since those of all layers would
        #    take too much memory. Layers that are not chosen write to a spare map.
        chosen = sorted(set(self.out_layers))
        slots = np.full(self.visual.config.layers, len(chosen))
        slots[chosen] = np.arange(len(chosen))
        inputs, step = self._layers(h, w, key, noise)
        prefix = self.visual.config.prefix_tokens if self.whole_tokens else 0
        shape = (visual.shape[0], prefix + h * w, visual.shape[2])  # (B, N or T, D)
        maps = constrain(jnp.zeros((len(chosen) + 1, *shape), visual.dtype), None, "batch", None, None)

        def visit(carry: Any, layer: tuple[Array, dict]) -> tuple[Any, Any]:
            """Run one layer and put the tokens that the head reads into their slot: scan body."""
            tokens, maps = carry
            slot, weights = layer
            tokens, extras = step(tokens, weights)
            maps = jax.lax.dynamic_update_index_in_dim(maps, self._level(tokens[0]), slot, axis=0)
            return (tokens, maps), extras

        start = ((visual, depth), maps)
        (_, maps), (auxiliary, strongest) = jax.lax.scan(visit, start, (jnp.asarray(slots), inputs))

        # 3. maps of the chosen layers, and prefix tokens for a head that reads them
        levels = [maps[slots[layer]] for layer in self.out_layers]
        prefixes = [level[:, :prefix] for level in levels] if self.whole_tokens else None
        features = [level[:, prefix:].reshape(image.shape[0], h, w, -1) for level in levels]
        return Features(features, prefixes, self.adapter.queries(), jnp.mean(auxiliary), strongest)

    def _level(self, tokens: Array) -> Array:
        """Tokens of a layer that the head reads: (B, T, D) -> (B, N, D), or (B, prefix + N, D)."""
        prefix = self.visual.config.prefix_tokens
        if self.whole_tokens or self.visual.config.normalise_maps:
            tokens = self.visual.last_norm(tokens)
        places = mean_over_groups(tokens[:, prefix:], self.visual.config.tokens_per_place)
        return jnp.concatenate([tokens[:, :prefix], places], axis=1) if self.whole_tokens else places

    def _layers(self, h: int, w: int, key: Array | None, noise: Array | None) -> tuple[dict, Step]:
        """Inputs of the scan, every leaf with a leading axis of L layers, and its step for one layer."""
        layers = self.visual.config.layers
        visual_layers = self.visual.stacked(h, w)
        depth_layers = None if self.depth is None else self.depth.stacked(h, w)
        inputs: dict[str, Any] = {"visual": visual_layers.weights, "adapter": self.adapter.stacked()}
        if depth_layers is not None:
            inputs["depth"] = depth_layers.weights
        if noise is not None:
            inputs["noise"] = noise
        elif key is not None:
            inputs["noise"] = jax.random.split(key, layers)
        skip = self.visual.config.prefix_tokens
        skip_depth = 0 if self.depth is None else self.depth.config.prefix_tokens

        def visual_step(visual, depth, layer):
            """Run the visual block and the adapter of one layer."""
            # 2. visual block, as the adapter runs it
            weights = gather_weights(layer["visual"], visual.dtype)

            def run(tokens, edit=None, beside=None):
                return visual_layers.apply(tokens, weights, edit, beside)

            visual = constrain(self.adapter.block(layer["adapter"], visual, run), "batch", None, None)
            # 3. adapter, on patch tokens (B, N, D); class and storage tokens pass unchanged
            patches = None if depth is None else depth[:, skip_depth:]
            out = self._refine(layer["adapter"], visual[:, skip:], patches, layer.get("noise"), (h, w))
            visual = jnp.concatenate([visual[:, :skip], out.tokens], axis=1)  # (B, T, D)
            return constrain(visual, "batch", None, None), (out.auxiliary_loss, out.experts)

        remat = jax.checkpoint if self.remat == "layer" else remat_gathered_weights
        visual_step = remat(visual_step)

        def step(carry, layer):
            """Run one layer of both encoders and the adapter: scan body."""
            visual, depth = carry  # (B, T, D) each, of their own numbers of tokens
            # 1. depth block: read by the adapter, never trained
            if depth_layers is not None:
                weights = gather_weights(layer["depth"], depth.dtype)
                depth = jax.lax.stop_gradient(depth_layers.apply(depth, weights))
                depth = constrain(depth, "batch", None, None)
            visual, extras = visual_step(visual, depth, layer)
            return (visual, depth), extras

        return inputs, jax.checkpoint(step) if self.remat == "full" else step

    def _refine(
        self, weights: Any, visual: Array, depth: Array | None, noise: Array | None, grid: Grid
    ) -> LayerOutput:
        """Run the adapter on the patch tokens of one layer, (B, N G, D) with G tokens in each place.

        The adapter sees one token a place: the mean of its tokens, whose change is added to each of them, or,
        with `token_groups = "each"`, every group as an image of its own.
        """
        groups = self.visual.config.tokens_per_place
        if groups == 1:
            return self.adapter.layer(weights, visual, depth, noise, grid)
        if getattr(self.adapter.config, "token_groups", AdapterSection.token_groups) == "mean":
            mean = mean_over_groups(visual, groups)  # (B, N, D)
            out = self.adapter.layer(weights, mean, depth, noise, grid)
            return out._replace(tokens=visual + jnp.repeat(out.tokens - mean, groups, axis=1))
        images = rearrange(visual, "b (n g) d -> (b g) n d", g=groups)
        depth = None if depth is None else jnp.repeat(depth, groups, axis=0)
        out = self.adapter.layer(weights, images, depth, noise, grid)
        tokens = rearrange(out.tokens, "(b g) n d -> b (n g) d", g=groups)
        # the map of experts has one for each place: that of the first group
        experts = None if out.experts is None else out.experts[:, ::groups]
        return out._replace(tokens=tokens, experts=experts)


def make_encoder(config: EncoderConfig, *, param_dtype=jnp.float32, rngs: nnx.Rngs) -> Encoder:
    """Make an encoder of any family, with random weights."""
    encoders: dict[str, type[Encoder]] = {
        "sam": SamEncoder,
        "galileo": GalileoEncoder,
        "copernicus_fm": CopernicusFM,
    }
    encoder: Any = encoders.get(config.kind, VisionTransformer)
    return encoder(config, param_dtype=param_dtype, rngs=rngs)


def trainable_paths(config: EncoderConfig) -> set[Path]:
    """Paths of the weights that an encoder's features depend on: those that a trainable encoder trains."""
    trainable = dataclasses.replace(config, trainable=True)
    encoder = nnx.eval_shape(lambda: make_encoder(trainable, rngs=nnx.Rngs(0)))
    return {
        tuple(map(str, path))
        for path, variable in nnx.to_flat_state(nnx.state(encoder))
        if isinstance(variable, nnx.Param)
    }
