"""Read weight files of any kind one tensor at a time.

A weight file is a safetensors file, a file of `torch.save`, a Hugging Face folder, or a name on the hub:
`hf://owner/name[@revision][/file or folder]`. `open_weight_file` gives each as a `WeightFile`: a read-only
mapping from tensor names to arrays that reads a tensor from disk only on access.
"""

from __future__ import annotations

import itertools
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (registers bfloat16 with numpy)
import numpy as np
from safetensors import SafetensorError, safe_open

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.weights.hub import (
    CONFIG,
    GALILEO_WEIGHTS,
    HUB,
    INDEX,
    TORCH_INDEX,
    TORCH_WEIGHTS,
    WEIGHTS,
    fetch,
    read_json,
    shard_names,
)

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
# Keys under which training code stores the state dict.
STATE_DICT_KEYS = ("state_dict", "model", "module", "teacher")
_HALF_PRECISION = ("float16", "bfloat16")
MANIFEST = "spectralmoe"  # key of a native file's header that holds its record of origin


class WeightFile(Mapping[str, np.ndarray]):
    """Tensors by name, read from disk on access.

    Half precision is converted to float32, which holds every float16 and bfloat16 value exactly.

    Attributes:
      spec: the path or `hf://` name that the file was opened by, for error messages.
      paths: every file that holds some of the tensors.
      config: contents of the config.json of a Hugging Face folder, or None.
      metadata: metadata in the header of a safetensors file, or our record beside a state dict.
    """

    def __init__(
        self,
        spec: str,
        paths: list[Path],
        shapes: Mapping[str, tuple[int, ...]],
        read: Callable[[str], np.ndarray],
        *,
        config: dict[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
    ):
        self.spec, self.paths, self.config = spec, tuple(paths), config
        self.metadata = dict(metadata or {})
        self._shapes, self._read = dict(shapes), read

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._shapes:
            raise KeyError(name)
        value = self._read(name)
        return value.astype(np.float32) if value.dtype.name in _HALF_PRECISION else value

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self._shapes[name]

    def renamed(self, rename: Callable[[str], str], metadata: Mapping[str, str] | None = None) -> WeightFile:
        """Return the same tensors under other names.

        Args:
          rename: from a name to its new name; an empty string drops the tensor.
          metadata: replaces the file's own metadata where given.
        """
        old_names = {rename(name): name for name in self}
        old_names.pop("", None)
        return WeightFile(
            self.spec,
            list(self.paths),
            {new: self._shapes[old] for new, old in old_names.items()},
            lambda name: self._read(old_names[name]),
            config=self.config,
            metadata=self.metadata if metadata is None else metadata,
        )


def manifest(file: WeightFile) -> dict[str, Any]:
    """Return the record of origin in a native file's header; empty if there is none."""
    try:
        value = json.loads(file.metadata.get(MANIFEST, "{}"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def open_weight_file(spec: str | os.PathLike[str]) -> WeightFile:
    """Open a weight file; only names and shapes are read.

    Args:
      spec: a .safetensors file; a Hugging Face folder (config.json beside model.safetensors or
        pytorch_model.bin, sharded or not) or Galileo's (config.json beside encoder.pt);
        `hf://owner/name[@revision][/file or folder]`; or a .pth, .pt, .ckpt or .bin
        file of `torch.save`, of which only tensors are read: code in the file is never run.

    Returns:
      The tensors by name.

    Raises:
      UserError: the file is missing, truncated, of an unknown kind, or contains code; the folder has no
        weights or misses a shard; the `hf://` name is neither cached nor can be downloaded.
    """
    text = os.fspath(spec)
    if text.startswith(HUB):
        return _open_path(fetch(text), text)
    return _open_path(Path(text).expanduser(), text)


def _open_path(path: Path, spec: str) -> WeightFile:
    if path.is_dir():
        return _open_folder(path, spec)
    if not path.is_file():
        raise UserError(f"{spec}: no such file or folder; give a weight file or a Hugging Face folder")
    if path.suffix == ".safetensors":
        return _open_safetensors([path], spec)
    if path.suffix in TORCH_SUFFIXES:
        return _open_torch([path], spec)
    allowed = ", ".join((".safetensors", *TORCH_SUFFIXES))
    raise UserError(f"{spec}: weights are files ending in {allowed}, or Hugging Face folders")


def _open_folder(folder: Path, spec: str) -> WeightFile:
    if not (folder / CONFIG).is_file():
        raise UserError(f"{spec}: the folder has no {CONFIG}; give a Hugging Face folder or a weight file")
    config = read_json(folder / CONFIG)
    layouts = ((INDEX, WEIGHTS, _open_safetensors), (TORCH_INDEX, TORCH_WEIGHTS, _open_torch))
    for index, single_file, open_files in layouts:
        if (folder / index).is_file():
            return open_files(_existing_shards(folder / index, spec), spec, config)
        if (folder / single_file).is_file():
            return open_files([folder / single_file], spec, config)
    if (folder / GALILEO_WEIGHTS).is_file():
        return _open_torch([folder / GALILEO_WEIGHTS], spec, config)
    raise UserError(f"{spec}: the folder has a {CONFIG} but no weights; put {WEIGHTS} beside it")


def _existing_shards(index: Path, spec: str) -> list[Path]:
    shards = [index.with_name(name) for name in shard_names(index)]
    for shard in shards:
        if not shard.is_file():
            raise UserError(
                f"{spec}: the shard {shard.name}, which {index.name} names, is missing; download it beside it"
            )
    return shards


def _open_safetensors(paths: list[Path], spec: str, config: dict[str, Any] | None = None) -> WeightFile:
    path_of: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    metadata: dict[str, str] = {}
    for path in paths:
        try:
            with safe_open(path, "np") as file:
                metadata |= file.metadata() or {}
                for name in file.keys():  # noqa: SIM118 (an open file is no mapping)
                    path_of[name], shapes[name] = path, tuple(file.get_slice(name).get_shape())
        except (OSError, SafetensorError) as problem:
            raise UserError(
                f"{path}: not a complete safetensors file ({_one_line(problem)}); it may be truncated: "
                "download or write it again"
            ) from None

    def read(name: str) -> np.ndarray:
        """Read one tensor."""
        # The file is opened again for every tensor: mapped pages stay in memory until it is closed.
        with safe_open(path_of[name], "np") as file:
            return file.get_tensor(name)

    return WeightFile(spec, paths, shapes, read, config=config, metadata=metadata)


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())


def _open_torch(paths: list[Path], spec: str, config: dict[str, Any] | None = None) -> WeightFile:
    loaded = [_load_torch(path, spec) for path in paths]
    state_dicts = [_find_state_dict(each) for each in loaded]
    items = itertools.chain.from_iterable(state.items() for state in state_dicts)
    tensors = {name: value for name, value in items if hasattr(value, "detach")}
    if not tensors:
        raise UserError(f"{spec}: holds no tensors by name; give a file with a state dict")

    def read(name: str) -> np.ndarray:
        """Read one tensor."""
        tensor = tensors[name].detach()
        # torch cannot convert bfloat16 to numpy
        is_half = str(tensor.dtype).removeprefix("torch.") in _HALF_PRECISION
        return (tensor.float() if is_half else tensor).numpy()

    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return WeightFile(spec, paths, shapes, read, config=config, metadata=_metadata_beside(loaded))


def _metadata_beside(loaded: Sequence[Any]) -> dict[str, str]:
    """Return the record of origin that `writing.write_tensors_file` stores beside a state dict."""
    metadata: dict[str, str] = {}
    for each in loaded:
        meta = each.get("meta") if isinstance(each, Mapping) else None
        record = meta.get(MANIFEST) if isinstance(meta, Mapping) else None
        if isinstance(record, str):
            metadata[MANIFEST] = record
    return metadata


def _load_torch(path: Path, spec: str) -> Any:
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
    try:
        with torch.serialization.safe_globals(_stand_ins()):
            return torch.load(path, weights_only=True, mmap=is_zip, map_location="cpu")
    except pickle.UnpicklingError as problem:
        if "weights_only" not in str(problem) and "Unsupported" not in str(problem):
            raise UserError(broken) from None
        raise UserError(
            f"{spec}: the file contains code, which was not run; if you trust the file, save only "
            "its tensors: torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError):
        raise UserError(broken) from None


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80"  # the opcode that every pickle of protocol 2 and later starts with


def _find_state_dict(value: Any) -> Mapping[str, Any]:
    """Return the state dict nested in what training code saved; empty if there is none."""
    while isinstance(value, Mapping):
        nested = next((value[key] for key in STATE_DICT_KEYS if isinstance(value.get(key), Mapping)), None)
        if nested is None:
            return value
        value = nested
    return {}


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
