"""The released names of the Mask2Former head's weights."""

from __future__ import annotations

from spectralmoe_jax.checkpoints.rules import Path, Rule

_ENCODER = "pixel_decoder.encoder.layers.{layer}"
_DECODER = "transformer_decoder.layers.{layer}"


def head_rules(root: str = "decode_head.", path: Path = ("head",)) -> list[Rule]:
    """One rule for every leaf of `Mask2FormerHead`.

    Args:
      root: what the released names start with. path: where the head stands in the model.
    """
    pixel, decoder = ("pixel_decoder",), ("transformer_decoder",)
    encoder, layers = (*pixel, "encoder"), (*decoder, "layers")
    rules = [
        Rule("query_feat.weight", ("query_feat",)),
        Rule("level_embed.weight", ("level_embed",)),
        *_linear("cls_embed", ("cls_embed",)),
        *_linear("mask_embed.0", ("mask_embed", "first")),
        *_linear("mask_embed.2", ("mask_embed", "second")),
        *_linear("mask_embed.4", ("mask_embed", "third")),
        Rule("pixel_decoder.level_encoding.weight", (*pixel, "level_encoding")),
        *_linear("pixel_decoder.input_convs.{level}.conv", (*pixel, "input_convs", "conv"), "conv1x1"),
        *_norm("pixel_decoder.input_convs.{level}.gn", (*pixel, "input_convs", "gn")),
        Rule(
            "pixel_decoder.lateral_convs.0.conv.weight", (*pixel, "lateral_conv", "conv", "kernel"), "conv1x1"
        ),
        *_norm("pixel_decoder.lateral_convs.0.gn", (*pixel, "lateral_conv", "gn")),
        Rule("pixel_decoder.output_convs.0.conv.weight", (*pixel, "output_conv", "conv", "kernel"), "conv"),
        *_norm("pixel_decoder.output_convs.0.gn", (*pixel, "output_conv", "gn")),
        *_linear("pixel_decoder.mask_feature", (*pixel, "mask_feature"), "conv1x1"),
        *(
            rule
            for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
            for rule in _linear(f"{_ENCODER}.self_attn.{name}", (*encoder, "self_attn", name))
        ),
        *_feed_forward(_ENCODER, encoder),
        *_norm(f"{_ENCODER}.norms.0", (*encoder, "norm_attention")),
        *_norm(f"{_ENCODER}.norms.1", (*encoder, "norm_ffn")),
        *_attention("cross_attn", layers),
        *_attention("self_attn", layers),
        *_feed_forward(_DECODER, layers),
        *_norm(f"{_DECODER}.norms.0", (*layers, "norm_cross")),
        *_norm(f"{_DECODER}.norms.1", (*layers, "norm_self")),
        *_norm(f"{_DECODER}.norms.2", (*layers, "norm_ffn")),
        *_norm("transformer_decoder.post_norm", (*decoder, "post_norm")),
    ]
    return [rule.under(root, path) for rule in rules]


def _linear(name: str, path: Path, transform: str = "linear") -> list[Rule]:
    return [Rule(f"{name}.weight", (*path, "kernel"), transform), Rule(f"{name}.bias", (*path, "bias"))]


def _norm(name: str, path: Path) -> list[Rule]:
    return [Rule(f"{name}.weight", (*path, "scale")), Rule(f"{name}.bias", (*path, "bias"))]


def _feed_forward(name: str, path: Path) -> list[Rule]:
    return [
        *_linear(f"{name}.ffn.layers.0.0", (*path, "ffn", "hidden")),
        *_linear(f"{name}.ffn.layers.1", (*path, "ffn", "output")),
    ]


def _attention(kind: str, path: Path) -> list[Rule]:
    return [
        Rule(f"{_DECODER}.{kind}.attn.in_proj_weight", (*path, kind, "in_proj", "kernel"), "linear"),
        Rule(f"{_DECODER}.{kind}.attn.in_proj_bias", (*path, kind, "in_proj", "bias")),
        *_linear(f"{_DECODER}.{kind}.attn.out_proj", (*path, kind, "out_proj")),
    ]
