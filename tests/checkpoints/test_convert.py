"""`spectralmoe convert` of encoders: the same weights under our names, or Hugging Face's again."""

import hashlib
import json

import numpy as np
import pytest
from safetensors import safe_open

from spectralmoe_jax.checkpoints import write
from spectralmoe_jax.checkpoints.convert import convert
from spectralmoe_jax.checkpoints.sources import open_source
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.models.state import leaves
from tests.checkpoints.tiny import CONFIGS, filled, image, published, their_layers, worst

pytest.importorskip("torch", reason="needs the extra `torch`")
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
def test_native_file_holds_the_same(kind, folders, tmp_path, capsys):
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


def test_settings_that_a_file_does_not_say_are_not_guessed(tmp_path):
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


def test_nothing_half_written(folders, tmp_path, monkeypatch):
    def full_disk(self, *_):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(write.np, "ascontiguousarray", full_disk)
    with pytest.raises(OSError, match="No space"):
        convert(str(folders("dinov2")), str(tmp_path / "x.safetensors"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("SOURCE", "x.bin"), "has to end in .safetensors"),
        (("SOURCE", "no/folder/x.safetensors"), "no such folder; make it first"),
        (("SOURCE", "x.safetensors", "--as", "hf_clip"), "is not of the format hf_clip"),
        (("SOURCE", "x.safetensors", "--preset", "dinov9"), "--preset = 'dinov9': choose from"),
        (("SOURCE", "x.pth", "--to", "released"), "writes a whole segmenter; give the folder of a run"),
        (("SOURCE", "x", "--to", "onnx"), "invalid choice"),
        (("nothing.pth", "x.safetensors"), "no such file or folder"),
    ],
)
def test_one_line_for_what_is_wrong(arguments, message, folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = str(folders("dinov2"))
    assert main(["convert", *(source if argument == "SOURCE" else argument for argument in arguments)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_writer_is_the_formats_own(tmp_path):
    """What is written tensor by tensor, in any order, is what the library reads."""
    from safetensors.numpy import load_file

    rng = np.random.default_rng(0)
    tensors = {"a/b": rng.normal(size=(3, 5)).astype("f4"), "scalar": np.float32(2.5).reshape(()),
               "empty": np.zeros((0, 4), "f4"), "t": rng.normal(size=(2, 7)).astype("f4").T}  # fmt: skip
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    write.write_safetensors(tmp_path / "x.safetensors", shapes, reversed(tensors.items()), {"k": "v"})
    back = load_file(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)
    assert open_source(tmp_path / "x.safetensors").metadata == {"k": "v"}
