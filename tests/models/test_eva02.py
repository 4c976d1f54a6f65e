"""EVA-02 (arXiv 2303.11331) against its definition in float64 numpy, every layer."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.models.backbone import make_encoder
from spectralmoe_jax.models.encoders.encoder import all_layers
from spectralmoe_jax.parameters import fill, leaves

WIDTH, HEADS, HIDDEN, LAYERS, PATCH, SIDE = 24, 3, 20, 3, 4, 4
PRETRAINED_SIDE = 16  # 224 pixels in patches of 14


def layer_norm(x, scale, bias):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * scale + bias


def rotated(vector, row, column):
    """A head's vector turned by its patch's position: in the first half, pair i by the row times the i-th
    frequency, in the second half by the column."""
    pairs = len(vector) // 4
    turned = np.empty_like(vector)
    for half, position in enumerate((row, column)):
        for i in range(pairs):
            angle = position / 10000 ** (i / pairs)
            at = 2 * (half * pairs + i)
            pair = complex(vector[at], vector[at + 1]) * complex(math.cos(angle), math.sin(angle))
            turned[at], turned[at + 1] = pair.real, pair.imag
    return turned


def attention(x, weights, h, w):
    """x (T, D), a class token and h * w patches in rows."""
    kernels = np.split(weights["attention/qkv/kernel"], 3, axis=1)
    query_bias, _, value_bias = np.split(weights["attention/qkv/bias"], 3)  # keys have none
    q, k, v = (x @ kernel for kernel in kernels)
    q, v = q + query_bias, v + value_bias
    out = np.empty_like(x)
    size = WIDTH // HEADS
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        queries, keys = q[:, part].copy(), k[:, part].copy()
        for row in range(h):
            for column in range(w):
                position = (row / h * PRETRAINED_SIDE, column / w * PRETRAINED_SIDE)
                token = 1 + row * w + column
                queries[token] = rotated(queries[token], *position)
                keys[token] = rotated(keys[token], *position)
        logits = queries @ keys.T / math.sqrt(size)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        out[:, part] = shares / shares.sum(axis=1, keepdims=True) @ v[:, part]
    return out @ weights["attention/out/kernel"] + weights["attention/out/bias"]


def feed_forward(x, weights):
    gate, value = np.split(x @ weights["mlp/first/kernel"] + weights["mlp/first/bias"], 2, axis=1)
    hidden = gate / (1 + np.exp(-gate)) * value
    hidden = layer_norm(hidden, weights["mlp/norm/scale"], weights["mlp/norm/bias"])
    return hidden @ weights["mlp/last/kernel"] + weights["mlp/last/bias"]


def embedded(image, weights):
    """An image (H, W, C) on the table's own grid -> tokens (1 + N, D)."""
    tokens = [weights["class_token"][0]]
    for top in range(0, image.shape[0], PATCH):
        for left in range(0, image.shape[1], PATCH):
            pixels = image[top : top + PATCH, left : left + PATCH]
            tokens.append(np.einsum("pqc,pqcd->d", pixels, weights["patch_kernel"]) + weights["patch_bias"])
    return np.stack(tokens)


def oracle(image, weights, table):
    """Tokens after every layer (L, 1 + N, D) of one image; `table` (1 + N, D) is added to the tokens."""
    h, w = image.shape[0] // PATCH, image.shape[1] // PATCH
    x, layers = embedded(image, weights) + table, []
    for i in range(LAYERS):
        block = {
            name.removeprefix("blocks/"): leaf[i]
            for name, leaf in weights.items()
            if name.startswith("blocks/")
        }
        x = x + attention(layer_norm(x, block["norm1/scale"], block["norm1/bias"]), block, h, w)
        x = x + feed_forward(layer_norm(x, block["norm2/scale"], block["norm2/bias"]), block)
        layers.append(x)
    return np.stack(layers)


def bicubic(grid, height, width):
    """A table (S, S, D) on another grid, point by point: Keys' kernel with a = -0.75, edges repeated."""

    def weight(t):
        t = abs(t)
        if t <= 1:
            return 1.25 * t**3 - 2.25 * t**2 + 1
        return -0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    def taps(position, size_out):
        centre = (position + 0.5) * len(grid) / size_out - 0.5
        nearest = range(math.floor(centre) - 1, math.floor(centre) + 3)
        return [(min(max(i, 0), len(grid) - 1), weight(centre - i)) for i in nearest]

    return np.stack([
        sum(a * b * grid[y, x] for y, a in taps(row, height) for x, b in taps(column, width))
        for row in range(height) for column in range(width)
    ])  # fmt: skip


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("grid", [(SIDE, SIDE), (3, 6)])
def test_layers(dtype, bound, grid):
    config = EncoderConfig(
        kind="eva02", width=WIDTH, layers=LAYERS, heads=HEADS, patch_size=PATCH, mlp_width=HIDDEN,
        ffn="swiglu", table_size=SIDE, norm_eps=1e-6,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == "float64"):
        encoder = nnx.jit(lambda: make_encoder(config, param_dtype=dtype, rngs=nnx.Rngs(0)))()
        values = {
            path: rng.normal(size=leaf.shape).astype(dtype) * np.asarray(0.3, dtype)
            for path, leaf in leaves(encoder).items()
            if path[-1] != "bias_mask"
        }
        fill(encoder, values)
        image = rng.normal(size=(2, grid[0] * PATCH, grid[1] * PATCH, 3)).astype(dtype)
        tokens = np.asarray(jax.jit(lambda x: all_layers(encoder, x))(jnp.asarray(image)))
        assert tokens.dtype == dtype
    weights = {"/".join(path): value.astype(np.float64) for path, value in values.items()}
    table = weights["position_table"]
    if grid != (SIDE, SIDE):
        resized = bicubic(table[1:].reshape(SIDE, SIDE, WIDTH), *grid)
        table = np.concatenate([table[:1], resized])
    wanted = np.stack([oracle(x.astype(np.float64), weights, table) for x in image], axis=1)
    errors = np.abs(tokens - wanted).max(axis=(1, 2, 3)) / np.abs(wanted).max(axis=(1, 2, 3))
    assert np.all(errors < bound), errors
