"""Published encoders: as many parameters as their publications say, and a forward pass at real size."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.backbone import make_encoder
from spectralmoe_jax.models.encoder import EncoderConfig
from spectralmoe_jax.models.presets import PRESETS, preset
from spectralmoe_jax.models.state import leaves
from spectralmoe_jax.models.vit import all_layers

# Millions of parameters, as publications and model cards give them; CLIP's image towers without projection,
# SAM's without neck.
PUBLISHED = {
    "dinov3_s": 21.6, "dinov3_s_plus": 28.7, "dinov3_b": 85.7, "dinov3_l": 303, "dinov3_h_plus": 841,
    "dinov3_7b": 6716, "dinov2_s": 22.1, "dinov2_b": 86.6, "dinov2_l": 304.4, "dinov2_g": 1136.5,
    "clip_b16": 86.2, "clip_l14": 304, "sam_b": 88.9, "sam_l": 307.5, "sam_h": 636.2,
    "eva02_b": 85.8, "eva02_l": 303.3,
}  # fmt: skip


def config_of(name: str) -> EncoderConfig:
    wavelengths = (0.665, 0.56, 0.49) if PRESETS[name]["kind"] == "dofa" else ()
    return EncoderConfig(**preset(name, "preset"), wavelengths=wavelengths)


@pytest.mark.parametrize("name", PRESETS)
def test_parameters(name):
    encoder = nnx.eval_shape(lambda: make_encoder(config_of(name), rngs=nnx.Rngs(0)))
    found = leaves(encoder)
    derived = {("rope_periods",), ("blocks", "attention", "bias_mask")}
    count = sum(math.prod(leaf.shape) for path, leaf in found.items() if path not in derived)
    if name in PUBLISHED:
        assert count / 1e6 == pytest.approx(PUBLISHED[name], rel=0.01)
    depth = config_of(name).layers
    assert all(leaf.shape[0] == depth for path, leaf in found.items() if path[0] == "blocks")


@pytest.mark.parametrize("name", ["dinov3_7b", "dinov2_g_reg", "dofa_l", "clip_l14", "sam_h", "eva02_l"])
def test_forward_at_real_size(name):
    config = config_of(name)
    side = 20 * config.patch_size

    def forward():
        encoder = make_encoder(config, rngs=nnx.Rngs(0))
        return all_layers(encoder, jnp.zeros((1, side, side, 3), jnp.bfloat16))

    tokens = jax.eval_shape(forward)
    assert tokens.shape == (config.layers, 1, config.prefix_tokens + 400, config.width)
    assert tokens.dtype == jnp.bfloat16


def test_unknown_preset():
    with pytest.raises(UserError, match=r"config\.model\.visual\.preset = 'dinov4': choose from dinov3_s"):
        preset("dinov4", "config.model.visual.preset")
