"""What every encoder is: its settings, and what the backbone asks of it.

One module, `vit.VisionTransformer`, serves the families of `FAMILIES`; `sam.SamEncoder` serves SAM.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from jax import Array

from spectralmoe_jax.errors import UserError


class Family(NamedTuple):
    """What sets a family of vision transformers apart.

    rope: rotary positions, `centred` (DINOv3), `stretched` (EVA-02) or "". table: a position table is added
    to the tokens. key_bias, patch_bias: whether they exist. norm_first: a norm after the embedding (CLIP).
    ffn_norm: a norm inside the feed-forward block (EVA-02). layer_scale: has LayerScale. padding: of the
    patch convolution, in pixels. wavelengths: the patch embedding is generated from the bands' wavelengths.
    mask_token: comes with the published weights, unused by the features.
    """

    rope: str = ""
    table: bool = True
    key_bias: bool = True
    patch_bias: bool = True
    norm_first: bool = False
    ffn_norm: bool = False
    activation: str = "gelu"
    layer_scale: bool = False
    padding: int = 0
    wavelengths: bool = False
    mask_token: bool = False
    final_norm: bool = True


FAMILIES = {
    "dinov3": Family(rope="centred", table=False, key_bias=False, layer_scale=True, mask_token=True),
    "dinov2": Family(layer_scale=True, mask_token=True),
    "dofa": Family(padding=1, wavelengths=True, final_norm=False),
    "clip": Family(patch_bias=False, norm_first=True, activation="quick_gelu"),
    "eva02": Family(rope="stretched", key_bias=False, ffn_norm=True, final_norm=False),
}
KINDS = (*FAMILIES, "sam")
FFNS = ("mlp", "swiglu")
EXTRA_BANDS = ("modulo", "mean", "zero")
UNTIED_NORMS = ("cls_norm", "local_cls_norm")


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder.

    Attributes:
      kind: the family, one of `KINDS`.
      width, layers, heads: of the transformer. patch_size: pixels along a patch's edge.
      in_channels: bands of the input.
      mlp_ratio: hidden width of the feed-forward blocks over `width`; rounded down, or exactly
        `mlp_width` where that is not 0.
      ffn: `mlp`, or `swiglu` (gate and value side by side in one projection).
      qkv_bias: whether the attention projections have biases (queries and values only in dinov3 and eva02).
      storage_tokens: register tokens after the class token.
      table_size: side of the position table's grid; other grids are resampled from it.
      table_antialias: resample tables with antialiasing, as DINOv2 with registers does.
      rope_base: of DINOv3's rotary positions. norm_eps: of every LayerNorm.
      layer_scale: initial LayerScale, in families that have it.
      untied_norms: further final norms that come with the weights (DINOv3 7B and SAT), of `UNTIED_NORMS`.
      wavelengths: of the bands in micrometres (dofa).
      extra_bands: kernels of bands beyond those of the weights that are read: `modulo` (band c takes channel
        c mod 3), `mean` of the channels, or `zero`.
      window: side of an attention window, in patches; global_every: every which layer sees all (sam).
      neck_width: channels after the neck that comes with the weights, unused by the features (sam).
      band_names: of the input, from `config.bands`.
      trainable: True makes the weights parameters, not frozen.
    """

    kind: str = "dinov3"
    width: int = 1024
    layers: int = 24
    heads: int = 16
    patch_size: int = 16
    in_channels: int = 3
    mlp_ratio: float = 4.0
    mlp_width: int = 0
    ffn: str = "mlp"
    qkv_bias: bool = True
    storage_tokens: int = 0
    table_size: int = 32
    table_antialias: bool = False
    rope_base: float = 100.0
    norm_eps: float = 1e-5
    layer_scale: float = 1e-5
    untied_norms: tuple[str, ...] = ()
    wavelengths: tuple[float, ...] = ()
    extra_bands: str = "modulo"
    window: int = 14
    global_every: int = 3
    neck_width: int = 256
    band_names: tuple[str, ...] = ()
    trainable: bool = False
    name: str = "visual"

    def __post_init__(self):
        def require(condition: bool, key: str, message: str) -> None:
            if not condition:
                raise UserError(f"config.model.{self.name}.{key} = {getattr(self, key)!r}: {message}")

        require(self.kind in KINDS, "kind", f"choose from {', '.join(KINDS)}")
        require(self.ffn in FFNS, "ffn", f"choose from {', '.join(FFNS)}")
        require(self.extra_bands in EXTRA_BANDS, "extra_bands", f"choose from {', '.join(EXTRA_BANDS)}")
        for key in ("width", "layers", "heads", "patch_size", "in_channels", "table_size", "window"):
            require(getattr(self, key) >= 1, key, "must be at least 1")
        require(self.width % self.heads == 0, "heads", f"must divide width = {self.width}")
        if self.family.rope:
            message = "width / heads must be a multiple of 4 for rotary positions"
            require(self.head_dim % 4 == 0, "heads", message)
        require(set(self.untied_norms) <= set(UNTIED_NORMS), "untied_norms", f"choose from {UNTIED_NORMS}")
        if self.family.wavelengths:
            self._check_wavelengths(require)
        elif self.kind == "sam":
            message = f"must be at least 2 and divide the number of layers, {self.layers}"
            require(self.global_every >= 2 and self.layers % self.global_every == 0, "global_every", message)

    def _check_wavelengths(self, require: Callable[[bool, str, str], None]) -> None:
        count = f"give one wavelength for each of the {self.in_channels} bands, in micrometres"
        require(len(self.wavelengths) == self.in_channels, "wavelengths", count)
        low, high = WAVELENGTH_RANGE
        inside = all(low <= wavelength <= high for wavelength in self.wavelengths)
        require(inside, "wavelengths", f"micrometres between {low} and {high} (0.49 for blue, not 490)")

    @property
    def family(self) -> Family:
        return FAMILIES.get(self.kind, Family())

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward blocks."""
        return self.mlp_width or int(self.width * self.mlp_ratio)

    @property
    def prefix_tokens(self) -> int:
        """Class and storage tokens, which stand before the patch tokens."""
        return 0 if self.kind == "sam" else 1 + self.storage_tokens


WAVELENGTH_RANGE = (0.3, 15.0)  # micrometres: ultraviolet to thermal infrared


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
