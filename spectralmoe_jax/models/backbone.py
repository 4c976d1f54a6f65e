"""Visual encoder, depth encoder and adapter, layer by layer in lockstep.

One scan carries the visual and the depth tokens through their l-th blocks and then through the l-th
adapter layer, so that depth tokens of other layers never exist at the same time.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.base import Adapter, RunBlock, hook
from spectralmoe_jax.adapters.registry import adapter_class
from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.encoders.encoder import Encoder
from spectralmoe_jax.models.encoders.sam import SamEncoder
from spectralmoe_jax.models.encoders.vit import VisionTransformer
from spectralmoe_jax.parallel import constrain
from spectralmoe_jax.parallel.expert_parallel import forgetting_gathered, gathered
from spectralmoe_jax.parameters import Path, train_some

Step = Callable[[Any, Any], tuple[Any, Any]]  # (carry, one layer's inputs) -> (carry, outputs)


class Features(NamedTuple):
    """maps: refined patch tokens of the chosen layers, each (B, h, w, D). queries: (M, query_dim),
    or None where the adapter links none. auxiliary_loss: scalar, mean over layers. experts: (L, J, B, N)
    int32, the strongest expert of every token, visual first, or None where there are none."""

    maps: list[Array]
    queries: Array | None
    auxiliary_loss: Array
    experts: Array | None


class Backbone(nnx.Module):
    """Frozen encoders refined by an adapter of `kind`, whose settings are `adapter`.

    Attributes: visual, depth (None without the depth modality), adapter.
    """

    def __init__(self, visual: EncoderConfig, depth: EncoderConfig | None, adapter: Any, *,
                 kind: str = SpectralMoEConfig.kind,
                 out_layers: tuple[int, ...], depth_bands: tuple[int, ...],
                 remat: str = "none", param_dtype=jnp.float32, rngs: nnx.Rngs):  # fmt: skip
        self.visual: Encoder = make_encoder(visual, param_dtype=param_dtype, rngs=rngs)
        depth = depth if uses_depth(adapter) else None
        self.depth = None if depth is None else make_encoder(depth, param_dtype=param_dtype, rngs=rngs)
        self.adapter: Adapter = adapter_class(kind)(
            adapter, layers=visual.layers, width=visual.width, param_dtype=param_dtype, rngs=rngs
        )
        if trains := hook(self.adapter, "trains"):
            train_some(self.visual, trains, trainable_paths(visual))
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

        _, (tokens, auxiliary, strongest) = jax.lax.scan(run_group, (visual, depth), grouped)
        maps = [tokens[layer // group].reshape(image.shape[0], h, w, -1) for layer in self.out_layers]
        if strongest is not None:
            strongest = strongest.reshape(-1, *strongest.shape[2:])  # (L, J, B, N)
        return Features(maps, self.adapter.queries(), jnp.mean(auxiliary), strongest)

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

            def run(tokens, edit=None, beside=None):
                return visual_layers.apply(tokens, weights, edit, beside)

            visual = constrain(self._block(layer["adapter"], visual, run), "batch", None, None)
            patches = None if depth is None else depth[:, skip_depth:]
            out = self.adapter.layer(layer["adapter"], visual[:, skip:], patches, layer.get("noise"), (h, w))
            visual = jnp.concatenate([visual[:, :skip], out.tokens], axis=1)
            return constrain(visual, "batch", None, None), (out.auxiliary_loss, out.experts)

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

    def _block(self, weights: Any, visual: Array, run: RunBlock) -> Array:
        """The visual block of a layer, by the adapter where it acts inside."""
        block = hook(self.adapter, "block")
        return run(visual) if block is None else block(weights, visual, run)

    def refine_maps(self, maps: list[Array], scales: Sequence[float]) -> tuple[list[Array], Sequence[float]]:
        """The maps, and how much the head is to resize each, as the adapter changes them if it does."""
        refine = hook(self.adapter, "refine_maps")
        return (maps, scales) if refine is None else refine(maps, scales)

    def query_features(self, queries: Array | None) -> Array | None:
        """Query features in place of the head's own, from an adapter that gives some."""
        give = hook(self.adapter, "query_features")
        return None if give is None or queries is None else give(queries)


def uses_depth(adapter: Any) -> bool:
    """Whether an adapter of these settings reads depth tokens."""
    return bool(getattr(adapter, "use_depth", False))


def make_encoder(config: EncoderConfig, *, param_dtype=jnp.float32, rngs: nnx.Rngs) -> Encoder:
    """The encoder of a family, with random weights."""
    made = SamEncoder if config.kind == "sam" else VisionTransformer
    return made(config, param_dtype=param_dtype, rngs=rngs)


def trainable_paths(config: EncoderConfig) -> set[Path]:
    """Weights that the features of an encoder depend on: those that train where it is trainable."""
    whole = dataclasses.replace(config, trainable=True)
    encoder = nnx.eval_shape(lambda: make_encoder(whole, rngs=nnx.Rngs(0)))
    return {
        tuple(map(str, path))
        for path, variable in nnx.to_flat_state(nnx.state(encoder))
        if isinstance(variable, nnx.Param)
    }


def check_parts(visual: EncoderConfig, depth: EncoderConfig | None, adapter: Any,
                out_layers: tuple[int, ...], depth_bands: tuple[int, ...]) -> None:  # fmt: skip
    """Raise UserError, naming the key, where the parts do not go together."""
    if not out_layers or min(out_layers) < 0 or max(out_layers) >= visual.layers:
        raise UserError(
            f"config.model.out_layers = {tuple(out_layers)}: layers are numbered 0..{visual.layers - 1}"
        )
    if not uses_depth(adapter):
        return
    if depth is None:
        is_setting = any(field.name == "use_depth" for field in dataclasses.fields(adapter))
        raise UserError(
            "config.model.depth is None but config.model.adapter.use_depth is True: "
            "give a depth encoder or set use_depth to False"
            if is_setting
            else "config.model.depth is None but config.model.adapter.kind reads depth tokens: give a depth "
            "encoder or another kind"
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
