"""Weight files of odd types, shapes, names and headers: read as their library reads them, or one line."""

import json
import os
import signal
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from spectralmoe_jax.cli.main import main
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.weights.name_rules import Rule, read_tensors
from spectralmoe_jax.weights.reading import manifest, open_weight_file
from spectralmoe_jax.weights.writing import write_tensors_file


@pytest.fixture(autouse=True)
def soon():
    """No file is read for longer than 20 s."""
    signal.alarm(20)
    yield
    signal.alarm(0)


def read_all(spec):
    file = open_weight_file(spec)
    manifest(file)
    return {name: file[name] for name in file}


def refusal(spec):
    with pytest.raises(UserError) as error:
        read_all(spec)
    assert "\n" not in str(error.value)
    assert str(error.value).isprintable()
    return str(error.value)


def header(path, entries, body=b"", length=None):
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def entry(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("F8_E4M3", 8), ("F8_E5M2", 8), ("F8_E8M0", 8), ("F8_E4M3FNUZ", 8), ("F8_E5M2FNUZ", 8), ("F4", 4)],
)
def test_safetensors_of_other_types(dtype, bits, tmp_path):
    path = header(tmp_path / "x.safetensors", {"x": entry(dtype, [4], 0, bits // 2)}, bytes(bits // 2))
    assert f"x is {dtype}, which is not read: save it as float32" in refusal(path)


def test_bfloat16_is_read_exactly(tmp_path):
    values = np.random.default_rng(0).normal(size=8).astype(ml_dtypes.bfloat16)
    path = header(tmp_path / "x.safetensors", {"x": entry("BF16", [8], 0, 16)}, values.tobytes())
    np.testing.assert_array_equal(open_weight_file(path)["x"], values.astype(np.float32))


ENTRY = b'"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
TWICE = b"{" + ENTRY + b", " + ENTRY + b"}"


@pytest.mark.parametrize(
    ("entries", "body", "length"),
    [
        (TWICE, bytes(4), None),
        ({"x": entry("F32", [1], 0, 4), "y": entry("F32", [1], 0, 4)}, bytes(4), None),
        ({"x": entry("F32", [1], 4, 8)}, bytes(8), None),
        ({"x": entry("F32", [1], 0, 8)}, bytes(8), None),
        ({"x": entry("F32", [1], 0, 4)}, bytes(8), None),
        ({"x": entry("F32", [2**33, 2**33], 0, 4)}, bytes(4), None),
        ({"x": entry("F32", [2**40], 0, 2**42)}, bytes(4), None),
        ({"x": entry("F32", [2**62, 0], 0, 0)}, b"", None),
        ({"x": entry("F32", [-1], 0, 4)}, bytes(4), None),
        ({"__metadata__": {"a": 1}, "x": entry("F32", [1], 0, 4)}, bytes(4), None),
        (b"[" * 200_000, b"", None),
        (b'{"x":' * 50_000, b"", None),
        (b"\xff\xfe{}", b"", None),
        (b"not JSON", b"", None),
        ({}, b"", 2**63),
        ({}, b"", 2**64 - 1),
        ({}, b"", 99_999_999),
        ({}, b"", 0),
    ],
)
def test_headers_of_safetensors(entries, body, length, tmp_path):
    refusal(header(tmp_path / "x.safetensors", entries, body, length))


def test_names_in_a_header_are_shown_on_one_line(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"\x1b[2J\n" + "a" * 5000: np.zeros(2, np.float32)}, path)
    assert main(["convert", str(path), str(tmp_path / "y.safetensors")]) == 2
    header(path, {"\n\x1b": entry("F8_E4M3", [4], 0, 4)}, bytes(4))
    assert r"\n\x1b is F8_E4M3" in refusal(path)


def torch_values():
    torch = pytest.importorskip("torch", reason="needs the extra `torch`")
    loop = {}
    loop["state_dict"] = loop
    chain = {"state_dict": {"model": loop}}
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    return torch, {
        "float8_e4m3fn": {"x": torch.zeros(3).to(torch.float8_e4m3fn)},
        "float8_e5m2": {"x": torch.zeros(3).to(torch.float8_e5m2)},
        "sparse": {"x": torch.eye(3).to_sparse()},
        "csr": {"x": torch.eye(3).to_sparse_csr()},
        "quantised": {"x": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.quint8)},
        "meta": {"x": torch.zeros(3, device="meta")},
        "nested": {"x": nested},
        "itself": loop,
        "itself, deeper": chain,
        "huge view": {"x": torch.zeros(1).expand(2**40)},
        "no tensors": {"x": 3, 5: torch.ones(2)},
        "a list": [torch.ones(2)],
        "a tensor": torch.ones(2),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "float8_e4m3fn", "float8_e5m2", "sparse", "csr", "quantised", "meta", "nested", "itself",
        "itself, deeper", "huge view", "no tensors", "a list", "a tensor",
    ],
)  # fmt: skip
def test_other_tensors_of_torch(kind, tmp_path):
    torch, values = torch_values()
    torch.save(values[kind], tmp_path / "x.pth")
    refusal(tmp_path / "x.pth")


def test_views_complex_and_whole_numbers_are_as_torch_has_them(tmp_path):
    torch, _ = torch_values()
    base = torch.arange(24.0).reshape(4, 6)
    values = {
        "transposed": base.T, "part": base[1:3, ::2], "repeated": base[0].expand(3, 6), "scalar": base[0, 0],
        "overlapping": base.flatten().as_strided((5, 4), (1, 2)), "flipped": base.flip(0), "empty": base[:0],
        "complex": torch.complex(base, base).conj(), "negative": torch.complex(base, base).conj().imag,
        "int": torch.arange(5), "bool": base > 3, "parameter": torch.nn.Parameter(base),
        "bfloat16": base.to(torch.bfloat16).T, "double": base.double(),
    }  # fmt: skip
    torch.save(values, tmp_path / "x.pth")
    file = open_weight_file(tmp_path / "x.pth")
    assert set(file) == set(values)
    for name, value in values.items():
        expected = value.detach().resolve_conj().resolve_neg().to("cpu")
        expected = expected.float() if expected.dtype == torch.bfloat16 else expected
        assert file.shape(name) == tuple(value.shape)
        listed = np.array(expected.tolist(), expected.numpy().dtype).reshape(value.shape)
        np.testing.assert_array_equal(file[name], listed)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.bool_, np.complex64, np.int64])
def test_a_leaf_is_filled_by_floats_alone(dtype, tmp_path):
    save_file({"a.weight": np.ones((2, 3), dtype), "b": np.ones(2, np.float16)}, tmp_path / "x.safetensors")
    file = open_weight_file(tmp_path / "x.safetensors")
    rules = [Rule("a.weight", ("a",), "linear"), Rule("b", ("b",))]
    with pytest.raises(UserError, match=rf"no floats \(1\): a\.weight is {np.dtype(dtype).name}\. Choose"):
        read_tensors(rules, {("a",): (3, 2), ("b",): (2,)}, file, file="x")


@pytest.mark.parametrize("place", ["data", "header"])
def test_a_flipped_bit_of_a_torch_file_is_noticed(place, tmp_path):
    torch, _ = torch_values()
    path = tmp_path / "x.pth"
    torch.save({"x": torch.arange(1000.0)}, path)
    content = bytearray(path.read_bytes())
    content[content.find(np.arange(500, 510, dtype=np.float32).tobytes()) + 6] ^= 16
    path.write_bytes(content)
    assert "damaged, its content differs from the checksums in it" in refusal(path)


def test_torch_files_without_checksums(tmp_path):
    torch, _ = torch_values()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"x": torch.arange(10.0)}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(open_weight_file(tmp_path / "x.pth")["x"], np.arange(10))


def index(folder, shard):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    table = {"a": shard, "b": "m.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    save_file({"x": np.zeros(1, np.float32)}, folder / "m.safetensors")
    return folder


@pytest.mark.parametrize(
    "shard",
    [
        "../x.safetensors", "/etc/passwd", "/etc/x.safetensors", 3, ["a"], None, {}, "", ".", "..", True,
        "model.safetensors.index.json", "sub/x.safetensors", "sub\\x.safetensors", "a" * 300 + ".safetensors",
        "gone.safetensors", "\n.safetensors", "\0.safetensors", "\x1b[2J.safetensors", "config.json",
        ".safetensors",
    ],
)  # fmt: skip
def test_indices_name_files_beside_them(shard, tmp_path):
    save_file({"y": np.zeros(1, np.float32)}, tmp_path / "x.safetensors")
    message = refusal(index(tmp_path / "hf", shard))
    assert "index.json" in message or "gone.safetensors" in message


@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b'{"a":' * 200_000, b"", b"[]", b"3", b"null", b"\xff\xfe", b"{"]
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_damaged_json_of_a_folder(name, content, tmp_path):
    (index(tmp_path / "hf", "m.safetensors") / name).write_bytes(content)
    assert name in refusal(tmp_path / "hf")


def test_a_shard_that_repeats_a_tensor(tmp_path):
    folder = index(tmp_path / "hf", "n.safetensors")
    (folder / "n.safetensors").write_bytes((folder / "m.safetensors").read_bytes())
    assert "two of its files hold x" in refusal(folder)


def test_folders_links_and_pipes_in_place_of_files(tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    (tmp_path / "x.pth").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    (tmp_path / "gone.pth").symlink_to("nowhere.pth")
    folder = index(tmp_path / "hf", "m.safetensors")
    for name in ("x.safetensors", "x.pth", "pipe.safetensors", "loop.safetensors", "gone.pth"):
        refusal(tmp_path / name)
    (folder / "m.safetensors").unlink()
    (folder / "m.safetensors").mkdir()
    refusal(folder)
    for name in ("~nobody-here/x.pth", "a\nb.pth", "a\0b.pth", "\x1b]0;x\x07.pth"):
        refusal(name)


@pytest.mark.parametrize(
    "name",
    [
        "hf://a--b/c", "hf://../..", "hf://a/b@../../x", "hf://a/b/../../../etc/passwd", "hf://-/-", "hf://a/..",
        "hf://a/" + "b" * 300, "hf://", "hf://a", "hf://a/b/", "hf://a//b", "hf://a/b@", "hf://a/b.git",
        "hf://a/b\n", "hf://a/b/\x1b[2J", "hf://a/b/x\\..\\y", "hf://\u00e9/b", "hf://a/b/\ud800.pth",
        "hf://a/b/" + "c" * 300, "hf://a/b/.", "hf://a/b@.", "hf://a/b c", "hf://a/b?x=1", "hf://.a/b", "hf://a/b-",
    ],
)  # fmt: skip
def test_names_that_the_hub_does_not_allow(name, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = refusal(name)
    assert "out of reach" not in message
    assert len(message) < 500


@pytest.mark.parametrize(
    "record",
    [
        "", "[]", "null", "[" * 100_000, '{"encoder": 3}', '{"encoders": {"visual": 3}}', '{"earlier": []}',
        '{"format": []}', '{"preset": 3}', '{"configuration": []}', '{"earlier": {"earlier": {"format": 3}}}',
    ],
)  # fmt: skip
def test_damaged_records_of_origin(record, tmp_path):
    arrays = {"blocks/attention/qkv/kernel": np.zeros((2, 4, 12), np.float32)}
    save_file(arrays, tmp_path / "x.safetensors", {"spectralmoe": record})
    assert "the record in its header" in refusal(tmp_path / "x.safetensors")
    assert main(["convert", str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors")]) == 2
    assert not (tmp_path / "y.safetensors").exists()


@pytest.mark.parametrize(
    "encoder",
    [
        {"kind": "dinov3", "width": 4, "layers": 10**9, "heads": 2},
        {"kind": "dinov3", "width": 2**63, "layers": 2, "heads": 2},
        {"kind": "dinov3", "width": 4, "layers": 2, "heads": 2, "patch_size": 10**9},
        {"kind": "dinov3", "width": 4, "layers": 2, "heads": 2, "mlp_width": 10**6},
        {"kind": "dinov3", "width": 4, "layers": 2, "heads": 3},
        {"kind": "none", "width": 4, "layers": 2},
        {"kind": [], "width": 4, "layers": 2},
        {"width": 4, "layers": 2},
        {"kind": "dinov3", "width": "4", "layers": 2},
        {"kind": "dinov3", "width": 4, "layers": 2, "ends": 3},
    ],
)
def test_records_of_another_encoder(encoder, tmp_path, capsys):
    arrays = {"blocks/attention/qkv/kernel": np.zeros((2, 4, 12), np.float32)}
    record = json.dumps({"format": "native", "encoder": encoder})
    save_file(arrays, tmp_path / "x.safetensors", {"spectralmoe": record})
    assert main(["convert", str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def repacked(path, compression, change=lambda name, content: content):
    """A copy of a file of torch.save whose members are changed and packed anew."""
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(3)}, path.with_name("whole.pth"))
    with zipfile.ZipFile(path.with_name("whole.pth")) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return path


@pytest.mark.parametrize("member", ["data.pkl", "version", "data/0"])
def test_compressed_members_are_not_unpacked(member, tmp_path):
    """300 kB that would be 300 MB."""

    def change(name, content):
        return content + bytes(300 << 20) if name.endswith(f"/{member}") else content

    path = repacked(tmp_path / "x.pth", zipfile.ZIP_DEFLATED, change)
    assert "its parts are compressed" in refusal(path)


@pytest.mark.parametrize("size", [5, 13, 400])
def test_a_storage_of_another_size_than_stated(size, tmp_path):
    """PyTorch would take what lies behind it in the file."""

    def change(name, content):
        return bytes(size) if "/data/" in name else content

    assert "in another size than stated" in refusal(repacked(tmp_path / "x.pth", zipfile.ZIP_STORED, change))
    np.testing.assert_array_equal(
        read_all(repacked(tmp_path / "y.pth", zipfile.ZIP_STORED))["a"], np.ones(3, np.float32)
    )


def test_a_file_of_pytorch_that_does_not_fit_is_one_line():
    """PyTorch raises a RuntimeError of several lines."""
    pytest.importorskip("torch")
    tensors = [("a", np.ones((1000, 1000), np.float32))]
    with pytest.raises(OSError, match="/dev/full") as caught:
        write_tensors_file(Path("/dev/full"), {"a": (1000, 1000)}, tensors, {})
    assert "\n" not in str(caught.value)
