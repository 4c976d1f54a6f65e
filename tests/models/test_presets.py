"""Published encoders: the exact number of parameters, and a forward pass at full size."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from spectralmoe_jax.config.adapters import SpectralMoEConfig
from spectralmoe_jax.config.model import EncoderConfig, Mask2FormerConfig
from spectralmoe_jax.config.presets import FAMILIES, PRESETS, Family, preset
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.backbone import make_encoder
from spectralmoe_jax.models.encoders.encoder import all_layers
from spectralmoe_jax.models.segmenter import SegmenterConfig
from spectralmoe_jax.parameters import leaves

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
transformers = pytest.importorskip("transformers", reason="needs the extra `test`")

# The configurations that are published with the weights, as transformers reads them: width, layers, heads and
# what differs from the class's own defaults.
DINOV3 = {
    "dinov3_s": (384, 12, 6, 1536, {}),
    "dinov3_s_plus": (384, 12, 6, 1536, {"use_gated_mlp": True}),
    "dinov3_b": (768, 12, 12, 3072, {}),
    "dinov3_l": (1024, 24, 16, 4096, {}),
    "dinov3_l_sat": (1024, 24, 16, 4096, {}),
    "dinov3_h_plus": (1280, 32, 20, 5120, {"use_gated_mlp": True}),
    "dinov3_7b": (4096, 40, 32, 8192, {"use_gated_mlp": True, "query_bias": False, "value_bias": False}),
}
DINOV2 = {
    "dinov2_s": (384, 12, 6), "dinov2_b": (768, 12, 12), "dinov2_l": (1024, 24, 16),
    "dinov2_g": (1536, 40, 24),
    "depth_anything_v2_s": (384, 12, 6), "depth_anything_v2_b": (768, 12, 12),
    "depth_anything_v2_l": (1024, 24, 16),
    "prompt_depth_anything_s": (384, 12, 6), "prompt_depth_anything_l": (1024, 24, 16),
}  # fmt: skip
CLIP = {
    "clip_b32": (768, 12, 12, 3072, 32, 224), "clip_b16": (768, 12, 12, 3072, 16, 224),
    "clip_l14": (1024, 24, 16, 4096, 14, 224), "clip_l14_336": (1024, 24, 16, 4096, 14, 336),
}  # fmt: skip
SAM = {
    "sam_b": (768, 12, 12, [2, 5, 8, 11]), "sam_l": (1024, 24, 16, [5, 11, 17, 23]),
    "sam_h": (1280, 32, 16, [7, 15, 23, 31]),
}  # fmt: skip
EVA02 = {"eva02_b": (768, 12, 2048), "eva02_l": (1024, 24, 2730)}  # width, layers, hidden width
DOFA = {"dofa_b": (768, 12, 12), "dofa_l": (1024, 24, 16)}
# values of the published files: all 175 tensors of SoftCon's, and of Copernicus-FM's 201 the 177 that serve
# bands with wavelengths; the whole file has 139,451,008
FILES = {"softcon_s": 22_381_824, "softcon_b": 87_230_976, "copernicus_fm_b": 139_451_008 - 26_366_336}
GALILEO = {"galileo_nano": (128, 4, 8), "galileo_tiny": (192, 12, 3), "galileo_base": (768, 12, 12)}
# millions, as the model cards of the weights at 224 pixels give them; these count a final norm
EVA02_CARDS = {"eva02_b": 85.8, "eva02_l": 303.3}


def sized(width, layers, heads):
    return {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}


def published(name: str) -> int:
    """Parameters of the model that others define."""
    if name in FILES:
        return FILES[name]
    with torch.device("meta"):
        return sum(parameter.numel() for module in modules(name) for parameter in module.parameters())


def modules(name: str) -> list:
    if name in DINOV3:
        *size, hidden, more = DINOV3[name]
        config = transformers.DINOv3ViTConfig(
            **sized(*size), patch_size=16, intermediate_size=hidden, num_register_tokens=4, **more
        )
        return [transformers.DINOv3ViTModel(config)]
    if (own := name.removesuffix("_reg")) in DINOV2:
        sizes = {**sized(*DINOV2[own]), "patch_size": 14, "image_size": 518}
        sizes["use_swiglu_ffn"] = own == "dinov2_g"
        if name == own:
            return [transformers.Dinov2Model(transformers.Dinov2Config(**sizes))]
        config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=4)
        return [transformers.Dinov2WithRegistersModel(config)]
    if name in CLIP:
        *size, hidden, patch, image = CLIP[name]
        config = transformers.CLIPVisionConfig(
            **sized(*size), intermediate_size=hidden, patch_size=patch, image_size=image
        )
        return [transformers.CLIPVisionModel(config)]
    if name in SAM:
        *size, everywhere = SAM[name]
        config = transformers.SamVisionConfig(
            **sized(*size), mlp_dim=4 * size[0], global_attn_indexes=everywhere
        )
        return [transformers.SamVisionModel(config)]
    if name in GALILEO:
        return galileo(*GALILEO[name])
    return eva02(*EVA02[name]) if name in EVA02 else dofa(*DOFA[name])


def tokens(*shape):
    return torch.nn.ParameterList([torch.empty(shape)])


def eva02(width, layers, hidden) -> list:
    """EVA-02 of 14-pixel patches at 224 pixels: queries and values have biases, keys none."""
    linear, norm = torch.nn.Linear, torch.nn.LayerNorm
    stem = [torch.nn.Conv2d(3, width, 14), tokens(1 + 16 * 16, width), tokens(1, width)]
    block = [
        norm(width), linear(width, width), linear(width, width, bias=False), linear(width, width),
        linear(width, width), norm(width), linear(width, hidden), linear(width, hidden), norm(hidden),
        linear(hidden, width),
    ]  # fmt: skip
    return stem + layers * block


def galileo(width, layers, heads) -> list:
    """Galileo: kernels of 8 x 8 pixels for each group of channels, linear layers for data without pixels,
    tables of a quarter of the width, of which those of dates and months are no parameters there."""
    kernels = [torch.nn.Conv2d(channels, width, 8) for channels in (2, 3, 3, 1, 1, 2, 1, 2, 9, 5)]
    linear = [torch.nn.Linear(channels, width) for channels in (2, 3, 1, 1, 3, 9, 5)]
    tables = [tokens(rows, width // 4) for rows in (7, 3, 3, 4, 24, 12)]
    block = torch.nn.TransformerEncoderLayer(width, heads, 4 * width)
    return [*kernels, *linear, *tables, *layers * [block], torch.nn.LayerNorm(width)]


def dofa(width, layers, heads) -> list:
    """DOFA at 224 pixels, patches of 16; its table, no parameter there, is counted. The stem's generator is
    128 wide, with 128 weight tokens, a bias token and one layer of torch's transformer."""
    linear, layer = torch.nn.Linear, torch.nn.TransformerEncoderLayer
    generator = [
        linear(128, 128), linear(128, 128), tokens(128, 128), tokens(1, 128), layer(128, 4, 2048),
        linear(128, 16 * 16 * width), linear(128, width),
    ]  # fmt: skip
    return [
        *generator,
        tokens(1 + 14 * 14, width),
        tokens(1, width),
        *layers * [layer(width, heads, 4 * width)],
    ]


def config_of(name: str) -> EncoderConfig:
    family = FAMILIES.get(PRESETS[name]["kind"], Family())
    bands = {"in_channels": len(family.bands) or 3}
    if family.wavelengths:
        bands |= {"wavelengths": (0.665, 0.56, 0.49), "bandwidths": (0.03, 0.035, 0.065)}
    return EncoderConfig(**preset(name, "preset"), **bands)


@pytest.mark.parametrize("name", PRESETS)
def test_parameters(name):
    """Exactly as many as the published model has."""
    config = config_of(name)
    found = leaves(nnx.eval_shape(lambda: make_encoder(config, rngs=nnx.Rngs(0))))
    # computed, or left out by transformers
    absent = {"rope_periods", "bias_mask", "cls_norm", "local_cls_norm"}
    absent |= {"patch_kernel", "patch_bias"} if config.family.wavelengths else set()
    count = sum(math.prod(leaf.shape) for path, leaf in found.items() if not absent & set(path))
    keys = 0 if config.family.key_bias or not config.qkv_bias else config.layers * config.width
    assert count - keys == published(name)
    if name in EVA02_CARDS:
        assert round((count - keys + 2 * config.width) / 1e6, 1) == EVA02_CARDS[name]
    assert all(leaf.shape[0] == config.layers for path, leaf in found.items() if path[0] == "blocks")


@pytest.mark.parametrize(
    "name",
    ["dinov3_7b", "dinov2_g_reg", "dofa_l", "clip_l14", "sam_h", "eva02_l", "softcon_b", "copernicus_fm_b"],
)
def test_forward_at_real_size(name):
    config = config_of(name)
    side = 20 * config.patch_size

    def forward():
        encoder = make_encoder(config, rngs=nnx.Rngs(0))
        return all_layers(encoder, jnp.zeros((1, side, side, config.in_channels), jnp.bfloat16))

    tokens = jax.eval_shape(forward)
    assert tokens.shape == (config.layers, 1, config.prefix_tokens + 400, config.width)
    assert tokens.dtype == jnp.bfloat16


def test_patch_sizes_that_differ():
    visual = EncoderConfig(**preset("dinov3_l", "preset"))
    depth = EncoderConfig(**preset("depth_anything_v2_l", "preset"), name="depth")
    message = (
        r"depth\.patch_size = 14: must equal .*; config\.model\.depth\.patch_size=16 resamples its weights"
    )
    with pytest.raises(UserError, match=message):
        SegmenterConfig(visual, depth, SpectralMoEConfig(preset="released"), Mask2FormerConfig())


def test_unknown_preset():
    with pytest.raises(UserError, match=r"config\.model\.visual\.preset = 'dinov4': must be one of dinov3_s"):
        preset("dinov4", "config.model.visual.preset")
