"""Names of the authors' released state dict, and where each tensor stands in our model."""

from __future__ import annotations

import os

from safetensors import SafetensorError
from safetensors.numpy import load_file

from spectralmoe_jax.checkpoints.released_head import head_rules
from spectralmoe_jax.checkpoints.rules import Path, Rule, read_tensors
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.segmenter import Segmenter
from spectralmoe_jax.models.state import fill, leaves

ADAPTER = [
    Rule("experts_a.{layer}.{expert}", ("experts_a",)),
    Rule("experts_b.{layer}.{expert}", ("experts_b",)),
    Rule("w_gate.{layer}.{modality}", ("w_gate",)),
    Rule("w_noise.{layer}.{modality}", ("w_noise",)),
    Rule("scale", ("scale",)),
    Rule("mlp_token2feat.weight", ("token_to_feature", "kernel"), "linear"),
    Rule("mlp_token2feat.bias", ("token_to_feature", "bias")),
    Rule("mlp_delta_f.weight", ("delta_to_feature", "kernel"), "linear"),
    Rule("mlp_delta_f.bias", ("delta_to_feature", "bias")),
    Rule("transform.weight", ("transform", "kernel"), "linear"),
    Rule("transform.bias", ("transform", "bias")),
    Rule("merge.weight", ("merge", "kernel"), "linear"),
    Rule("merge.bias", ("merge", "bias")),
]
# mean and deviation of the normal distribution behind the smooth load
ADAPTER_CONSTANTS = {"mean": 0.0, "std": 1.0}

_BLOCK = [
    ("norm1.weight", ("norm1", "scale"), "copy"),
    ("norm1.bias", ("norm1", "bias"), "copy"),
    ("attn.qkv.weight", ("attention", "qkv", "kernel"), "linear"),
    ("attn.qkv.bias", ("attention", "qkv", "bias"), "copy"),
    ("attn.qkv.bias_mask", ("attention", "bias_mask"), "copy"),
    ("attn.proj.weight", ("attention", "out", "kernel"), "linear"),
    ("attn.proj.bias", ("attention", "out", "bias"), "copy"),
    ("ls1.gamma", ("scale1",), "copy"),
    ("norm2.weight", ("norm2", "scale"), "copy"),
    ("norm2.bias", ("norm2", "bias"), "copy"),
    ("mlp.fc1.weight", ("mlp", "first", "kernel"), "linear"),
    ("mlp.fc1.bias", ("mlp", "first", "bias"), "copy"),
    ("mlp.fc2.weight", ("mlp", "last", "kernel"), "linear"),
    ("mlp.fc2.bias", ("mlp", "last", "bias"), "copy"),
    ("ls2.gamma", ("scale2",), "copy"),
]
ENCODER = [
    Rule("patch_embed.proj.weight", ("patch_kernel",), "conv"),
    Rule("patch_embed.proj.bias", ("patch_bias",)),
    Rule("cls_token", ("class_token",), "squeeze"),
    Rule("storage_tokens", ("storage_tokens",), "squeeze"),
    Rule("pos_embed", ("position_table",), "squeeze"),
    Rule("rope_embed.periods", ("rope_periods",)),
    Rule("mask_token", ("mask_token",)),
    Rule("norm.weight", ("norm", "scale")),
    Rule("norm.bias", ("norm", "bias")),
    *(Rule("blocks.{layer}." + name, ("blocks", *path), move) for name, path, move in _BLOCK),
]
PIXELS = [
    Rule("data_preprocessor.mean", ("pixel_mean",), "per_band"),
    Rule("data_preprocessor.std", ("pixel_std",), "per_band"),
]


def under(prefix: str, path: Path, rules: list[Rule]) -> list[Rule]:
    """The same rules for a module that stands at `path` in ours and at `prefix` in the released names."""
    return [rule.under(prefix, path) for rule in rules]


def segmenter_rules() -> list[Rule]:
    """The whole segmenter, `backbone.*`, `decode_head.*` and `data_preprocessor.*`."""
    return [
        *under("backbone.", ("backbone", "visual"), ENCODER),
        *under("backbone.depth_anything.pretrained.", ("backbone", "depth"), ENCODER),
        *under("backbone.depthmoe.", ("backbone", "adapter"), ADAPTER),
        *head_rules("decode_head.", ("head",)),
        *PIXELS,
    ]


SEGMENTER_CONSTANTS = {"backbone.depthmoe." + name: value for name, value in ADAPTER_CONSTANTS.items()}


def load_released(segmenter: Segmenter, file: str | os.PathLike[str]) -> None:
    """Fill a segmenter with a safetensors file in the released names, strictly.

    Raises UserError where the file is missing or broken, or, listing all problems together, where a leaf
    stays empty, a tensor is left over or a shape differs; the segmenter is then unchanged.
    """
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as problem:
        raise UserError(f"{file}: not a readable safetensors file ({problem})") from None
    shapes = {path: leaf.shape for path, leaf in leaves(segmenter).items()}
    fill(
        segmenter,
        read_tensors(segmenter_rules(), shapes, tensors, source=str(file), constants=SEGMENTER_CONSTANTS),
    )
