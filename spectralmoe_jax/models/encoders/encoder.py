"""The base class of encoders, and the patches and feed-forward blocks that they share.

`vit.VisionTransformer` serves the families of `config.presets.FAMILIES`, its subclass
`copernicus_fm.CopernicusFM` one of them, `sam.SamEncoder` SAM, and `galileo.GalileoEncoder` Galileo.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array

from spectralmoe_jax.adapters.base import Beside, Edit
from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.layers import (
    LayerNorm,
    Linear,
    VariableType,
    gelu,
    keep_slope,
    trunc_normal,
    wide_type,
)
from spectralmoe_jax.models.positions import Rope


class ApplyLayer(Protocol):
    """One layer as a function of its weights."""

    def __call__(self, x: Array, layer: Any, edit: Edit | None = None, beside: Beside | None = None) -> Array:
        """Apply a layer to tokens: (B, T, D) -> (B, T, D).

        Args:
          x: tokens.
          layer: weights of the layer.
          edit: see `adapters.base.RunBlock`, as `beside`.
          beside: a branch beside the feed-forward block.
        """
        ...


class Layers(NamedTuple):
    """The layers of an encoder, ready to be scanned.

    Attributes:
      weights: a pytree, every leaf with a leading axis of L layers.
      apply: applies one layer, given its slice of the weights.
    """

    weights: Any
    apply: ApplyLayer


class Encoder(nnx.Module):
    """Base class of encoders.

    Attributes:
      config: sizes.
    """

    config: EncoderConfig

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """Patches along height and width of an image (B, H, W, C)."""
        return patch_grid(image_shape, self.config.patch_size)

    def embed(self, image: Array) -> Array:
        """Tokens (B, T, D) before the first layer, of a normalised image (B, H, W, C), in its dtype."""
        raise NotImplementedError

    def stacked(self, h: int, w: int) -> Layers:
        """The layers, ready to be scanned over a grid of h x w patches."""
        raise NotImplementedError

    def rope(self, h: int, w: int) -> Rope | None:
        """Rotary positions of a grid of h x w patches; None in families without."""
        return None

    def last_norm(self, tokens: Array) -> Array:
        """Tokens (B, T, D) after the norm that follows the last layer; unchanged in families without."""
        return tokens


def mean_over_groups(patches: Array, groups: int) -> Array:
    """Mean over the tokens of a place: (B, N G, D) -> (B, N, D), sums in at least float32."""
    if groups == 1:
        return patches
    grouped = rearrange(patches, "b (n g) d -> b n g d", g=groups)
    return jnp.mean(grouped, axis=2, dtype=wide_type(patches.dtype)).astype(patches.dtype)


def all_layers(encoder: Encoder, image: Array) -> Array:
    """Tokens after every layer, for inspection and parity: (L, B, T, D)."""
    return every_layer(encoder, encoder.embed(image), *encoder.grid(image.shape))


def every_layer(encoder: Encoder, tokens: Array, h: int, w: int) -> Array:
    """Tokens after every layer, from those before the first (B, T, D): (L, B, T, D)."""
    layers = encoder.stacked(h, w)

    def step(x: Array, layer: Any) -> tuple[Array, Array]:
        """Run one block: scan body."""
        x = layers.apply(x, layer)
        return x, x

    return jax.lax.scan(step, tokens, layers.weights)[1]


def patch_grid(image_shape: tuple[int, ...], patch: int) -> tuple[int, int]:
    """Patches along height and width of an image (B, H, W, C).

    Raises:
      UserError: some patches would be cut off.
    """
    height, width = image_shape[1:3]
    if height % patch or width % patch:
        raise UserError(
            f"an image of {height}x{width} pixels does not divide into patches of {patch}: "
            "choose a crop or window that is a multiple of the patch size"
        )
    return height // patch, width // patch


def clip_pixels(image: Array, limits: tuple[float, float] | None, eight_bit: bool) -> Array:
    """Clip normalised pixels as an encoder's publishers do, in the dtype of the image.

    Args:
      image: (B, H, W, C).
      limits: smallest and largest value; None leaves the image as it is.
      eight_bit: truncate to 256 levels between the limits.
    """
    if limits is None:
        return image
    image = jnp.clip(image, *limits)
    if not eight_bit:
        return image
    low, range_ = limits[0], limits[1] - limits[0]
    levels = jnp.floor((image.astype(wide_type(image.dtype)) - low) / range_ * 255)
    return (levels / 255 * range_ + low).astype(image.dtype)


def embed_patches(image: Array, kernel: Array, bias: Array | None) -> Array:
    """Project every patch of an image, in the dtype of the image.

    Args:
      image: (B, H, W, C).
      kernel: (p, p, C, D), p the side of a patch.
      bias: (D,).

    Returns:
      (B, N, D).
    """
    size = {"p": kernel.shape[0], "q": kernel.shape[1]}
    patches = rearrange(image, "b (h p) (w q) c -> b (h w) (p q c)", **size)
    x = patches @ rearrange(kernel, "p q c d -> (p q c) d").astype(image.dtype)  # (B, N, D)
    return x if bias is None else x + bias.astype(image.dtype)


@keep_slope
def quick_gelu(x: Array) -> Array:
    """CLIP's approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": gelu, "quick_gelu": quick_gelu}


class FeedForward(nnx.Module):
    """Two linear layers with an activation between them, or SwiGLU.

    The first layer of SwiGLU gives gate and value side by side. Families that have one normalise before the
    last layer.
    """

    def __init__(self, config: EncoderConfig, kind: VariableType, param_dtype, rngs: nnx.Rngs):
        kwargs = {"init": trunc_normal, "kind": kind, "param_dtype": param_dtype, "rngs": rngs}
        self.gated = config.ffn == "swiglu"
        self.activation = config.family.activation
        self.first = Linear(config.width, config.hidden * (2 if self.gated else 1), **kwargs)
        self.last = Linear(config.hidden, config.width, **kwargs)
        self.norm = (
            LayerNorm(config.hidden, config.norm_eps, kind=kind, param_dtype=param_dtype)
            if config.family.ffn_norm
            else None
        )

    def __call__(self, x: Array) -> Array:
        """(B, T, D) -> (B, T, D)."""
        hidden = self.first(x)
        if self.gated:
            gate, value = jnp.split(hidden, 2, axis=-1)
            hidden = jax.nn.silu(gate) * value
        else:
            hidden = ACTIVATIONS[self.activation](hidden)
        if self.norm is not None:
            hidden = self.norm(hidden)
        return self.last(hidden)
