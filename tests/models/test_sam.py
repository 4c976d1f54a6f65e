"""SAM's encoder against transformers': random weights, every layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.models.backbone import make_encoder
from spectralmoe_jax.models.build import segmenter_config
from spectralmoe_jax.parameters import join, leaves, split, with_values
from tests.models.other_libraries import (
    OUR_SIZES,
    SIZES,
    assert_layers_equal,
    block,
    encoder_like,
    images,
    randomise,
    torch,
)
from tests.models.test_segmenter import tiny
from tests.random_weights import random_segmenter

transformers = pytest.importorskip("transformers", reason="needs the extra `test`")

LAYERS, EVERY, WINDOW, SIDE = 6, 3, 3, 8
SAM = {"kind": "sam", "layers": LAYERS, "global_every": EVERY, "window": WINDOW, "table_size": SIDE,
       "neck_width": 8}  # fmt: skip
# come with the weights, unused by the features
NECK = {
    ("neck_first",),
    ("neck_second",),
    *((f"neck_norm{n}", part) for n in (1, 2) for part in ("scale", "bias")),
}


def sam(image_size):
    """transformers' encoder for square images; windows of 3 x 3 do not divide the 8 x 8 patches of 32."""
    config = transformers.SamVisionConfig(
        **{**SIZES, "num_hidden_layers": LAYERS}, mlp_dim=40, image_size=image_size, window_size=WINDOW,
        global_attn_indexes=list(range(EVERY - 1, LAYERS, EVERY)), output_channels=8,
    )  # fmt: skip
    return randomise(transformers.SamVisionModel(config))


def ours_like(theirs, **changes):
    config = EncoderConfig(**{**OUR_SIZES, **SAM, **changes}, mlp_width=40, norm_eps=1e-6)
    prefix = "vision_encoder.layers.{}."
    state = theirs.state_dict()
    state["table"] = state["vision_encoder.pos_embed"].reshape(-1, config.width)
    for kind in ("window", "global"):
        numbers = [
            i for i in range(config.layers) if ((i + 1) % config.global_every == 0) == (kind == "global")
        ]
        for axis in "hw":
            tables = [state[f"{prefix.format(i)}attn.rel_pos_{axis}"] for i in numbers]
            state[f"{kind}_{axis}"] = torch.stack(tables)
    patch = "vision_encoder.patch_embed.projection"
    rows = [
        (("patch_kernel",), (f"{patch}.weight",), "conv"),
        (("patch_bias",), (f"{patch}.bias",), ""),
        (("position_table",), ("table",), ""),
        *(((f"{kind}_rel_{x}",), (f"{kind}_{x}",), "") for kind in ("window", "global") for x in "hw"),
        *block(
            prefix, ("layer_norm1", "layer_norm2"), ("attn.qkv",), "attn.proj", ("mlp.lin1",), "mlp.lin2"
        ),
    ]  # fmt: skip
    return encoder_like(state, config, rows, NECK)


def test_layers():
    theirs = sam(32)
    assert_layers_equal(ours_like(theirs), theirs, *images((32, 32)))


@pytest.mark.parametrize("shape", [(20, 20), (44, 44), (28, 36), (8, 12)])
def test_other_grids(shape):
    """Grids smaller and larger than the tables', not square, and smaller than a window.

    transformers' encoder adds a table of its own grid alone, so it is given the resampled one; its attention
    resamples relative positions itself.
    """
    theirs = sam(32)
    ours = ours_like(theirs)
    encoder = theirs.vision_encoder
    grid = tuple(pixels // SIZES["patch_size"] for pixels in shape)
    with torch.no_grad():
        table = torch.nn.functional.interpolate(
            encoder.pos_embed.permute(0, 3, 1, 2), size=grid, mode="bicubic", align_corners=False
        )
        encoder.pos_embed.data = table.permute(0, 2, 3, 1)
        encoder.patch_embed.image_size = shape
    assert_layers_equal(ours, theirs, *images(shape))


@pytest.mark.parametrize("remat", [False, True])
def test_gradient_equals_finite_differences(remat):
    """Of every weight and of the image together, along a random direction, in float64."""
    with jax.enable_x64(True):
        config = EncoderConfig(**{**OUR_SIZES, **SAM, "layers": 4, "global_every": 2}, trainable=True)
        encoder = nnx.jit(lambda: make_encoder(config, param_dtype=jnp.float64, rngs=nnx.Rngs(0)))()
        rng = np.random.default_rng(0)
        point = {path: rng.normal(size=leaf.shape) * 0.3 for path, leaf in leaves(encoder).items()}
        point["image",] = rng.normal(size=(1, 20, 28, 3))
        direction = {path: rng.normal(size=leaf.shape) for path, leaf in point.items()}
        probe = rng.normal(size=(1, 5 * 7, 24))

        def loss(values):
            image = values["image",]
            model = with_values(encoder, {path: x for path, x in values.items() if path != ("image",)})
            layers = model.stacked(*model.grid(image.shape))
            apply = jax.checkpoint(layers.apply) if remat else layers.apply
            x, _ = jax.lax.scan(lambda x, layer: (apply(x, layer), None), model.embed(image), layers.weights)
            return jnp.sum(probe * x)

        @jax.jit
        def along(step):
            moved = {path: x + step * direction[path] for path, x in point.items()}
            value, grads = jax.value_and_grad(loss)(moved)
            return value, sum(jnp.sum(grads[path] * direction[path]) for path in grads), grads

        step = 1e-5
        slope = (along(step)[0] - along(-step)[0]) / (2 * step)
        _, wanted, grads = along(0.0)
    np.testing.assert_allclose(wanted, slope, rtol=1e-6)
    assert {path for path, grad in grads.items() if not np.any(grad)} == NECK


@pytest.mark.slow
def test_segmenter():
    """The whole segmenter takes SAM like any other encoder, here trained, with recomputation."""
    changes = {"kind": "sam", "window": 3, "global_every": 2, "table_size": 4, "patch_size": 8,
               "trainable": True}  # fmt: skip
    config = tiny(
        **{f"model.visual.{key}": value for key, value in changes.items()} | {"model.remat": "full"}
    )
    model = random_segmenter(segmenter_config(config))
    weights, frozen = split(model)
    pixels = np.random.default_rng(0).integers(0, 255, (1, 32, 48, 3)).astype(np.uint8)
    scores = jax.jit(lambda t, f, x: join(model, t, f).scores(x))(weights, frozen, pixels)
    assert scores.shape == (1, 32, 48, 5)
    assert np.all(np.isfinite(scores))

    def loss(weights):
        features = join(model, weights, frozen).features(model.normalise(pixels))
        return sum(jnp.sum(x.astype(jnp.float32) ** 3) for x in features.maps)

    grads = jax.jit(jax.grad(loss))(weights)["backbone"]["visual"]
    still = [path for path, grad in traverse_util.flatten_dict(grads).items() if not np.any(grad)]
    assert not still
