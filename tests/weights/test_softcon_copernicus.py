"""Files of SoftCon and Copernicus-FM: read completely, refused where they do not fit, and written back."""

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from spectralmoe_jax.config.model import EncoderConfig
from spectralmoe_jax.conversion.convert import convert
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.backbone import make_encoder
from spectralmoe_jax.weights.encoder_file import (
    candidate_presets,
    fill_encoder,
    read_encoder,
    stored_leaves,
)
from spectralmoe_jax.weights.formats import FORMATS, EncoderFile, file_fields, recognise
from spectralmoe_jax.weights.reading import WeightFile, manifest, open_weight_file
from tests.weights.tiny_encoders import filled, image, layers_of

SIZES = {"width": 32, "layers": 2, "heads": 4, "mlp_width": 128, "table_size": 4, "norm_eps": 1e-6}
BANDS = {"in_channels": 2, "wavelengths": (0.44, 0.66), "bandwidths": (0.02, 0.03), "generator_width": 16}
CONFIGS = {
    "softcon": EncoderConfig("softcon", **SIZES, patch_size=14, in_channels=13),
    "copernicus_fm": EncoderConfig("copernicus_fm", **SIZES, **BANDS, patch_size=16),
}
LEFT_OUT = {
    "softcon": set(),
    "copernicus_fm": {
        f"{name}.{part}" for name in ("norm", "fc_norm", "head") for part in ("weight", "bias")
    },
}


@pytest.fixture(params=sorted(CONFIGS))
def kind(request):
    return request.param


@pytest.fixture
def tensors(kind, goldens):
    return load_file(goldens / "encoders" / kind / "weights.safetensors")


def saved(tensors, path):
    save_file(tensors, path)
    return path


def test_a_file_is_recognised_and_read_completely(kind, tensors, tmp_path):
    file = open_weight_file(saved(tensors, tmp_path / "x.safetensors"))
    found = recognise(file)
    assert (found.format.name, found.format.licence) == (kind, "CC-BY-4.0")
    fields = file_fields(found)
    assert all(getattr(CONFIGS[kind], key) == value for key, value in fields.items() if key != "in_channels")
    read = dict(read_encoder(file, CONFIGS[kind]))
    assert stored_leaves(CONFIGS[kind]).items() <= {path: leaf.shape for path, leaf in read.items()}.items()
    stored = sum(read[path].size for path in stored_leaves(CONFIGS[kind]))
    assert stored == sum(value.size for name, value in tensors.items() if name not in LEFT_OUT[kind])


def test_published_names_come_back_with_the_same_bits(kind, tensors, tmp_path):
    """From the publisher's names to ours, and back to the publisher's."""
    source, native, back = (tmp_path / f"{name}.safetensors" for name in ("x", "native", "back"))
    convert(str(saved(tensors, source)), str(native))
    record = manifest(open_weight_file(native))
    assert (record["format"], record["licence"]) == (kind, "CC-BY-4.0")
    ours, wanted = (dict(read_encoder(open_weight_file(x), CONFIGS[kind])) for x in (native, source))
    assert all(np.array_equal(ours[path], leaf) for path, leaf in wanted.items())
    convert(str(native), str(back), to="published")
    written = load_file(back)
    assert written.keys() == tensors.keys() - LEFT_OUT[kind]
    assert all(np.array_equal(written[name], tensors[name]) for name in written)


def test_files_that_are_written_in_published_names(goldens, tmp_path):
    """A .pth holds nothing but the tensors; a file of ours made from one of ours knows its origin."""
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    tensors = load_file(goldens / "encoders/softcon/weights.safetensors")
    saved(tensors, tmp_path / "x.safetensors")
    for given, name, to in (
        ("x.safetensors", "same.pth", "published"),
        ("same.pth", "native.safetensors", None),
        ("native.safetensors", "again.safetensors", None),
        ("again.safetensors", "back.pth", "published"),
    ):
        convert(str(tmp_path / given), str(tmp_path / name), to=to)
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name].numpy(), tensors[name]) for name in back)


def test_missing_and_unexpected_tensors_are_refused(kind, tensors, tmp_path):
    tensors["surplus"] = tensors.pop("blocks.1.mlp.fc2.bias")
    with pytest.raises(UserError) as error:
        read_encoder(open_weight_file(saved(tensors, tmp_path / "x.safetensors")), CONFIGS[kind])
    for part in ("missing (1): blocks.1.mlp.fc2.bias", "unexpected (1): surplus"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 64}, r"holds width 32, config\.model\.visual\.width is 64"),
        ({"layers": 3}, r"holds layers 2, config\.model\.visual\.layers is 3"),
        ({"mlp_width": 64}, r"holds mlp_width 128, config\.model\.visual\.mlp_width is 64"),
        ({"kind": "dinov3"}, r"holds kind \w+, config\.model\.visual\.kind is dinov3"),
    ],
)
def test_weights_of_another_size(kind, tensors, change, message, tmp_path):
    config = EncoderConfig(**{**vars(CONFIGS[kind]), **change})
    with pytest.raises(UserError, match=message) as error:
        dict(read_encoder(open_weight_file(saved(tensors, tmp_path / "x.safetensors")), config))
    assert "\n" not in str(error.value)


def test_the_path_without_wavelengths_is_left_out(goldens, tmp_path):
    """As it is in the published file of Copernicus-FM."""
    tensors = load_file(goldens / "encoders/copernicus_fm/weights.safetensors")
    tensors |= {f"patch_embed_variable.{name}": np.ones(3, np.float32) for name in ("a.weight", "b.c.bias")}
    path = saved(tensors, tmp_path / "x.safetensors")
    assert dict(read_encoder(open_weight_file(path), CONFIGS["copernicus_fm"]))
    convert(str(path), str(tmp_path / "back.safetensors"), to="published")
    assert not [n for n in load_file(tmp_path / "back.safetensors") if n.startswith("patch_embed_variable")]


def test_a_copy_without_mask_token(goldens, tmp_path):
    """As torchgeo distributes SoftCon; the features do not use the token."""
    tensors = load_file(goldens / "encoders/softcon/weights.safetensors")
    del tensors["mask_token"]
    read = dict(
        read_encoder(open_weight_file(saved(tensors, tmp_path / "x.safetensors")), CONFIGS["softcon"])
    )
    assert not read["mask_token",].any()


def test_a_dinov2_of_13_bands_stays_one(goldens, tmp_path):
    """The names are the same: the configuration tells, or the number of bands."""
    path = saved(load_file(goldens / "encoders/softcon/weights.safetensors"), tmp_path / "x.safetensors")
    dinov2 = EncoderConfig("dinov2", **SIZES, patch_size=14, in_channels=13)
    fill_encoder(make_encoder(dinov2, rngs=nnx.Rngs(0)), open_weight_file(path))
    tensors = load_file(path)
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"][:, :3].copy()
    file = open_weight_file(saved(tensors, tmp_path / "rgb.safetensors"))
    assert recognise(file).format.name == "meta_dinov2"
    assert recognise(file, "softcon").format.name == "softcon"
    with pytest.raises(UserError, match=r"holds kind dinov2, .*kind is softcon"):
        dict(read_encoder(file, CONFIGS["softcon"]))


def test_another_table_is_resampled_as_the_images_are(goldens):
    """A table resized when it is read equals one resampled for a larger image."""
    path = goldens / "encoders/softcon/weights.safetensors"
    stored, resized = (
        filled(EncoderConfig("softcon", **{**SIZES, "table_size": side}, patch_size=14, in_channels=13), path)
        for side in (4, 5)
    )
    np.testing.assert_allclose(resized.position_table[...], stored.positions(5, 5), atol=1e-6)
    assert np.isfinite(layers_of(resized, image((70, 70), 13))).all()


@pytest.mark.parametrize(
    ("format", "sizes", "preset"),
    [
        ("softcon", {"width": 384, "table_size": 16, "patch_size": 14, "mlp_width": 1536}, "softcon_s"),
        ("softcon", {"width": 768, "table_size": 16, "patch_size": 14, "mlp_width": 3072}, "softcon_b"),
        (
            "copernicus_fm",
            {"width": 768, "table_size": 14, "patch_size": 16, "mlp_width": 3072},
            "copernicus_fm_b",
        ),
    ],
)
def test_files_of_published_sizes_are_those_presets(format, sizes, preset):
    fields = {"kind": format, "layers": 12, "ffn": "mlp", "storage_tokens": 0, "qkv_bias": True, **sizes}
    found = next(known for known in FORMATS if known.name == format)
    file = EncoderFile(found, found.layouts[0], "", WeightFile("x.pth", [], {}, {}.__getitem__))
    assert candidate_presets(file, fields) == [preset]


def test_a_segmenter_is_not_written_in_published_names(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="--to published is for an encoder's file"):
        convert(str(tmp_path / "run"), str(tmp_path / "x.safetensors"), to="published")
