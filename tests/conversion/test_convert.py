"""`spectralmoe convert` of encoders: the same weights under our names or those of Hugging Face."""

import hashlib
import json

import numpy as np
import pytest
from safetensors import safe_open

from spectralmoe_jax.cli.main import main
from spectralmoe_jax.conversion.convert import convert
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.parameters import leaves
from spectralmoe_jax.weights import writing
from spectralmoe_jax.weights.encoder_file import OR, candidate_presets
from spectralmoe_jax.weights.formats import FORMATS, EncoderFile
from spectralmoe_jax.weights.reading import WeightFile, open_weight_file
from tests.weights.tiny_encoders import (
    CONFIGS,
    SIZES,
    filled,
    image,
    published,
    randomised,
    their_layers,
    worst,
)

torch = pytest.importorskip("torch", reason="needs the extra `torch`")
transformers = pytest.importorskip("transformers", reason="needs the extra `test`")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            published(kind).save_pretrained(made[kind])
        return made[kind]

    return get


def manifest(file):
    with safe_open(file, "np") as header:
        return json.loads(header.metadata()["spectralmoe"])


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_native_file_holds_the_same_weights(kind, folders, tmp_path, capsys):
    native = tmp_path / "native.safetensors"
    assert main(["convert", str(folders(kind)), str(native)]) == 0
    assert str(native) in capsys.readouterr().out
    ours, wanted = leaves(filled(CONFIGS[kind], native)), leaves(filled(CONFIGS[kind], folders(kind)))
    assert all(np.array_equal(ours[path], wanted[path]) for path in wanted)
    made = manifest(native)
    digest = hashlib.sha256((folders(kind) / "model.safetensors").read_bytes()).hexdigest()
    assert made["sha256"] == {"model.safetensors": digest}
    assert made["source"] == str(folders(kind))
    assert made["format"] == f"hf_{CONFIGS[kind].kind}"
    assert made["licence"]
    assert [file.name for file in tmp_path.iterdir()] == ["native.safetensors"]


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_to_hugging_face(kind, folders, tmp_path):
    """transformers loads what was written whole, and computes what it did before."""
    native, folder = tmp_path / "native.safetensors", tmp_path / "folder"
    convert(str(folders(kind)), str(native))
    convert(str(native), str(folder), to="hf")
    loader = transformers.CLIPVisionModel if kind == "clip" else transformers.AutoModel
    model, report = loader.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    pixels = image()
    before = published(kind)
    before = their_layers(before.vision_model if kind == "clip" else before, pixels)
    assert worst(their_layers(model.eval(), pixels), before) < 1e-6


def test_sam_to_hugging_face(tmp_path):
    """With its neck, which our features do not use: strictly, and every tensor as it was."""
    settings = transformers.SamVisionConfig(
        **{**SIZES, "num_hidden_layers": 4}, output_channels=8, image_size=32, window_size=3, mlp_dim=48,
        global_attn_indexes=[1, 3],
    )  # fmt: skip
    before = randomised(transformers.SamVisionModel(settings))
    before.save_pretrained(tmp_path / "sam")
    convert(str(tmp_path / "sam"), str(tmp_path / "native.safetensors"))
    convert(str(tmp_path / "native.safetensors"), str(tmp_path / "folder"), to="hf")
    model, report = transformers.SamVisionModel.from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    model.load_state_dict(before.state_dict(), strict=True)  # the same names and shapes
    model = transformers.SamVisionModel.from_pretrained(tmp_path / "folder")
    wanted = before.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())
    pixels = torch.from_numpy(image((32, 32)).transpose(0, 3, 1, 2))
    with torch.no_grad():
        theirs, ours = (m(pixels).last_hidden_state for m in (before, model.eval()))
    assert torch.equal(theirs, ours)


def small(name, **changes):
    """An encoder of a published small size, in the model it is published with."""
    sizes = {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12, "image_size": 518,
             "patch_size": 14}  # fmt: skip
    if name == "Dinov2":
        return transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    backbone = transformers.Dinov2Config(**sizes, out_indices=[3, 6, 9, 12], reshape_hidden_states=False)
    config = getattr(transformers, f"{name}Config")(
        backbone_config=backbone, reassemble_hidden_size=384, neck_hidden_sizes=[8] * 4, fusion_hidden_size=8,
        head_hidden_size=8,
    )  # fmt: skip
    return getattr(transformers, f"{name}ForDepthEstimation")(config)


@pytest.mark.parametrize(
    ("name", "preset"),
    [("Dinov2", "dinov2_s"), ("DepthAnything", "depth_anything_v2_s"),
     ("PromptDepthAnything", "prompt_depth_anything_s")],
)  # fmt: skip
def test_preset_of_publications_with_one_architecture(name, preset, tmp_path):
    """Three publications of one architecture; converted once more, the record stays."""
    small(name).save_pretrained(tmp_path / "folder")
    convert(str(tmp_path / "folder"), str(tmp_path / "first.safetensors"))
    first = manifest(tmp_path / "first.safetensors")
    assert first["preset"] == preset
    convert(str(tmp_path / "first.safetensors"), str(tmp_path / "second.safetensors"))
    second = manifest(tmp_path / "second.safetensors")
    assert second["preset"] == preset
    assert second["earlier"] == first
    digest = hashlib.sha256((tmp_path / "first.safetensors").read_bytes()).hexdigest()
    assert second["sha256"] == {"first.safetensors": digest}


@pytest.mark.parametrize(
    ("beside", "preset"),
    [({}, "depth_anything_v2_s"), ({"pipeline._mean": 3, "pipeline._std": 3}, "prompt_depth_anything_s")],
)
def test_preset_of_depth_files(beside, preset, tmp_path):
    with torch.device("meta"):
        model = small("Dinov2")
    shapes = {
        "cls_token": (1, 1, 384), "mask_token": (1, 384), "pos_embed": (1, 1370, 384), "norm.weight": (384,),
        "norm.bias": (384,), "patch_embed.proj.weight": (384, 3, 14, 14), "patch_embed.proj.bias": (384,),
    }  # fmt: skip
    block = {"norm1": (384,), "norm2": (384,), "attn.qkv": (1152, 384), "attn.proj": (384, 384),
             "mlp.fc1": (1536, 384), "mlp.fc2": (384, 1536)}  # fmt: skip
    for layer in range(12):
        shapes |= {f"blocks.{layer}.ls{n}.gamma": (384,) for n in (1, 2)}
        for name, shape in block.items():
            shapes[f"blocks.{layer}.{name}.weight"], shapes[f"blocks.{layer}.{name}.bias"] = shape, shape[:1]
    assert sum(np.prod(shape) for shape in shapes.values()) == sum(p.numel() for p in model.parameters())
    prefix = "pipeline.pretrained." if beside else "pretrained."
    state = {prefix + name: torch.zeros(shape) for name, shape in shapes.items()}
    torch.save({"state_dict": state | {k: torch.zeros(n) for k, n in beside.items()}}, tmp_path / "x.pth")
    convert(str(tmp_path / "x.pth"), str(tmp_path / "x.safetensors"))
    assert manifest(tmp_path / "x.safetensors")["preset"] == preset


@pytest.mark.parametrize(
    ("folder", "preset"),
    [("dinov3-vitl16-pretrain-sat493m", "dinov3_l_sat"), ("dinov3-vitl16-pretrain-lvd1689m", "dinov3_l"),
     ("encoder", "dinov3_l or dinov3_l_sat")],
)  # fmt: skip
def test_preset_of_satellite_weights(folder, preset):
    """transformers' DINOv3 stores nothing that tells the two pretrainings of ViT-L apart but the name."""
    fields = {"kind": "dinov3", "width": 1024, "layers": 24, "ffn": "mlp", "mlp_width": 4096,
              "storage_tokens": 4, "qkv_bias": True, "patch_size": 16, "heads": 16}  # fmt: skip
    weights = WeightFile(f"models/{folder}", [], {}, {}.__getitem__)
    hf = next(format for format in FORMATS if format.name == "hf_dinov3")
    assert OR.join(candidate_presets(EncoderFile(hf, hf.layouts[0], "", weights), fields)) == preset


def test_settings_missing_in_a_file_are_not_guessed(tmp_path):
    """A bare file has no number of heads: none is made up for config.json."""
    from safetensors.torch import save_file

    save_file(published("dinov2").state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="does not say how many heads it has; give --preset"):
        convert(str(tmp_path / "x.safetensors"), str(tmp_path / "folder"), to="hf")


def test_large_enough_for_a_preset(tmp_path):
    """A file of DINOv2 small is recognised as that preset, and refused as another."""
    config = transformers.Dinov2Config(
        hidden_size=384, num_attention_heads=6, num_hidden_layers=12, image_size=518, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "s")
    convert(str(tmp_path / "s"), str(tmp_path / "s.safetensors"))
    assert manifest(tmp_path / "s.safetensors")["preset"] == "dinov2_s"
    with pytest.raises(
        UserError, match=r"holds width 384, --preset dinov2_b\.width is 768; choose the preset"
    ):
        convert(str(tmp_path / "s"), str(tmp_path / "b.safetensors"), preset="dinov2_b")
    assert not (tmp_path / "b.safetensors").exists()


def test_failure_leaves_no_partial_file(folders, tmp_path, monkeypatch):
    def full_disk(self, *_):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(writing.np, "ascontiguousarray", full_disk)
    with pytest.raises(OSError, match="No space"):
        convert(str(folders("dinov2")), str(tmp_path / "x.safetensors"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("SOURCE", "x.bin"), "has to end in .safetensors"),
        (("SOURCE", "no/folder/x.safetensors"), "no such folder; make it first"),
        (("SOURCE", "x.safetensors", "--as", "hf_clip"), "is not of the format hf_clip"),
        (("SOURCE", "x.safetensors", "--preset", "dinov9"), "--preset = 'dinov9': must be one of"),
        (("SOURCE", "x.pth", "--to", "released"), "writes a whole segmenter; give its file or a run"),
        (("SOURCE", "x", "--to", "onnx"), "invalid choice"),
        (("nothing.pth", "x.safetensors"), "no such file or folder"),
    ],
)
def test_errors_are_one_line(arguments, message, folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = str(folders("dinov2"))
    capsys.readouterr()  # the library that makes the folder shows its progress
    assert main(["convert", *(source if argument == "SOURCE" else argument for argument in arguments)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_the_safetensors_library_reads_written_files(tmp_path):
    """What is written tensor by tensor, in any order, is what the library reads."""
    from safetensors.numpy import load_file

    rng = np.random.default_rng(0)
    tensors = {"a/b": rng.normal(size=(3, 5)).astype("f4"), "scalar": np.float32(2.5).reshape(()),
               "empty": np.zeros((0, 4), "f4"), "t": rng.normal(size=(2, 7)).astype("f4").T}  # fmt: skip
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    writing.write_safetensors(tmp_path / "x.safetensors", shapes, reversed(tensors.items()), {"k": "v"})
    back = load_file(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)
    assert open_weight_file(tmp_path / "x.safetensors").metadata == {"k": "v"}
