"""Published encoders: properties of their families, and the sizes of each `preset`.

Sizes are those of the publications and the released configuration files. Patch sizes and position tables are
as published; a configuration may choose others, and both are then resampled when the weights are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from spectralmoe_jax.errors import bad_value

Fields = dict[str, Any]

SENTINEL2_BANDS = (
    "B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12",
)  # fmt: skip
"""Bands of Sentinel-2 in the order of its files, named as in `sensors.band_tables`."""


class Family(NamedTuple):
    """Properties of a family of vision transformers.

    Attributes:
      rope: rotary positions, `centred` (DINOv3), `stretched` (EVA-02) or "".
      table: whether a position table is added to the tokens.
      key_bias: whether the key projection has a bias.
      patch_bias: whether the patch embedding has a bias.
      norm_first: whether a norm follows the embedding (CLIP).
      ffn_norm: whether the feed-forward block has a norm inside (EVA-02).
      activation: activation function of the feed-forward blocks.
      layer_scale: whether the blocks have LayerScale.
      padding: padding of the patch convolution in pixels.
      wavelengths: whether the patch embedding is generated from the bands' wavelengths.
      mask_token: whether the published weights hold one; the features do not use it.
      final_norm: whether the weights hold a norm after the last block.
      bandwidths: whether the patch embedding is generated from the bands' bandwidths too.
      metadata: whether place, date and ground resolution of the images are added to the tokens.
      bands: the bands of the weights in their order, by the names of Sentinel-2; empty for any bands.
      absent_bands: those of `bands` that images may lack: the encoder sees zeros, after normalisation.
      pixel_range: range to which normalised pixels are clipped; None for none.
      table_offset: added to the sides of a grid before its positions are sampled from the table.
      table_antialias: whether position tables are resampled with antialiasing in all sizes.
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
    bandwidths: bool = False
    metadata: bool = False
    bands: tuple[str, ...] = ()
    absent_bands: tuple[str, ...] = ()
    pixel_range: tuple[float, float] | None = None
    table_offset: float = 0.0
    table_antialias: bool = False


FAMILIES = {
    "dinov3": Family(rope="centred", table=False, key_bias=False, layer_scale=True, mask_token=True),
    "dinov2": Family(layer_scale=True, mask_token=True),
    "dofa": Family(padding=1, wavelengths=True, final_norm=False),
    "clip": Family(patch_bias=False, norm_first=True, activation="quick_gelu"),
    "eva02": Family(rope="stretched", key_bias=False, ffn_norm=True, final_norm=False),
    "softcon": Family(
        layer_scale=True, mask_token=True, bands=SENTINEL2_BANDS, absent_bands=("B10",),
        pixel_range=(0.0, 1.0), table_offset=0.1,
    ),
    "copernicus_fm": Family(
        padding=1, wavelengths=True, bandwidths=True, metadata=True, table_antialias=True, final_norm=False
    ),
}  # fmt: skip
KINDS = (*FAMILIES, "sam", "galileo")

# Groups of Galileo's optical channels, in the order of its tokens, under its own names of the channels. All
# tokens of a place see the same pixels, each group its own channels of them.
GALILEO_GROUPS: dict[str, tuple[str, ...]] = {
    "S2_RGB": ("B2", "B3", "B4"),
    "S2_Red_Edge": ("B5", "B6", "B7"),
    "S2_NIR_10m": ("B8",),
    "S2_NIR_20m": ("B8A",),
    "S2_SWIR": ("B11", "B12"),
    "NDVI": ("B8", "B4"),
}


def _size(width: int, layers: int, heads: int) -> Fields:
    return {"width": width, "layers": layers, "heads": heads}


SMALL, BASE, LARGE = _size(384, 12, 6), _size(768, 12, 12), _size(1024, 24, 16)
HUGE, GIANT, SEVEN_B = _size(1280, 32, 20), _size(1536, 40, 24), _size(4096, 40, 32)

_DINOV3 = {"kind": "dinov3", "patch_size": 16, "storage_tokens": 4, "norm_eps": 1e-5}
_DINOV2 = {"kind": "dinov2", "patch_size": 14, "table_size": 37, "norm_eps": 1e-6}
_REGISTERS = {"storage_tokens": 4, "table_antialias": True}
_GIANT_FFN = {"ffn": "swiglu", "mlp_width": 4096}
_DOFA = {"kind": "dofa", "patch_size": 16, "table_size": 14, "norm_eps": 1e-6}
_CLIP = {"kind": "clip", "norm_eps": 1e-5}
_SAM = {"kind": "sam", "patch_size": 16, "table_size": 64, "window": 14, "norm_eps": 1e-6}
_GALILEO = {
    "kind": "galileo", "patch_size": 4, "norm_eps": 1e-5, "window": 8, "normalise_maps": True,
}  # fmt: skip
_SOFTCON = {"kind": "softcon", "patch_size": 14, "table_size": 16, "norm_eps": 1e-6}
_COPERNICUS_FM = {"kind": "copernicus_fm", "patch_size": 16, "table_size": 14, "norm_eps": 1e-6}
_EVA02 = {"kind": "eva02", "patch_size": 14, "table_size": 16, "norm_eps": 1e-6, "ffn": "swiglu"}

PRESETS: dict[str, Fields] = {
    "dinov3_s": {**_DINOV3, **SMALL},
    "dinov3_s_plus": {**_DINOV3, **SMALL, "ffn": "swiglu", "mlp_width": 1536},
    "dinov3_b": {**_DINOV3, **BASE},
    "dinov3_l": {**_DINOV3, **LARGE},
    "dinov3_l_sat": {**_DINOV3, **LARGE, "untied_norms": ("local_cls_norm",)},
    "dinov3_h_plus": {**_DINOV3, **HUGE, "ffn": "swiglu", "mlp_width": 5120},
    "dinov3_7b": {
        **_DINOV3, **SEVEN_B, "ffn": "swiglu", "mlp_width": 8192, "qkv_bias": False,
        "untied_norms": ("local_cls_norm",),
    },
    "dinov2_s": {**_DINOV2, **SMALL},
    "dinov2_b": {**_DINOV2, **BASE},
    "dinov2_l": {**_DINOV2, **LARGE},
    "dinov2_g": {**_DINOV2, **GIANT, **_GIANT_FFN},
    "dinov2_s_reg": {**_DINOV2, **SMALL, **_REGISTERS},
    "dinov2_b_reg": {**_DINOV2, **BASE, **_REGISTERS},
    "dinov2_l_reg": {**_DINOV2, **LARGE, **_REGISTERS},
    "dinov2_g_reg": {**_DINOV2, **GIANT, **_GIANT_FFN, **_REGISTERS},
    "dofa_b": {**_DOFA, **BASE},
    "dofa_l": {**_DOFA, **LARGE},
    "clip_b32": {**_CLIP, **BASE, "patch_size": 32, "table_size": 7},
    "clip_b16": {**_CLIP, **BASE, "patch_size": 16, "table_size": 14},
    "clip_l14": {**_CLIP, **LARGE, "patch_size": 14, "table_size": 16},
    "clip_l14_336": {**_CLIP, **LARGE, "patch_size": 14, "table_size": 24},
    "sam_b": {**_SAM, **BASE, "global_every": 3},
    "sam_l": {**_SAM, **LARGE, "global_every": 6},
    "sam_h": {**_SAM, **_size(1280, 32, 16), "global_every": 8},
    "eva02_b": {**_EVA02, **BASE, "mlp_width": 2048},
    "eva02_l": {**_EVA02, **LARGE, "mlp_width": 2730},
    "galileo_nano": {**_GALILEO, **_size(128, 4, 8)},
    "galileo_tiny": {**_GALILEO, **_size(192, 12, 3)},
    "galileo_base": {**_GALILEO, **BASE},
    "softcon_s": {**_SOFTCON, **SMALL},
    "softcon_b": {**_SOFTCON, **BASE},
    "copernicus_fm_b": {**_COPERNICUS_FM, **BASE},
    "depth_anything_v2_s": {**_DINOV2, **SMALL},
    "depth_anything_v2_b": {**_DINOV2, **BASE},
    "depth_anything_v2_l": {**_DINOV2, **LARGE},
    "prompt_depth_anything_s": {**_DINOV2, **SMALL},
    "prompt_depth_anything_l": {**_DINOV2, **LARGE},
}  # fmt: skip


def preset(name: str, key: str) -> Fields:
    """Return the sizes of a published encoder.

    Args:
      name: one of `PRESETS`.
      key: key that gives the name, for the error message.

    Raises:
      UserError: the name is unknown.
    """
    if name not in PRESETS:
        raise bad_value(key, name, f"must be one of {', '.join(PRESETS)}")
    return dict(PRESETS[name])


def kind_of(encoder: Mapping[str, Any]) -> str | None:
    """Return the family of an encoder's section from its `kind` or `preset`; None if it has neither."""
    if not isinstance(encoder, Mapping):
        return None  # whoever reads the section refuses it
    kind = encoder.get("kind") or PRESETS.get(str(encoder.get("preset")), {}).get("kind")
    return kind if isinstance(kind, str) else None
