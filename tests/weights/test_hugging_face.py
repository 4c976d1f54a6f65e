"""Folders written by transformers' save_pretrained: every layer equals that of transformers."""

import json

import numpy as np
import pytest

from spectralmoe_jax.weights.formats import file_fields, recognise
from spectralmoe_jax.weights.reading import open_weight_file
from tests.weights.tiny_encoders import (
    CONFIGS,
    OURS,
    SIZES,
    TABLE,
    filled,
    image,
    layers_of,
    published,
    randomised,
    their_layers,
    worst,
)

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
transformers = pytest.importorskip("transformers", reason="needs the extra `test`")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> (transformers model, folder it was saved in), each made once."""
    made = {}

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            model = published(kind)
            model.save_pretrained(folder)
            made[kind] = model, folder
        return made[kind]

    return get


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_layers(folders, kind):
    model, folder = folders(kind)
    ours, pixels = filled(CONFIGS[kind], folder), image()
    theirs = their_layers(model.vision_model if kind == "clip" else model, pixels)
    assert worst(layers_of(ours, pixels), theirs) < 1e-5


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_settings_from_the_file(folders, kind):
    found = recognise(open_weight_file(folders(kind)[1]))
    config = CONFIGS[kind]
    for key, value in file_fields(found).items():
        assert getattr(config, key) == value, key


def test_names_of_a_model_in_memory(folders, tmp_path):
    from safetensors.torch import save_file

    for kind in ("dinov3", "dinov2"):
        model, folder = folders(kind)
        save_file(dict(model.state_dict()), tmp_path / f"{kind}.safetensors")
        ours = filled(CONFIGS[kind], tmp_path / f"{kind}.safetensors")
        np.testing.assert_array_equal(
            layers_of(ours, image()), layers_of(filled(CONFIGS[kind], folder), image())
        )


@pytest.mark.parametrize("name", ["DepthAnything", "PromptDepthAnything"])
def test_depth_backbones(name, tmp_path):
    backbone = transformers.Dinov2Config(
        **SIZES, image_size=16, mlp_ratio=2, out_indices=[1, 2], reshape_hidden_states=False
    )
    config = getattr(transformers, f"{name}Config")(
        backbone_config=backbone, patch_size=4, reassemble_hidden_size=24, reassemble_factors=[1, 1],
        neck_hidden_sizes=[8, 8], fusion_hidden_size=8, head_hidden_size=8,
    )  # fmt: skip
    model = randomised(getattr(transformers, f"{name}ForDepthEstimation")(config))
    model.save_pretrained(tmp_path)
    ours, pixels = filled(CONFIGS["dinov2"], tmp_path), image()
    assert worst(layers_of(ours, pixels), their_layers(model.backbone, pixels)) < 1e-5


def test_sharded_folder_is_the_same(folders, tmp_path):
    model, folder = folders("dinov2")
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    whole, sharded = open_weight_file(folder), open_weight_file(tmp_path)
    assert set(whole) == set(sharded)
    assert all(np.array_equal(whole[name], sharded[name]) for name in whole)
    assert len(sharded.paths) > 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened_exactly(tmp_path, dtype):
    model = published("dinov2").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    weights = open_weight_file(tmp_path)
    wanted = {name: value.float().numpy() for name, value in model.state_dict().items()}
    name = "embeddings.position_embeddings"
    assert weights[name].dtype == np.float32
    np.testing.assert_array_equal(weights[name], wanted[name])
    torch.save(model.state_dict(), tmp_path / "half.pth")
    np.testing.assert_array_equal(open_weight_file(tmp_path / "half.pth")[name], wanted[name])


def test_fewer_bands_are_chosen_by_name(folders):
    """Kernels are of red, green and blue in this order; which of them a band reads is in its name alone."""
    from spectralmoe_jax.config.model import EncoderConfig
    from spectralmoe_jax.errors import UserError
    from spectralmoe_jax.parameters import leaves

    model, folder = folders("dinov2")
    kernel = model.state_dict()["embeddings.patch_embeddings.projection.weight"].permute(2, 3, 1, 0).numpy()
    for names, channels in ((("blue", "red"), [2, 0]), (("green",), [1])):
        config = EncoderConfig("dinov2", **OURS, **TABLE, in_channels=len(names), band_names=names)
        np.testing.assert_array_equal(leaves(filled(config, folder))["patch_kernel",], kernel[:, :, channels])
    for names in (("nir", "red"), ()):
        config = EncoderConfig("dinov2", **OURS, **TABLE, in_channels=2, band_names=names)
        with pytest.raises(UserError, match=r"have 3 channels, .*reads fewer bands .*named red"):
            filled(config, folder)


def test_sizes_that_differ_are_resampled(folders):
    """Patch size, table and bands other than the file's; torch's own interpolation is the reference."""
    from spectralmoe_jax.config.model import EncoderConfig
    from spectralmoe_jax.parameters import leaves

    model, folder = folders("dinov2")
    state = model.state_dict()
    kernel = state["embeddings.patch_embeddings.projection.weight"]
    resized = torch.nn.functional.interpolate(kernel, size=(6, 6), mode="bicubic", align_corners=False)
    table = state["embeddings.position_embeddings"][0]
    grid = table[1:].T.reshape(1, 24, 4, 4)
    grid = torch.nn.functional.interpolate(grid, size=(7, 7), mode="bicubic", align_corners=False)
    extra = {"modulo": resized[:, [0, 1]], "mean": resized.mean(1, keepdim=True).repeat(1, 2, 1, 1),
             "zero": torch.zeros(24, 2, 6, 6)}  # fmt: skip
    for how, bands in extra.items():
        sizes = {**OURS, **TABLE, "patch_size": 6, "table_size": 7, "in_channels": 5, "extra_bands": how}
        found = leaves(filled(EncoderConfig("dinov2", **sizes), folder))
        wanted = torch.cat([resized, bands], 1).permute(2, 3, 1, 0).numpy()
        np.testing.assert_allclose(found["patch_kernel",], wanted, atol=1e-5)
        np.testing.assert_array_equal(found["position_table",][0], table[0].numpy())
        np.testing.assert_allclose(found["position_table",][1:], grid[0].reshape(24, -1).T.numpy(), atol=1e-5)
