"""Weight files: the tensors that safetensors and PyTorch themselves read, or an error of one line."""

import io
import json
import re

import numpy as np
import pytest
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.weights.formats import file_fields, recognise
from spectralmoe_jax.weights.hub import fetch
from spectralmoe_jax.weights.reading import manifest, open_weight_file
from tests.fuzzing.mutations import damaged, reshaped
from tests.fuzzing.outcome import try_all

QUICK_AND_LONG = pytest.mark.parametrize(
    ("seed", "count"), [(0, 64), pytest.param(1, 800, marks=pytest.mark.slow)]
)


def tensors():
    random = np.random.default_rng(0)
    return {
        "blocks.0.weight": random.normal(size=(6, 5)).astype(np.float32),
        "blocks.0.bias": random.normal(size=6).astype(np.float16),
        "blocks.1.weight": random.normal(size=(2, 3, 4)),
        "count": np.array(7),
        "mask": np.array([True, False]),
    }


def read_all(path):
    file = open_weight_file(path)
    manifest(file)
    return {name: file[name] for name in file}


def same(found, expected):
    """Whether arrays are equal bit by bit; half precision may be float32 in one of the two."""
    expected = {name: x.astype(np.float32) if x.dtype == np.float16 else x for name, x in expected.items()}
    return found.keys() == expected.keys() and all(
        (found[name].dtype, found[name].shape, found[name].tobytes()) == (x.dtype, x.shape, x.tobytes())
        for name, x in expected.items()
    )


@QUICK_AND_LONG
def test_safetensors(seed, count, tmp_path, record_property):
    file = tmp_path / "x.safetensors"
    good = save_safetensors(
        tensors(), {"spectralmoe": json.dumps({"format": "native", "encoder": {"width": 4}})}
    )

    def read(variant):
        file.write_bytes(variant)
        return read_all(file)

    def is_exact(variant, found):
        return same(found, load_safetensors(variant))

    try_all(damaged(good, count, seed), read, is_exact, record_property, ".safetensors, damaged")


@QUICK_AND_LONG
def test_safetensors_header(seed, count, tmp_path, record_property):
    file = tmp_path / "x.safetensors"
    good = save_safetensors(tensors())
    length = int.from_bytes(good[:8], "little")

    def whole(header):
        return len(header).to_bytes(8, "little") + header + good[8 + length :]

    def read(header):
        file.write_bytes(whole(header))
        return read_all(file)

    def is_exact(header, found):
        return same(found, load_safetensors(whole(header)))

    variants = reshaped(json.loads(good[8 : 8 + length]), count, seed)
    try_all(variants, read, is_exact, record_property, ".safetensors, reshaped header")


@QUICK_AND_LONG
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_torch_files(is_zip, seed, count, tmp_path, record_property):
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    file, stream = tmp_path / "x.pth", io.BytesIO()
    state = {name: torch.from_numpy(x) for name, x in tensors().items()}
    torch.save({"state_dict": state, "epoch": 3}, stream, _use_new_zipfile_serialization=is_zip)

    def read(variant):
        file.write_bytes(variant)
        return read_all(file)

    def is_exact(variant, found):
        loaded = torch.load(io.BytesIO(variant), weights_only=True, map_location="cpu")
        inside = loaded.get("state_dict", loaded)
        expected = {name: x.numpy() for name, x in inside.items() if isinstance(x, torch.Tensor)}
        return same(found, expected)

    name = f".pth, {'zip' if is_zip else 'legacy'}"
    try_all(damaged(stream.getvalue(), count, seed, headers=0.2), read, is_exact, record_property, name)


@pytest.fixture
def sharded(tmp_path):
    """A folder of two shards, and the document of its index."""
    names = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    for number, (name, shard) in enumerate(names.items()):
        (tmp_path / shard).write_bytes(save_safetensors({name: np.full(3, number, np.float32)}))
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    return tmp_path, {"metadata": {"total_size": 24}, "weight_map": names}


@QUICK_AND_LONG
@pytest.mark.parametrize("kind", ["damaged", "reshaped"])
def test_index(kind, seed, count, sharded, record_property):
    folder, document = sharded
    good = json.dumps(document).encode()
    index = folder / "model.safetensors.index.json"

    def read(variant):
        index.write_bytes(variant)
        return read_all(folder)

    def is_exact(variant, found):
        shards = set(json.loads(variant)["weight_map"].values())
        expected = {}
        for shard in shards:
            expected |= load_safetensors((folder / shard).read_bytes())
        return shards <= set(document["weight_map"].values()) and same(found, expected)

    variants = damaged(good, count, seed) if kind == "damaged" else reshaped(document, count, seed)
    try_all(variants, read, is_exact, record_property, f"index of shards, {kind}")


CLIP = {
    "architectures": ["CLIPModel"], "model_type": "clip", "vision_config": {
        "hidden_size": 8, "num_attention_heads": 2, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"
    }, "text_config": {"hidden_size": 4},
}  # fmt: skip


@QUICK_AND_LONG
@pytest.mark.parametrize("kind", ["damaged", "reshaped"])
def test_hugging_face_config(kind, seed, count, tmp_path, record_property):
    layer = "vision_model.encoder.layers.0."
    shapes = {
        "vision_model.embeddings.class_embedding": (8,),
        "vision_model.embeddings.patch_embedding.weight": (8, 3, 4, 4),
        "vision_model.embeddings.position_embedding.weight": (5, 8),
        "vision_model.pre_layrnorm.weight": (8,),
        **{f"{layer}self_attn.{name}_proj.weight": (8, 8) for name in "qkv"},
        f"{layer}layer_norm1.weight": (8,),
        f"{layer}mlp.fc2.weight": (8, 16),
    }
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    (tmp_path / "model.safetensors").write_bytes(save_safetensors(arrays))

    def read(variant):
        (tmp_path / "config.json").write_bytes(variant)
        return file_fields(recognise(open_weight_file(tmp_path)))

    def is_exact(variant, fields):
        stored = json.loads(variant)
        stored = stored.get("vision_config") or stored
        stored = stored.get("backbone_config") or stored
        named = {"heads": "num_attention_heads", "norm_eps": "layer_norm_eps"}
        return all(fields.get(ours) == stored.get(theirs) for ours, theirs in named.items())

    good = json.dumps(CLIP).encode()
    variants = damaged(good, count, seed) if kind == "damaged" else reshaped(CLIP, count, seed)
    try_all(variants, read, is_exact, record_property, f"config.json of Hugging Face, {kind}")


@QUICK_AND_LONG
def test_record_of_origin(seed, count, tmp_path, record_property):
    arrays = {"blocks/attention/qkv/kernel": np.zeros((2, 4, 12), np.float32)}
    record = {
        "format": "native", "licence": "MIT", "preset": None, "earlier": {"format": "meta_dinov3"},
        "encoder": {"kind": "dinov3", "width": 4, "layers": 2, "heads": 2, "untied_norms": ["norm"]},
    }  # fmt: skip
    file = tmp_path / "x.safetensors"

    def read(variant):
        file.write_bytes(save_safetensors(arrays, {"spectralmoe": variant.decode()}))
        return file_fields(recognise(open_weight_file(file)))

    def is_exact(variant, fields):
        stored = json.loads(variant).get("encoder", {})
        return json.dumps(fields) == json.dumps(stored)

    try_all(reshaped(record, count, seed), read, is_exact, record_property, "record of origin, reshaped")


def hub_names(count, seed):
    """Names on the hub with a part replaced by something odd, and names put together by chance."""
    random = np.random.default_rng(seed)
    parts = (
        "hf://", "hf:/", "a", "lab", "encoder", "-", "--", "..", ".", "/", "//", "@", "@main", "\\", "\n",
        "\0", "\x1b[2J", "é", "\u202e", "\ud800", " ", "%2e%2e", "~", "x" * 97, "y" * 300, ".git", ":",
        "*", "?",
        "model.safetensors", "refs/pr/1", "file.pth", "../../etc/passwd", "$(id)", "|", "CON",
    )  # fmt: skip
    for number in range(count):
        drawn = "".join(random.choice(parts, int(random.integers(1, 7))))
        start = ("hf://", "hf://lab/encoder/", "hf://lab/encoder@", "hf://lab/")[number % 4]
        yield repr(start + drawn)[:60], start + drawn
    for name in ("", "@main", "/model.safetensors", "@main/file.pth", "@c0ffee"):
        yield name, f"hf://lab/encoder{name}"


@pytest.mark.parametrize(("seed", "count"), [(0, 200), pytest.param(1, 2000, marks=pytest.mark.slow)])
def test_hub_names(seed, count, tmp_path, monkeypatch, record_property):
    """Without a network nothing is fetched; what is asked for lies inside the cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "cache" / "models--lab--encoder"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("c0ffee")
    snapshot = folder / "snapshots/c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(save_safetensors(tensors()))
    (snapshot / "file.pth").touch()

    def is_exact(spec, found):
        known = re.fullmatch(r"hf://lab/encoder(@main|@c0ffee)?(/model\.safetensors|/file\.pth)?", spec)
        return bool(known) and found == snapshot / (known[2] or "").lstrip("/")

    try_all(hub_names(count, seed), fetch, is_exact, record_property, "names on the hub")


def test_good_ones_are_read(tmp_path):
    """What the mutations start from is no error itself."""
    (tmp_path / "x.safetensors").write_bytes(save_safetensors(tensors()))
    assert same(read_all(tmp_path / "x.safetensors"), tensors())
    with pytest.raises(UserError):
        read_all(tmp_path / "none.safetensors")
