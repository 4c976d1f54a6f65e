"""Tiny versions of published encoders with random weights, and the comparison with ours."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.models.backbone import make_encoder
from spectralmoe_jax.models.encoders.encoder import all_layers
from spectralmoe_jax.weights.encoder_file import fill_encoder
from spectralmoe_jax.weights.reading import open_weight_file

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4}
OURS = {"width": 24, "layers": 2, "heads": 2, "patch_size": 4, "mlp_width": 48}
TABLE = {"table_size": 4, "norm_eps": 1e-6}
CONFIGS = {
    "dinov3": EncoderConfig(**OURS, storage_tokens=4),
    "dinov3_gated": EncoderConfig(**OURS, storage_tokens=4, ffn="swiglu"),
    "dinov2": EncoderConfig("dinov2", **OURS, **TABLE),
    "dinov2_registers": EncoderConfig(
        "dinov2", **{**OURS, "mlp_width": 32}, **TABLE, storage_tokens=4, ffn="swiglu", table_antialias=True
    ),
    "clip": EncoderConfig("clip", **OURS, table_size=4),
}


def randomised(model):
    """Every parameter of a torch model drawn anew: also those that start as zeros or ones."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def published(kind):
    """A transformers model of `CONFIGS[kind]`."""
    import transformers

    sizes = {**SIZES, "image_size": 16}
    if kind.startswith("dinov3"):
        config = transformers.DINOv3ViTConfig(
            **sizes, intermediate_size=48, num_register_tokens=4, use_gated_mlp=kind == "dinov3_gated",
            hidden_act="silu" if kind == "dinov3_gated" else "gelu",
        )  # fmt: skip
        return randomised(transformers.DINOv3ViTModel(config))
    if kind == "dinov2":
        return randomised(transformers.Dinov2Model(transformers.Dinov2Config(**sizes, mlp_ratio=2)))
    if kind == "dinov2_registers":
        config = transformers.Dinov2WithRegistersConfig(**sizes, mlp_ratio=2, use_swiglu_ffn=True)
        return randomised(transformers.Dinov2WithRegistersModel(config))
    assert kind == "clip"
    text = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config={**sizes, "intermediate_size": 48})
    return randomised(transformers.CLIPModel(config))


def filled(config, spec, format_name=None):
    """Our encoder with the weights of a file."""
    encoder = make_encoder(config, rngs=nnx.Rngs(0))
    fill_encoder(encoder, open_weight_file(spec), format_name)
    return encoder


def image(size=(16, 16), bands=3):
    return np.random.default_rng(0).normal(size=(2, *size, bands)).astype(np.float32)


def layers_of(encoder, pixels):
    return np.asarray(jax.jit(lambda x: all_layers(encoder, x))(jnp.asarray(pixels)))


def worst(ours, theirs):
    """Largest difference over the layers, relative to each layer's largest value."""
    assert len(ours) == len(theirs)
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, theirs, strict=True))


def their_layers(model, pixels):
    """Hidden states after every layer of a transformers vision model."""
    import torch

    with torch.no_grad():
        nchw = torch.from_numpy(pixels.transpose(0, 3, 1, 2))
        return [x.numpy() for x in model(pixel_values=nchw, output_hidden_states=True).hidden_states[1:]]
