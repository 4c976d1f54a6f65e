"""Published encoders, one row each: what `config.model.visual.preset` and `config.model.depth.preset` name.

Sizes are those of the publications and the released configuration files. Patch sizes and position tables are
as published; a config may ask for others, and both are then resampled when the weights are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spectralmoe_jax.errors import UserError

Fields = dict[str, Any]
_FROM_WAVELENGTHS = ("dofa",)


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
    "depth_anything_v2_s": {**_DINOV2, **SMALL},
    "depth_anything_v2_b": {**_DINOV2, **BASE},
    "depth_anything_v2_l": {**_DINOV2, **LARGE},
    "prompt_depth_anything_s": {**_DINOV2, **SMALL},
    "prompt_depth_anything_l": {**_DINOV2, **LARGE},
}  # fmt: skip


def preset(name: str, key: str) -> Fields:
    """The settings of a published encoder. Raises UserError, naming `key`, for an unknown one."""
    if name not in PRESETS:
        raise UserError(f"{key} = {name!r}: choose from {', '.join(PRESETS)}")
    return dict(PRESETS[name])


def takes_wavelengths(visual: Mapping[str, Any]) -> bool:
    """Whether the encoder of `config.model.visual` makes its patch embedding from wavelengths."""
    kind = visual.get("kind") or PRESETS.get(str(visual.get("preset")), {}).get("kind")
    return kind in _FROM_WAVELENGTHS
