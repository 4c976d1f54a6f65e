"""Archives of arrays: read as NumPy reads them, or one line before anything large is made of them."""

import io
import pickle
import re
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.npz import read_npz

ARRAYS = {
    "a": np.arange(6).reshape(2, 3),
    "b/c": np.array(["x", "süd"]),
    "d": np.float32(3),
    "e": np.zeros((0, 4)),
}


class Payload:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return open, (str(self.witness), "w")


def refusal(path, names=None):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"not a readable thing \(.+\): restore it") as error:
        read_npz(path, "restore it", names, what="thing")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB
    assert "\n" not in str(error.value)
    return str(error.value)


def header(shape, dtype="<f4"):
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def archive(path, *members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_read_as_numpy_does(save, tmp_path):
    save(tmp_path / "x.npz", **ARRAYS)
    found = read_npz(tmp_path / "x.npz", "")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == np.asarray(array).dtype
    assert read_npz(tmp_path / "x.npz", "", ["a"]).keys() == {"a"}
    assert "no array f" in refusal(tmp_path / "x.npz", ["a", "f"])


def test_nothing_is_unpickled(tmp_path):
    witness = tmp_path / "witness"
    np.savez(tmp_path / "x.npz", a=np.array([Payload(witness)], object))
    assert "Python objects" in refusal(tmp_path / "x.npz")
    (tmp_path / "y.npz").write_bytes(pickle.dumps(Payload(witness)))
    refusal(tmp_path / "y.npz")
    archive(tmp_path / "z.npz", ("a.npy", pickle.dumps(Payload(witness))))
    refusal(tmp_path / "z.npz")
    assert not witness.exists()


def zeros(path):
    """A member of 4 GiB of zeros in about 4 MiB."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
        file.open("a.npy", "w", force_zip64=True) as out,
    ):
        out.write(header((1 << 30,)))
        block = bytes(1 << 24)
        for _ in range(256):
            out.write(block)


@pytest.mark.parametrize(
    "members",
    [
        [("a.npy", header((1 << 40,)))],
        [("a.npy", header((1 << 62, 1 << 62)))],
        [("a.npy", header((-1,)))],
        [("a.npy", header((2,)) + bytes(4))],
        [("a.npy", header((2,)) + bytes(80))],
        [("a.npy", header((1,), "<U1000000000") + bytes(4))],
        [("a.npy", header((1,), "|O") + bytes(8))],
        [("a.npy", header((1,), "x"))],
        [("a.npy", header("(" * 5000))],
        [("a.npy", b"\x93NUMPY\x09\x00")],
        [("a.npy", b"")],
        [("a.txt", b"")],
        [("a.npy", header((1,)) + bytes(4))] * 2,
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_headers_and_members_that_cannot_be(members, tmp_path):
    refusal(archive(tmp_path / "x.npz", *members))


@pytest.mark.slow
def test_more_zeros_than_memory(tmp_path):
    zeros(tmp_path / "x.npz")
    assert (tmp_path / "x.npz").stat().st_size < 1 << 23
    assert "too many for its size" in refusal(tmp_path / "x.npz")


def test_truncated_encrypted_and_other_files(tmp_path):
    stream = io.BytesIO()
    np.savez(stream, **ARRAYS)
    whole = stream.getvalue()
    for number, content in enumerate(
        (b"", b"PK", whole[:-1], whole[: len(whole) // 2], bytes(1000), b"text")
    ):
        (tmp_path / f"{number}.npz").write_bytes(content)
        refusal(tmp_path / f"{number}.npz")
    flipped = bytearray(whole)
    flipped[whole.find(np.arange(6).tobytes()) + 9] ^= 1
    (tmp_path / "x.npz").write_bytes(flipped)
    assert "Bad CRC-32" in refusal(tmp_path / "x.npz")
    encrypted = bytearray(whole)
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # of a member, and in the directory
        for found in re.finditer(re.escape(header), whole):
            encrypted[found.start() + flags] |= 1
    (tmp_path / "y.npz").write_bytes(encrypted)
    refusal(tmp_path / "y.npz")
    refusal(tmp_path)
    refusal(tmp_path / "none.npz")
    refusal(Path("/dev/null"))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("code", [0x110000, 2**32 - 1])
def test_texts_of_no_characters_are_refused(tmp_path, code, order):
    """NumPy reads them, and Python ends in a SystemError where it makes a string of one."""
    codes = np.array([ord("x"), 0x10FFFF, code], f"{order}u4")
    np.savez(tmp_path / "a.npz", a=codes.view(f"{order}U3"), b=np.array(["\U0010ffff\ud7ff\ue000"]))
    assert "a holds characters that do not exist" in refusal(tmp_path / "a.npz")
    assert read_npz(tmp_path / "a.npz", "", ["b"])["b"] == "\U0010ffff\ud7ff\ue000"
