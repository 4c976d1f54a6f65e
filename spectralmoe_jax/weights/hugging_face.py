"""Encoders written as folders that transformers' from_pretrained reads."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spectralmoe_jax.config.model import UNTIED_NORMS, EncoderConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.weights import format_tables as rows
from spectralmoe_jax.weights import name_rules as rules
from spectralmoe_jax.weights.hub import CONFIG, WEIGHTS
from spectralmoe_jax.weights.writing import header, write_safetensors

log = logging.getLogger(__name__)

_NAMES = {"dinov3": rows.HF_DINOV3, "dinov2": rows.HF_DINOV2, "clip": rows.HF_CLIP, "sam": rows.HF_SAM}
_PREFIXES = {"clip": "vision_model.", "sam": "vision_encoder."}
# leaves that transformers computes, or that its models do not have
_NOT_STORED = ("rope_periods", "bias_mask", *UNTIED_NORMS)


def write_folder(
    folder: Path, config: EncoderConfig, shapes: Mapping[rules.Path, rules.Shape],
    leaves: Iterable[tuple[rules.Path, np.ndarray]], record: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write `config.json` and `model.safetensors` into a new folder, leaf by leaf.

    Args:
      shapes: of the encoder's leaves. leaves: each of these, once.
      record: where the weights came from, for the header.

    Raises UserError for an encoder that transformers does not have.
    """
    if config.kind not in _NAMES:
        raise UserError(f"--to hf: transformers is written for {', '.join(_NAMES)}, not for {config.kind}")
    settings = _settings(config)
    table = [
        rule.under(_PREFIXES.get(config.kind, ""), ())
        for rule in rows.encoder_rules(_NAMES[config.kind], config)
    ]
    left = sorted({part for path in shapes for part in path if part in _NOT_STORED})
    if left:
        log.info("%s: transformers does not store %s", folder.name, ", ".join(left))
    wanted = {path: shape for path, shape in shapes.items() if not set(path) & set(_NOT_STORED)}
    stored = ((path, leaf) for path, leaf in leaves if path in wanted)
    folder.mkdir()
    write_safetensors(
        folder / WEIGHTS, rules.written_shapes(table, wanted), rules.write_each(table, stored),
        {"format": "pt", **header(record)},
    )  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n")


def _settings(config: EncoderConfig) -> dict[str, Any]:
    """The contents of config.json."""
    gated = config.ffn == "swiglu"
    common = {
        "hidden_size": config.width, "num_hidden_layers": config.layers, "num_attention_heads": config.heads,
        "patch_size": config.patch_size, "num_channels": config.in_channels,
        "layer_norm_eps": config.norm_eps, "image_size": config.table_size * config.patch_size,
        "dtype": "float32",
    }  # fmt: skip
    if config.kind == "clip":
        return {
            **common, "model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"],
            "intermediate_size": config.hidden, "hidden_act": "quick_gelu",
        }  # fmt: skip
    if config.kind == "sam":
        everywhere = range(config.global_every - 1, config.layers, config.global_every)
        return {
            **common, "model_type": "sam_vision_model", "architectures": ["SamVisionModel"],
            "mlp_dim": config.hidden, "output_channels": config.neck_width, "window_size": config.window,
            "global_attn_indexes": list(everywhere), "qkv_bias": config.qkv_bias, "hidden_act": "gelu",
        }  # fmt: skip
    if config.kind == "dinov3":
        biases = {f"{part}_bias": config.qkv_bias for part in ("query", "value")}
        return {
            **common, **biases, "key_bias": False, "model_type": "dinov3_vit",
            "architectures": ["DINOv3ViTModel"], "intermediate_size": config.hidden,
            "hidden_act": "silu" if gated else "gelu", "use_gated_mlp": gated,
            "num_register_tokens": config.storage_tokens, "rope_theta": config.rope_base,
        }  # fmt: skip
    registers: dict[str, Any] = {"model_type": "dinov2", "architectures": ["Dinov2Model"]}
    if config.storage_tokens:
        registers = {
            "model_type": "dinov2_with_registers", "architectures": ["Dinov2WithRegistersModel"],
            "num_register_tokens": config.storage_tokens,
        }  # fmt: skip
    return {
        **common, **registers, "mlp_ratio": _dinov2_ratio(config), "qkv_bias": config.qkv_bias,
        "use_swiglu_ffn": gated, "hidden_act": "gelu",
    }  # fmt: skip


def _dinov2_ratio(config: EncoderConfig) -> int:
    """transformers rounds a gated block's two thirds of width * ratio up to a multiple of eight."""

    def hidden(ratio: int) -> int:
        wide = config.width * ratio
        return (wide * 2 // 3 + 7) // 8 * 8 if config.ffn == "swiglu" else wide

    for ratio in range(1, 17):
        if hidden(ratio) == config.hidden:
            return ratio
    raise UserError(
        f"--to hf: a hidden width of {config.hidden} for width {config.width} is none transformers has"
    )
