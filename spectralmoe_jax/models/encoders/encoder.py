"""What the backbone asks of an encoder.

`vit.VisionTransformer` serves the families of `config.presets.FAMILIES`, `sam.SamEncoder` serves SAM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jax import Array

from spectralmoe_jax.config.model import EncoderConfig

Edit = Callable[[dict[tuple[str, ...], Array]], dict[tuple[str, ...], Array]]
Beside = Callable[[Array], Array]


class Layers(NamedTuple):
    """weights: a pytree, every leaf with a leading axis of L layers. apply: (tokens (B, T, D), one layer's
    weights, and what an adapter does inside: see `adapters.protocol.RunBlock`) -> (B, T, D)."""

    weights: Any
    apply: ApplyLayer


class ApplyLayer(Protocol):
    def __call__(
        self, x: Array, layer: Any, edit: Edit | None = None, beside: Beside | None = None
    ) -> Array: ...


class Encoder(Protocol):
    """What the backbone needs of an encoder."""

    config: EncoderConfig

    def grid(self, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """Patches along height and width of an image (B, H, W, C)."""
        ...

    def embed(self, image: Array) -> Array:
        """A normalised image (B, H, W, C) -> tokens (B, prefix + N, D), before the first layer."""
        ...

    def stacked(self, h: int, w: int) -> Layers:
        """The layers, ready to be scanned over a grid of h x w patches."""
        ...
