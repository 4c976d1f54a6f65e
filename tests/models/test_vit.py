"""The vision transformer against transformers' DINOv3 and DINOv2: random weights, every layer."""

import pytest

from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.encoders.encoder import patch_grid
from tests.models.other_libraries import (
    OUR_SIZES,
    SIZES,
    assert_layers_equal,
    block,
    encoder_like,
    images,
    norm,
    randomise,
)

transformers = pytest.importorskip("transformers", reason="needs the extra `test`")

NORMS = ("norm1", "norm2")
QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
SCALES = ("layer_scale1.lambda1", "layer_scale2.lambda1")
FEED_FORWARD = {
    ("dinov3", "mlp"): (("mlp.up_proj",), "mlp.down_proj"),
    ("dinov2", "mlp"): (("mlp.fc1",), "mlp.fc2"),
    ("dinov3", "swiglu"): (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
    ("dinov2", "swiglu"): (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
}
REGISTERS = [(("storage_tokens",), ("embeddings.register_tokens",), "0")]


def rows(kind, ffn, prefix):
    qkv = (QKV[0], QKV[1] + ":", QKV[2]) if kind == "dinov3" else QKV
    patch = "embeddings.patch_embeddings" + (".projection" if kind == "dinov2" else "")
    return [
        (("class_token",), ("embeddings.cls_token",), "0"),
        (("patch_kernel",), (f"{patch}.weight",), "conv"),
        (("patch_bias",), (f"{patch}.bias",), ""),
        *norm(("norm",), "norm" if kind == "dinov3" else "layernorm"),
        *block(prefix, NORMS, qkv, "attention.o_proj", *FEED_FORWARD[kind, ffn], SCALES),
    ]


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_dinov3(ffn):
    gated = {"use_gated_mlp": True, "hidden_act": "silu"} if ffn == "swiglu" else {}
    theirs = randomise(transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(
        **SIZES, **gated, intermediate_size=40, num_register_tokens=4, image_size=16)))  # fmt: skip
    config = EncoderConfig(**OUR_SIZES, ffn=ffn, mlp_width=40, storage_tokens=4)
    first = next(key for key in theirs.state_dict() if key.endswith("layer.0.norm1.weight"))
    prefix = first.replace("0.norm1.weight", "{}.")
    elsewhere = {("rope_periods",), ("mask_token",), ("blocks", "attention", "bias_mask")}
    ours = encoder_like(theirs.state_dict(), config, rows("dinov3", ffn, prefix) + REGISTERS, elsewhere)
    assert_layers_equal(ours, theirs, *images((16, 24)))  # not square


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_dinov2(ffn, registers):
    settings = {**SIZES, "mlp_ratio": 2, "image_size": 20, "use_swiglu_ffn": ffn == "swiglu"}
    if registers:
        settings["num_register_tokens"] = registers
        theirs = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**settings))
    else:
        theirs = transformers.Dinov2Model(transformers.Dinov2Config(**settings))
    theirs = randomise(theirs)
    config = EncoderConfig(
        kind="dinov2", **OUR_SIZES, ffn=ffn, mlp_width=48 if ffn == "mlp" else 32, norm_eps=1e-6,
        storage_tokens=registers, table_size=5, table_antialias=bool(registers),
    )  # fmt: skip
    table = [(("position_table",), ("embeddings.position_embeddings",), "0")]
    names = rows("dinov2", ffn, "encoder.layer.{}.") + table + (REGISTERS if registers else [])
    ours = encoder_like(theirs.state_dict(), config, names, {("mask_token",)})
    for image in images((20, 20), (24, 12)):  # its own grid, and a table resampled to another
        assert_layers_equal(ours, theirs, image)


def test_image_size_that_patches_do_not_divide():
    with pytest.raises(UserError, match=r"18x16.*patches of 4"):
        patch_grid((1, 18, 16, 3), 4)
