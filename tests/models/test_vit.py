"""The encoder against transformers' DINOv3 and DINOv2, random weights, every layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.encoder import EncoderConfig
from spectralmoe_jax.models.resample import resize_bicubic
from spectralmoe_jax.models.state import fill, leaves
from spectralmoe_jax.models.vit import VisionTransformer, all_layers

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
transformers = pytest.importorskip("transformers", reason="needs the extra `test`")

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 4,
    "num_channels": 3,
}


def randomise(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def encoder(theirs, config, names, block_names):
    """Our encoder with the weights of `theirs`: (path, their name, how) rows."""
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    ours = VisionTransformer(config, rngs=nnx.Rngs(0))
    moves = {
        "": lambda x: x,
        "T": lambda x: x.T,
        "conv": lambda x: x.transpose(2, 3, 1, 0),
        "0": lambda x: x[0],
    }
    values = {path: moves[how](state[name]) for path, name, how in names}
    for path, name, how in block_names:
        values["blocks", *path] = np.stack([moves[how](state[name.format(i)]) for i in range(config.layers)])
    fill(ours, values)
    elsewhere = {
        ("rope_periods",),
        ("mask_token",),
        ("blocks", "attention", "bias_mask"),
        ("blocks", "attention", "qkv", "kernel"),
        ("blocks", "attention", "qkv", "bias"),
    }
    assert set(leaves(ours)) - set(values) <= elsewhere
    return ours


def block_names(norm1, norm2, layer_scales, mlp, out, prefix):
    rows = [(("norm1", "scale"), f"{norm1}.weight", ""), (("norm1", "bias"), f"{norm1}.bias", ""),
            (("norm2", "scale"), f"{norm2}.weight", ""), (("norm2", "bias"), f"{norm2}.bias", ""),
            (("scale1",), layer_scales[0], ""), (("scale2",), layer_scales[1], "")]  # fmt: skip
    for ours, theirs in ((("mlp", "first"), mlp[0]), (("mlp", "last"), mlp[1])):
        rows += [((*ours, "kernel"), f"{theirs}.weight", "T"), ((*ours, "bias"), f"{theirs}.bias", "")]
    rows += [
        (("attention", "out", "kernel"), f"{out}.weight", "T"),
        (("attention", "out", "bias"), f"{out}.bias", ""),
    ]
    return [(path, prefix + name, how) for path, name, how in rows]


def with_fused_qkv(ours, theirs, name, layers, key_bias):
    """Put separate query, key and value projections into the fused one."""
    state = {key: value.numpy() for key, value in theirs.state_dict().items()}
    q, k, v = name
    kernels, biases = [], []
    for i in range(layers):
        kernels.append(np.concatenate([state[f"{x.format(i)}.weight"].T for x in (q, k, v)], axis=1))
        zero = np.full_like(state[f"{q.format(i)}.bias"], 7.0)  # masked: its value must not matter
        key = state[f"{k.format(i)}.bias"] if key_bias else zero
        biases.append(np.concatenate([state[f"{q.format(i)}.bias"], key, state[f"{v.format(i)}.bias"]]))
    values = {("blocks", "attention", "qkv", "kernel"): np.stack(kernels),
              ("blocks", "attention", "qkv", "bias"): np.stack(biases)}  # fmt: skip
    fill(ours, values)


def assert_layers_equal(ours, theirs, image):
    with torch.no_grad():
        hidden = theirs(torch.from_numpy(image), output_hidden_states=True).hidden_states
    tokens = np.asarray(jax.jit(lambda x: all_layers(ours, x))(jnp.asarray(image.transpose(0, 2, 3, 1))))
    assert len(hidden) == len(tokens) + 1
    for mine, wanted in zip(tokens, hidden[1:], strict=True):
        wanted = wanted.numpy()
        assert np.abs(mine - wanted).max() / np.abs(wanted).max() < 1e-5


def test_dinov3_layers():
    theirs = randomise(transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(
        **SIZES, intermediate_size=48, num_register_tokens=4, image_size=16)))  # fmt: skip
    config = EncoderConfig(width=24, layers=3, heads=2, patch_size=4, mlp_ratio=2, storage_tokens=4)
    first = next(key for key in theirs.state_dict() if key.endswith("layer.0.norm1.weight"))
    prefix = first.replace("0.norm1.weight", "{}.")
    names = [(("patch_kernel",), "embeddings.patch_embeddings.weight", "conv"),
             (("patch_bias",), "embeddings.patch_embeddings.bias", ""),
             (("class_token",), "embeddings.cls_token", "0"),
             (("storage_tokens",), "embeddings.register_tokens", "0"),
             (("norm", "scale"), "norm.weight", ""), (("norm", "bias"), "norm.bias", "")]  # fmt: skip
    blocks = block_names("norm1", "norm2", ("layer_scale1.lambda1", "layer_scale2.lambda1"),
                         ("mlp.up_proj", "mlp.down_proj"), "attention.o_proj", prefix)  # fmt: skip
    ours = encoder(theirs, config, names, blocks)
    with_fused_qkv(ours, theirs, [f"{prefix}attention.{x}_proj" for x in "qkv"], 3, key_bias=False)
    image = np.random.default_rng(0).normal(size=(2, 3, 16, 24)).astype(np.float32)  # not square
    assert_layers_equal(ours, theirs, image)


def test_dinov2_layers():
    theirs = randomise(
        transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, mlp_ratio=2, image_size=16))
    )
    config = EncoderConfig(
        kind="dinov2",
        width=24,
        layers=3,
        heads=2,
        patch_size=4,
        mlp_ratio=2,
        storage_tokens=0,
        norm_eps=1e-6,
        table_size=4,
    )
    prefix = "encoder.layer.{}."
    names = [
        (("patch_kernel",), "embeddings.patch_embeddings.projection.weight", "conv"),
        (("patch_bias",), "embeddings.patch_embeddings.projection.bias", ""),
        (("class_token",), "embeddings.cls_token", "0"),
        (("position_table",), "embeddings.position_embeddings", "0"),
        (("norm", "scale"), "layernorm.weight", ""),
        (("norm", "bias"), "layernorm.bias", ""),
    ]
    blocks = block_names("norm1", "norm2", ("layer_scale1.lambda1", "layer_scale2.lambda1"),
                         ("mlp.fc1", "mlp.fc2"), "attention.o_proj", prefix)  # fmt: skip
    ours = encoder(theirs, config, names, blocks)
    with_fused_qkv(ours, theirs, [f"{prefix}attention.{x}_proj" for x in "qkv"], 3, key_bias=True)
    rng = np.random.default_rng(0)
    for height, width in ((16, 16), (24, 12)):  # its own grid, and a table resampled to another
        assert_layers_equal(ours, theirs, rng.normal(size=(2, 3, height, width)).astype(np.float32))


@pytest.mark.parametrize("size", [(8, 8), (5, 11), (37, 32), (3, 2)])
def test_bicubic_equals_torch(size):
    grid = np.random.default_rng(0).normal(size=(16, 13, 5)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(
        torch.from_numpy(grid.transpose(2, 0, 1))[None], size=size, mode="bicubic", align_corners=False
    )[0].numpy().transpose(1, 2, 0)  # fmt: skip
    np.testing.assert_allclose(resize_bicubic(jnp.asarray(grid), *size), wanted, atol=1e-5)


def test_image_that_does_not_divide():
    ours = VisionTransformer(EncoderConfig(width=8, layers=1, heads=2, patch_size=4), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"18x16.*patches of 4"):
        ours.embed(jnp.zeros((1, 18, 16, 3)))
