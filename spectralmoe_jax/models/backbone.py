"""Visual encoder, depth encoder and adapter, layer by layer in lockstep.

One scan carries the visual and the depth tokens through their l-th blocks and then through the l-th
adapter layer, so that depth tokens of other layers never exist at the same time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.settings import AdapterConfig
from spectralmoe_jax.adapters.spectral_moe import SpectralMoE
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.encoder import Encoder, EncoderConfig
from spectralmoe_jax.models.sam import SamEncoder
from spectralmoe_jax.models.vit import VisionTransformer
from spectralmoe_jax.parallel import constrain
from spectralmoe_jax.parallel.gather import forgetting_gathered, gathered

REMAT = ("none", "layer", "full")

Step = Callable[[Any, Any], tuple[Any, Any]]  # (carry, one layer's inputs) -> (carry, outputs)


class Features(NamedTuple):
    """maps: refined patch tokens of the chosen layers, each (B, h, w, D). queries: (M, query_dim).
    balance_loss: scalar, mean over layers. experts: (L, J, B, N) int32, the strongest expert of every
    token, visual first."""

    maps: list[Array]
    queries: Array
    balance_loss: Array
    experts: Array


class Backbone(nnx.Module):
    """Frozen encoders refined by the adapter.

    Attributes: visual, depth (None without the depth modality), adapter.
    """

    def __init__(self, visual: EncoderConfig, depth: EncoderConfig | None, adapter: AdapterConfig, *,
                 out_layers: tuple[int, ...], depth_bands: tuple[int, ...], remat: str = "none",
                 param_dtype=jnp.float32, rngs: nnx.Rngs):  # fmt: skip
        self.visual: Encoder = make_encoder(visual, param_dtype=param_dtype, rngs=rngs)
        depth = depth if adapter.use_depth else None
        self.depth = None if depth is None else make_encoder(depth, param_dtype=param_dtype, rngs=rngs)
        self.adapter = SpectralMoE(
            adapter, layers=visual.layers, width=visual.width, param_dtype=param_dtype, rngs=rngs
        )
        self.out_layers, self.depth_bands, self.remat = out_layers, depth_bands, remat

    def __call__(self, image: Array, *, key: Array | None = None, noise: Array | None = None) -> Features:
        """Features of a normalised image.

        Args:
          image: (B, H, W, C) in the compute dtype.
          key: draws the router's noise in training; None for evaluation.
          noise: (L, J, B, N, E) standard normal draws to use instead of `key`'s.
        """
        h, w = self.visual.grid(image.shape)
        image = constrain(image, "batch", None, None, None)
        visual = constrain(self.visual.embed(image), "batch", None, None)
        depth = None
        if self.depth is not None:
            depth = jax.lax.stop_gradient(self.depth.embed(image[..., jnp.asarray(self.depth_bands)]))
            depth = constrain(depth, "batch", None, None)
        group = math.gcd(self.visual.config.layers, *(layer + 1 for layer in self.out_layers))
        inputs, step = self._layers(h, w, key, noise)
        grouped = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), inputs)

        def run_group(carry, layers):
            # one output for a group of layers: only every `group`-th layer can be asked for
            carry, extras = jax.lax.scan(step, carry, layers)
            return carry, (carry[0][:, self.visual.config.prefix_tokens :], *extras)

        _, (tokens, balance, strongest) = jax.lax.scan(run_group, (visual, depth), grouped)
        maps = [tokens[layer // group].reshape(image.shape[0], h, w, -1) for layer in self.out_layers]
        strongest = strongest.reshape(-1, *strongest.shape[2:])  # (L, J, B, N)
        return Features(maps, self.adapter.queries(), jnp.mean(balance), strongest)

    def _layers(self, h: int, w: int, key: Array | None, noise: Array | None) -> tuple[dict, Step]:
        """Everything the scan slices by layer, and what it does with one slice."""
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

        def refine(visual, depth, layer):
            weights = gathered(layer["visual"], visual.dtype)
            visual = constrain(visual_layers.apply(visual, weights), "batch", None, None)
            patches = None if depth is None else depth[:, skip_depth:]
            noise = layer.get("noise")
            if noise is not None and jnp.issubdtype(noise.dtype, jax.dtypes.prng_key):
                noise = self.adapter.draw_noise(noise, visual.shape[0], h * w)
            out = self.adapter.layer(layer["adapter"], visual[:, skip:], patches, noise)
            visual = jnp.concatenate([visual[:, :skip], out.tokens], axis=1)
            return constrain(visual, "batch", None, None), (out.balance_loss, out.experts)

        refine = jax.checkpoint(refine) if self.remat == "layer" else forgetting_gathered(refine)

        def step(carry, layer):
            visual, depth = carry
            if depth_layers is not None:
                weights = gathered(layer["depth"], depth.dtype)
                depth = jax.lax.stop_gradient(depth_layers.apply(depth, weights))
                depth = constrain(depth, "batch", None, None)
            visual, extras = refine(visual, depth, layer)
            return (visual, depth), extras

        return inputs, jax.checkpoint(step) if self.remat == "full" else step


def make_encoder(config: EncoderConfig, *, param_dtype=jnp.float32, rngs: nnx.Rngs) -> Encoder:
    """The encoder of a family, with random weights."""
    made = SamEncoder if config.kind == "sam" else VisionTransformer
    return made(config, param_dtype=param_dtype, rngs=rngs)


def check_parts(visual: EncoderConfig, depth: EncoderConfig | None, adapter: AdapterConfig,
                out_layers: tuple[int, ...], depth_bands: tuple[int, ...], remat: str) -> None:  # fmt: skip
    """Raise UserError, naming the key, where the parts do not go together."""
    if remat not in REMAT:
        raise UserError(f"config.model.remat = {remat!r}: choose from {', '.join(REMAT)}")
    if not out_layers or min(out_layers) < 0 or max(out_layers) >= visual.layers:
        raise UserError(
            f"config.model.out_layers = {tuple(out_layers)}: layers are numbered 0..{visual.layers - 1}"
        )
    if not adapter.use_depth:
        return
    if depth is None:
        raise UserError(
            "config.model.depth is None but config.model.adapter.use_depth is True: "
            "give a depth encoder or set use_depth to False"
        )
    for key in ("width", "layers", "patch_size"):
        ours, theirs = getattr(visual, key), getattr(depth, key)
        if ours != theirs:
            remedy = f"; config.model.depth.patch_size={ours} resamples its weights" * (key == "patch_size")
            raise UserError(
                f"config.model.depth.{key} = {theirs} differs from config.model.visual.{key} = {ours}: "
                f"the two encoders run layer by layer and must match{remedy}"
            )
    if len(depth_bands) != depth.in_channels or max(depth_bands) >= visual.in_channels:
        raise UserError(
            f"config.model.depth.bands = {tuple(depth_bands)}: give {depth.in_channels} band numbers "
            f"between 0 and {visual.in_channels - 1}"
        )
