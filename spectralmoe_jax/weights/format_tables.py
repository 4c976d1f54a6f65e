"""Tensor names of published encoders, and the rules that follow from them.

Each `TensorNames` describes one published layout; the comment above it names the code that defines it.
`encoder_rules` turns a layout and an encoder's configuration into name rules.
"""

from __future__ import annotations

from typing import NamedTuple

from spectralmoe_jax.config.model import UNTIED_NORMS, EncoderConfig
from spectralmoe_jax.models.encoders.galileo import CONVOLUTIONS, LINEAR
from spectralmoe_jax.weights.name_rules import ZEROS, LeafPath, Rule


class TensorNames(NamedTuple):
    """Tensor names of one published layout of an encoder.

    Names of linear layers, convolutions and norms come without `.weight` and `.bias`. An empty name means
    that the layout has no such tensor.

    Attributes:
      patch: patch convolution.
      block: prefix of a block's names, with `{layer}`; the names below it in this list follow this prefix.
      qkv: one fused projection, or those of queries, keys and values.
      out: output projection of the attention.
      norm1: norm before the attention.
      norm2: norm before the feed-forward block.
      mlp: first layer of a plain feed-forward block.
      mlp_last: its second layer.
      gated: first layer of a SwiGLU block: one fused layer, or gate and value.
      gated_last: its second layer.
      class_token: name and transform.
      storage: register tokens.
      table: name and transform of the position table.
      mask: name and transform of the mask token.
      periods: periods of the rotary positions.
      bias_mask: mask of a fused projection's bias, in a block.
      scale1: LayerScale of the attention, in a block.
      scale2: LayerScale of the feed-forward block, in a block.
      norm: last norm.
      norm_first: norm before the first block.
      ffn_norm: norm inside the feed-forward block, in a block.
      relative: relative positions along one axis, with `{axis}`, in a block.
      generator: prefix of DOFA's kernel generator.
      metadata: prefixes of Copernicus-FM's metadata: location, area and date.
      qkv_biases: whole names of the projections' biases where they differ from `qkv`, in a block.
      neck: SAM's neck: first convolution, its norm, second convolution, its norm.
      groups: first tensor of Galileo's embeddings, which are named by `galileo_rules`.
    """

    patch: str
    block: str
    qkv: tuple[str, ...]
    out: str
    norm1: str
    norm2: str
    mlp: str
    mlp_last: str
    gated: tuple[str, ...] = ()
    gated_last: str = ""
    class_token: tuple[str, str] = ("", "")
    storage: str = ""
    table: tuple[str, str] = ("", "")
    mask: tuple[str, str] = ("", "")
    periods: str = ""
    bias_mask: str = ""
    scale1: str = ""
    scale2: str = ""
    norm: str = ""
    norm_first: str = ""
    ffn_norm: str = ""
    relative: str = ""
    generator: str = ""
    metadata: tuple[str, ...] = ()
    qkv_biases: tuple[str, ...] = ()
    neck: tuple[str, ...] = ()
    groups: str = ""

    @property
    def biases(self) -> tuple[str, ...]:
        """Names of the projections' biases within a block."""
        return self.qkv_biases or tuple(f"{name}.bias" for name in self.qkv)


# github.com/facebookresearch/dinov2, DinoVisionTransformer; (Prompt-)Depth-Anything has the same encoder
META_DINOV2 = TensorNames(
    patch="patch_embed.proj", block="blocks.{layer}.", qkv=("attn.qkv",), out="attn.proj",
    norm1="norm1", norm2="norm2", mlp="mlp.fc1", mlp_last="mlp.fc2", gated=("mlp.w12",), gated_last="mlp.w3",
    class_token=("cls_token", "squeeze"), storage="register_tokens", table=("pos_embed", "squeeze"),
    mask=("mask_token", "copy"), scale1="ls1.gamma", scale2="ls2.gamma", norm="norm",
)  # fmt: skip
# github.com/facebookresearch/dinov3, DinoVisionTransformer
META_DINOV3 = META_DINOV2._replace(
    gated=("mlp.w1", "mlp.w2"), storage="storage_tokens", periods="rope_embed.periods",
    bias_mask="attn.qkv.bias_mask", table=("", ""),
)  # fmt: skip
# github.com/zhu-xlab/DOFA, OFAViT
DOFA = META_DINOV2._replace(
    patch="", storage="", mask=("", ""), scale1="", scale2="", norm="", generator="patch_embed."
)
# github.com/zhu-xlab/Copernicus-FM, CopernicusFMViT
COPERNICUS_FM = DOFA._replace(
    generator="patch_embed_spectral.", metadata=("coord_", "scale_", "time_")
)  # fmt: skip
# github.com/huggingface/pytorch-image-models, Eva
TIMM_EVA02 = DOFA._replace(
    patch="patch_embed.proj", qkv=("attn.q_proj", "attn.k_proj", "attn.v_proj"),
    gated=("mlp.fc1_g", "mlp.fc1_x"), gated_last="mlp.fc2", ffn_norm="mlp.norm", generator="",
)  # fmt: skip
# github.com/baaivision/EVA, EVA-02; the released SpectralMoE code has the same names.
EVA02 = TIMM_EVA02._replace(
    gated=("mlp.w1", "mlp.w2"), gated_last="mlp.w3", ffn_norm="mlp.ffn_ln",
    qkv_biases=("attn.q_bias", "", "attn.v_bias"),
)  # fmt: skip
# github.com/facebookresearch/segment-anything, ImageEncoderViT
META_SAM = TensorNames(
    patch="patch_embed.proj", block="blocks.{layer}.", qkv=("attn.qkv",), out="attn.proj", norm1="norm1",
    norm2="norm2", mlp="mlp.lin1", mlp_last="mlp.lin2", table=("pos_embed", "grid"),
    relative="attn.rel_pos_{axis}", neck=("neck.0", "neck.1", "neck.2", "neck.3"),
)  # fmt: skip
# transformers, SamVisionModel
HF_SAM = META_SAM._replace(
    patch="patch_embed.projection", block="layers.{layer}.", norm1="layer_norm1", norm2="layer_norm2",
    neck=("neck.conv1", "neck.layer_norm1", "neck.conv2", "neck.layer_norm2"),
)  # fmt: skip
_ATTENTION = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
# transformers, DINOv3ViTModel
HF_DINOV3 = TensorNames(
    patch="embeddings.patch_embeddings", block="layer.{layer}.", qkv=_ATTENTION, out="attention.o_proj",
    norm1="norm1", norm2="norm2", mlp="mlp.up_proj", mlp_last="mlp.down_proj",
    gated=("mlp.gate_proj", "mlp.up_proj"), gated_last="mlp.down_proj",
    class_token=("embeddings.cls_token", "squeeze"), storage="embeddings.register_tokens",
    mask=("embeddings.mask_token", "squeeze"), scale1="layer_scale1.lambda1", scale2="layer_scale2.lambda1",
    norm="norm",
)  # fmt: skip
# transformers 5, Dinov2Model and Dinov2WithRegistersModel, as state_dict() gives them
HF_DINOV2_IN_MEMORY = TensorNames(
    patch="embeddings.patch_embeddings.projection", block="encoder.layer.{layer}.", qkv=_ATTENTION,
    out="attention.o_proj", norm1="norm1", norm2="norm2", mlp="mlp.fc1", mlp_last="mlp.fc2",
    gated=("mlp.gate_proj", "mlp.up_proj"), gated_last="mlp.down_proj",
    class_token=("embeddings.cls_token", "squeeze"), storage="embeddings.register_tokens",
    table=("embeddings.position_embeddings", "squeeze"), mask=("embeddings.mask_token", "copy"),
    scale1="layer_scale1.lambda1", scale2="layer_scale2.lambda1", norm="layernorm",
)  # fmt: skip
# transformers, Dinov2Model and Dinov2WithRegistersModel, as save_pretrained() and the hub have them
HF_DINOV2 = HF_DINOV2_IN_MEMORY._replace(
    qkv=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    out="attention.output.dense", gated=("mlp.weights_in",), gated_last="mlp.weights_out",
)  # fmt: skip
# transformers, CLIPVisionModel
HF_CLIP = TensorNames(
    patch="embeddings.patch_embedding", block="encoder.layers.{layer}.",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), out="self_attn.out_proj",
    norm1="layer_norm1", norm2="layer_norm2", mlp="mlp.fc1", mlp_last="mlp.fc2",
    class_token=("embeddings.class_embedding", "unsqueeze"),
    table=("embeddings.position_embedding.weight", "copy"), norm="post_layernorm", norm_first="pre_layrnorm",
)  # fmt: skip
# github.com/nasaharvest/galileo, Encoder
GALILEO = TensorNames(
    patch="", block="blocks.{layer}.", qkv=("attn.q", "attn.k", "attn.v"), out="attn.proj", norm1="norm1",
    norm2="norm2", mlp="mlp.fc1", mlp_last="mlp.fc2", norm="norm",
    groups="space_time_embed.S2_RGB.proj.weight",
)  # fmt: skip


def encoder_rules(names: TensorNames, config: EncoderConfig) -> list[Rule]:
    """Return the rules of an encoder under these names, perhaps with some for leaves that it lacks."""
    rules = []
    # tokens and positions
    tokens = (
        (names.class_token, "class_token"),
        (names.table, "position_table"),
        (names.mask, "mask_token"),
        ((names.storage, "squeeze"), "storage_tokens"),
        ((names.periods, "copy"), "rope_periods"),
    )
    rules += [Rule(name, (path,), move) for (name, move), path in tokens if name]
    # patch embedding: a convolution, or DOFA's generator of one
    if names.patch:
        rules += [
            Rule(f"{names.patch}.weight", ("patch_kernel",), "conv"),
            Rule(f"{names.patch}.bias", ("patch_bias",)),
        ]
    if names.generator:
        rules += [rule.under(names.generator, ("generator",)) for rule in generator_rules()]
    for prefix, kind in zip(names.metadata, ("location", "area", "date"), strict=False):
        rules += [Rule(f"{prefix}token", ("metadata", kind, "token"), "squeeze")]
        rules += _linear((f"{prefix}fc",), ("metadata", kind, "linear"))
    # norms before and after the blocks
    rules += _norm(names.norm_first, ("norm_first",)) + _norm(names.norm, ("norm",))
    for untied in UNTIED_NORMS:
        rules += _norm(untied, (untied,))
    # blocks
    rules += [rule.under(names.block, ("blocks",)) for rule in block_rules(names, config)]
    if names.relative:
        rules += _relative_positions(names, config)
    if names.groups:
        rules += galileo_rules()
    # SAM's neck
    if names.neck:
        first, norm1, second, norm2 = names.neck
        rules += [Rule(f"{first}.weight", ("neck_first",), "conv1x1"), *_norm(norm1, ("neck_norm1",))]
        rules += [Rule(f"{second}.weight", ("neck_second",), "conv"), *_norm(norm2, ("neck_norm2",))]
    return rules


def block_rules(names: TensorNames, config: EncoderConfig) -> list[Rule]:
    """Return the rules of one block, relative to it."""
    gated = config.ffn == "swiglu"
    first, last = (names.gated, names.gated_last) if gated else ((names.mlp,), names.mlp_last)
    biases = names.biases
    if len(biases) == 3 and not config.family.key_bias:
        biases = (biases[0], ZEROS, biases[2])
    rules = [
        *_norm(names.norm1, ("norm1",)),
        *_norm(names.norm2, ("norm2",)),
        Rule(tuple(f"{name}.weight" for name in names.qkv), ("attention", "qkv", "kernel"), "linear"),
        Rule(biases, ("attention", "qkv", "bias")),
        *_linear((names.out,), ("attention", "out")),
        *_linear(first, ("mlp", "first")),
        *_linear((last,), ("mlp", "last")),
        *_norm(names.ffn_norm, ("mlp", "norm")),
    ]
    singles = ((names.bias_mask, ("attention", "bias_mask")), (names.scale1, ("scale1",)))
    rules += [Rule(name, path) for name, path in (*singles, (names.scale2, ("scale2",))) if name]
    return rules


def generator_rules() -> list[Rule]:
    """Return the rules of a `KernelGenerator`: github.com/zhu-xlab/DOFA, Dynamic_MLP_OFA."""
    generator, layer = "weight_generator.", "weight_generator.transformer_encoder.layers.0."
    return [
        *_linear(("fclayer.w1",), ("token_in",)),
        *_linear(("fclayer.w2",), ("token_out",)),
        Rule(f"{generator}weight_tokens", ("weight_tokens",)),
        Rule(f"{generator}bias_token", ("bias_token",)),
        *_linear((f"{generator}fc_weight",), ("to_kernel",)),
        *_linear((f"{generator}fc_bias",), ("to_bias",)),
        Rule(f"{layer}self_attn.in_proj_weight", ("layer", "qkv", "kernel"), "linear"),
        Rule(f"{layer}self_attn.in_proj_bias", ("layer", "qkv", "bias")),
        *_linear((f"{layer}self_attn.out_proj",), ("layer", "out")),
        *_linear((f"{layer}linear1",), ("layer", "mlp_in")),
        *_linear((f"{layer}linear2",), ("layer", "mlp_out")),
        *_norm(f"{layer}norm1", ("layer", "norm1")),
        *_norm(f"{layer}norm2", ("layer", "norm2")),
    ]


def galileo_rules() -> list[Rule]:
    """Return the rules of Galileo's embeddings and encodings."""
    groups = {
        "space_time_tokens": "s_t_channel_embed", "space_tokens": "sp_channel_embed",
        "time_tokens": "t_channel_embed", "static_tokens": "st_channel_embed",
    }  # fmt: skip
    rules = [Rule(name, (path,)) for path, name in groups.items()]
    rules += [Rule("pos_embed", ("time_table",)), Rule("month_embed.weight", ("month_table",))]
    for module, channels in CONVOLUTIONS.items():
        for name in channels:
            rules += [
                Rule(f"{module}.{name}.proj.weight", (module, name, "kernel"), "conv"),
                Rule(f"{module}.{name}.proj.bias", (module, name, "bias")),
            ]
    for module, channels in LINEAR.items():
        for name in channels:
            rules += _linear((f"{module}.{name}",), (module, name))
    return rules


def global_layers(config: EncoderConfig) -> tuple[int, ...]:
    """Return the numbers of SAM's layers with global attention, from 0."""
    return tuple(range(config.global_every - 1, config.layers, config.global_every))


def _relative_positions(names: TensorNames, config: EncoderConfig) -> list[Rule]:
    """Return the rules of SAM's relative positions; windowed and global layers are stacked separately."""
    global_numbers = global_layers(config)
    windowed = tuple(layer for layer in range(config.layers) if layer not in global_numbers)
    return [
        Rule(names.block + names.relative.replace("{axis}", axis), (f"{kind}_rel_{axis}",), "copy", numbers)
        for kind, numbers in (("window", windowed), ("global", global_numbers))
        for axis in "hw"
    ]


def _linear(names: tuple[str, ...], path: LeafPath) -> list[Rule]:
    if not all(names) or not names:
        return []
    return [
        Rule(tuple(f"{name}.weight" for name in names), (*path, "kernel"), "linear"),
        Rule(tuple(f"{name}.bias" for name in names), (*path, "bias")),
    ]


def _norm(name: str, path: LeafPath) -> list[Rule]:
    return [Rule(f"{name}.weight", (*path, "scale")), Rule(f"{name}.bias", (*path, "bias"))] if name else []
