"""Encoders of other libraries with random weights, ours with the same weights, and the comparison."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.models.backbone import make_encoder
from spectralmoe_jax.models.encoders.encoder import all_layers
from spectralmoe_jax.parameters import fill, leaves

torch = pytest.importorskip("torch", reason="needs the extra `torch`")

SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 4,
    "num_channels": 3,
}
OUR_SIZES = {"width": 24, "layers": 3, "heads": 2, "patch_size": 4}

MOVES = {
    "": lambda x: x,
    "T": lambda x: x.T,
    "conv": lambda x: x.transpose(2, 3, 1, 0),
    "0": lambda x: x[0],
    "[]": lambda x: x[None],
}
UNUSED = 7.0  # put where a value must not matter, such as the bias of a key that has none


def randomise(model):
    """Normal weights of a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


def images(*sizes, seed=0):
    """A batch of two images (2, 3, height, width) of every size."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(2, 3, *size)).astype(np.float32) for size in sizes]


def linear(path, *names):
    """Rows of a linear layer that holds those of `names` side by side, None for a bias that is not there."""
    weights = tuple(f"{name.removesuffix(':')}.weight" for name in names)
    biases = tuple(None if name.endswith(":") else f"{name}.bias" for name in names)
    return [((*path, "kernel"), weights, "T"), ((*path, "bias"), biases, "")]


def norm(path, name):
    return [((*path, "scale"), (f"{name}.weight",), ""), ((*path, "bias"), (f"{name}.bias",), "")]


def block(prefix, norms, qkv, out, first, last, scales=()):
    """Rows of the stacked blocks; `{}` in `prefix` stands for the layer. A name of `qkv` that ends in a
    colon has no bias."""
    rows = norm(("norm1",), norms[0]) + norm(("norm2",), norms[1])
    rows += linear(("attention", "qkv"), *qkv) + linear(("attention", "out"), out)
    rows += linear(("mlp", "first"), *first) + linear(("mlp", "last"), last)
    rows += [((f"scale{i + 1}",), (name,), "") for i, name in enumerate(scales)]
    return [
        (("blocks", *path), tuple(name and prefix + name for name in names), move)
        for path, names, move in rows
    ]


def encoder_like(state_dict, config: EncoderConfig, rows, elsewhere=()):
    """Our encoder with the weights of theirs.

    rows: (path, names, move) each; their tensors are moved, then joined along the last axis, and stacked over
    layers where names have a `{}`. elsewhere: leaves that keep the values they were made with.
    """
    state = {name: value.numpy() for name, value in state_dict.items()}
    ours = nnx.jit(lambda: make_encoder(config, rngs=nnx.Rngs(0)))()

    def read(names, move):
        parts = [None if name is None else MOVES[move](state[name]) for name in names]
        unused = np.full_like(next(part for part in parts if part is not None), UNUSED)
        return np.concatenate([unused if part is None else part for part in parts], axis=-1)

    values = {}
    for path, names, move in rows:
        if path[0] == "blocks":
            layers = [[name and name.format(i) for name in names] for i in range(config.layers)]
            values[path] = np.stack([read(layer, move) for layer in layers])
        else:
            values[path] = read(names, move)
    fill(ours, values)
    assert set(leaves(ours)) - set(values) == set(elsewhere)
    return ours


def our_layers(ours, image):
    """Tokens after every layer (L, B, T, D), of an image (B, C, H, W)."""
    return np.asarray(jax.jit(lambda x: all_layers(ours, x))(jnp.asarray(image.transpose(0, 2, 3, 1))))


def assert_layers_equal(ours, theirs, image, **kwargs):
    with torch.no_grad():
        hidden = theirs(torch.from_numpy(image), output_hidden_states=True, **kwargs).hidden_states
    assert_tokens_equal(our_layers(ours, image), [layer.numpy() for layer in hidden[1:]])


def assert_tokens_equal(tokens, wanted, bound=1e-5):
    """Every layer within `bound` of its largest magnitude."""
    assert len(tokens) == len(wanted)
    for mine, theirs in zip(tokens, wanted, strict=True):
        theirs = theirs.reshape(mine.shape)
        assert np.abs(mine - theirs).max() / np.abs(theirs).max() < bound
