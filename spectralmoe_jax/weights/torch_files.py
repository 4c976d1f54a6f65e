"""Read files of `torch.save`: tensors by name, and nothing else that a pickle may hold."""

from __future__ import annotations

import pickle
import warnings
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spectralmoe_jax.errors import UserError

# Keys under which training code stores the state dict.
STATE_DICT_KEYS = ("state_dict", "model", "module", "teacher")
_BLOCK = 1 << 22  # bytes read at a time


def load(path: Path, spec: str) -> Any:
    """Return what a file of `torch.save` holds, its tensors mapped from the file.

    Args:
      path: the file.
      spec: its name in messages.

    Raises:
      UserError: the file is truncated, damaged or of another kind; it contains code, which is not run; or
        PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{spec}: reading a {path.suffix} file needs PyTorch: pip install torch (or give safetensors)"
        ) from None
    is_zip = zipfile.is_zipfile(path)  # torch before 1.6 wrote bare pickles, which cannot be memory-mapped
    broken = f"{spec}: not a complete file of torch.save; it may be truncated: download it again"
    if not is_zip and not _is_pickle(path):
        raise UserError(broken)
    if is_zip and _is_compressed(path):
        raise UserError(f"{spec}: its parts are compressed, as torch.save does not leave them: save it again")
    try:
        with torch.serialization.safe_globals(_stand_ins()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of types that are on their way out of PyTorch
            return torch.load(path, weights_only=True, mmap=is_zip, map_location="cpu")
    except pickle.UnpicklingError as problem:
        if "weights_only" not in str(problem) and "Unsupported" not in str(problem):
            raise UserError(broken) from None
        raise UserError(
            f"{spec}: the file contains code, which was not run; if you trust the file, save only "
            "its tensors: torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)"
        ) from None
    except Exception as problem:  # of a damaged pickle: whatever its opcodes run into
        if "TorchScript" in str(problem):
            raise UserError(f"{spec}: is a TorchScript program; give a file with its state dict") from None
        raise UserError(broken) from None


def _is_compressed(path: Path) -> bool:
    """Return whether a zip file has compressed members, which may be of any size once they are unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return False  # PyTorch says what is wrong


def sizes_of_storages(path: Path) -> set[int] | None:
    """Return the sizes in bytes of the storages in a zip file of `torch.save`; None for an older file."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return {member.file_size for member in archive.infolist() if "/data/" in member.filename}
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return set()


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80"  # the opcode that every pickle of protocol 2 and later starts with


def find_tensors(value: Any) -> dict[str, Any]:
    """Return the tensors by name of the state dict nested in what training code saved."""
    seen: set[int] = set()
    while isinstance(value, Mapping) and id(value) not in seen:
        seen.add(id(value))
        nested = next((value[key] for key in STATE_DICT_KEYS if isinstance(value.get(key), Mapping)), None)
        if nested is None:
            items = value.items()
            return {name: each for name, each in items if isinstance(name, str) and hasattr(each, "detach")}
        value = nested
    return {}


def type_of(tensor: Any) -> str:
    """Return the name of a tensor's NumPy type, or of what it is where no array holds its values."""
    if tensor.is_nested:
        return "nested"
    if tensor.is_meta:
        return "meta"
    if tensor.is_quantized:
        return "quantised"
    if str(tensor.layout) != "torch.strided":
        return "sparse"
    return str(tensor.dtype).removeprefix("torch.")


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Return the shape of a tensor; empty for a nested one, which has none."""
    return () if tensor.is_nested else tuple(tensor.shape)


def is_larger_than_file(tensor: Any, path: Path) -> bool:
    """Return whether a tensor has more elements than its file, as a view that repeats elements may have."""
    return tensor.numel() * tensor.element_size() > path.stat().st_size


def is_stored(tensor: Any, sizes: Collection[int]) -> bool:
    """Return whether the storage of a tensor has one of some sizes in bytes, or none."""
    size = tensor.untyped_storage().nbytes()
    return not size or size in sizes


def as_array(tensor: Any) -> np.ndarray:
    """Return the values of a dense tensor, half precision as float32."""
    tensor = tensor.detach()
    if tensor.dtype.is_floating_point and tensor.element_size() == 2:
        tensor = tensor.float()  # torch cannot convert bfloat16 to numpy
    return tensor.resolve_conj().resolve_neg().numpy()


def require_undamaged(path: Path, spec: str) -> None:
    """Compare the tensors in a zip file of `torch.save` with their checksums, which PyTorch does not.

    Older files have none, nor have those that were saved without (`torch.serialization.set_crc32_options`).

    Raises:
      UserError: a checksum differs.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members if any(member.CRC for member in members) else ():
                with archive.open(member) as file:
                    while file.read(_BLOCK):
                        pass
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError):
        raise UserError(
            f"{spec}: damaged, its content differs from the checksums in it: download it again"
        ) from None


# Objects in files of torch.save that are neither tensors nor plain containers.
#
# mmengine saves its training log beside the state dict: objects of its own, numpy arrays, and methods that
# are looked up by `getattr`. torch would refuse the whole file because of them. Each of these names is
# therefore answered with an empty class: loading goes on, no code of the file runs, and mmengine need not be
# installed. Every other name is still refused.

_STAND_IN_NAMES = (
    ("mmengine.logging.history_buffer", "HistoryBuffer"),
    ("mmengine.logging", "HistoryBuffer"),
    ("builtins", "getattr"),
    ("__builtin__", "getattr"),  # as pickle's protocol 2 writes it
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
)


class _StandIn:
    """Accepts whatever a pickle passes to it and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _StandIn:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_ins() -> list[Any]:
    """Return one empty class for each name, for `torch.serialization.safe_globals`."""
    return [type(name, (_StandIn,), {"__module__": module}) for module, name in _STAND_IN_NAMES]
