"""The vision transformer against transformers' CLIP: random weights, every layer."""

import pytest

from spectralmoe_jax.config.model import EncoderConfig
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


def test_clip():
    theirs = randomise(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(
        **SIZES, intermediate_size=40, image_size=20)))  # fmt: skip
    config = EncoderConfig(kind="clip", **OUR_SIZES, mlp_width=40, table_size=5, norm_eps=1e-5)
    attention = tuple(f"self_attn.{name}_proj" for name in "qkv")
    rows = [
        (("patch_kernel",), ("embeddings.patch_embedding.weight",), "conv"),
        (("class_token",), ("embeddings.class_embedding",), "[]"),
        (("position_table",), ("embeddings.position_embedding.weight",), ""),
        *norm(("norm_first",), "pre_layrnorm"),
        *norm(("norm",), "post_layernorm"),
        *block(
            "encoder.layers.{}.", ("layer_norm1", "layer_norm2"), attention, "self_attn.out_proj",
            ("mlp.fc1",), "mlp.fc2",
        ),
    ]  # fmt: skip
    ours = encoder_like(theirs.state_dict(), config, rows)
    for image in images((20, 20), (24, 12)):  # its own grid, and a table resampled to another
        assert_layers_equal(ours, theirs, image, interpolate_pos_encoding=True)
