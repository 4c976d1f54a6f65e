"""Weights wherever users have them, read one tensor at a time.

A source is a safetensors file, a Hugging Face folder, `hf://owner/name[@revision][/file]` or a file of
`torch.save`. Whatever it is, it is a read-only mapping from names to arrays that loads a tensor only when it
is asked for it.

Stand-ins for what training code leaves in a file of `torch.save` beside the weights.

mmengine stores its log with the state dict: objects of its own, numpy arrays, and methods looked up by
`getattr`. None of that is wanted, and all of it would have torch refuse the file. Each name is therefore
answered with an empty class, so that reading goes on, nothing of the file is run, and mmengine need not be
installed. Every other name is refused as before.
"""

from __future__ import annotations

import itertools
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (numpy knows bfloat16 once this is imported)
import numpy as np
from safetensors import SafetensorError, safe_open

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.weights.hub import (
    CONFIG,
    HUB,
    INDEX,
    TORCH_INDEX,
    TORCH_WEIGHTS,
    WEIGHTS,
    fetch,
    read_json,
    shards_of,
)

_NAMES = (
    ("mmengine.logging.history_buffer", "HistoryBuffer"),
    ("mmengine.logging", "HistoryBuffer"),
    ("builtins", "getattr"),
    ("__builtin__", "getattr"),  # as pickle's protocol 2 writes it
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    ("_codecs", "encode"),
)


class _Inert:
    """Takes whatever a pickle hands to it, and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def stand_ins() -> list[Any]:
    """One empty class under each name, for `torch.serialization.safe_globals`."""
    return [type(name, (_Inert,), {"__module__": module}) for module, name in _NAMES]


TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
NESTED = ("state_dict", "model", "module", "teacher")  # under which training code puts the state dict
_HALF = ("float16", "bfloat16")


class Source(Mapping[str, np.ndarray]):
    """Tensors by name, each read from disk when asked for; half precision comes out as float32, exactly.

    Attributes:
      describe: what to call the source in messages: its path, or the specification it was opened by.
      files: every file the tensors lie in.
      config: config.json of a Hugging Face folder, or None.
      metadata: of a safetensors file's header.
    """

    def __init__(self, describe: str, files: list[Path], shapes: Mapping[str, tuple[int, ...]],
                 read: Callable[[str], np.ndarray], *, config: dict[str, Any] | None = None,
                 metadata: Mapping[str, str] | None = None):  # fmt: skip
        self.describe, self.files, self.config = describe, tuple(files), config
        self.metadata = dict(metadata or {})
        self._shapes, self._read = dict(shapes), read

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._shapes:
            raise KeyError(name)
        value = self._read(name)
        return value.astype(np.float32) if value.dtype.name in _HALF else value

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        return self._shapes[name]

    def renamed(self, rename: Callable[[str], str], metadata: Mapping[str, str] | None = None) -> Source:
        """The same tensors under other names, with other metadata where given; a name that becomes empty is
        left out."""
        names = {rename(name): name for name in self}
        names.pop("", None)
        shapes = {new: self._shapes[old] for new, old in names.items()}
        return Source(
            self.describe, list(self.files), shapes, lambda name: self._read(names[name]),
            config=self.config, metadata=self.metadata if metadata is None else metadata,
        )  # fmt: skip


def open_source(spec: str | os.PathLike[str]) -> Source:
    """Open weights; nothing but names and shapes is read yet.

    Args:
      spec: a .safetensors file, a Hugging Face folder (config.json beside model.safetensors, sharded or not),
        `hf://owner/name[@revision][/file]`, or a .pth, .pt, .ckpt or .bin file of `torch.save`, of which
        tensors alone are read: code in it is never run.

    Raises UserError, in one line, for a file that is missing, truncated, of another kind, or that holds code;
    for a folder without weights or with a shard missing; for a name on the hub that is neither cached nor to
    be had.
    """
    text = os.fspath(spec)
    if text.startswith(HUB):
        return _open_path(fetch(text), text)
    return _open_path(Path(text).expanduser(), text)


def _open_path(path: Path, describe: str) -> Source:
    if path.is_dir():
        return _open_folder(path, describe)
    if not path.is_file():
        raise UserError(
            f"{describe}: no such file or folder; give a file of weights or a Hugging Face folder"
        )
    if path.suffix == ".safetensors":
        return _open_safetensors([path], describe)
    if path.suffix in TORCH_SUFFIXES:
        return _open_torch([path], describe)
    allowed = ", ".join((".safetensors", *TORCH_SUFFIXES))
    raise UserError(f"{describe}: weights are files ending in {allowed}, or Hugging Face folders")


def _open_folder(folder: Path, describe: str) -> Source:
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{describe}: the folder has no {CONFIG}; give a Hugging Face folder or a weights file"
        )
    config = read_json(folder / CONFIG)
    for index, whole, open_files in (
        (INDEX, WEIGHTS, _open_safetensors), (TORCH_INDEX, TORCH_WEIGHTS, _open_torch),
    ):  # fmt: skip
        if (folder / index).is_file():
            return open_files(_present_shards(folder / index, describe), describe, config)
        if (folder / whole).is_file():
            return open_files([folder / whole], describe, config)
    raise UserError(f"{describe}: the folder has a {CONFIG} but no weights; put {WEIGHTS} beside it")


def _present_shards(index: Path, describe: str) -> list[Path]:
    shards = [index.with_name(shard) for shard in shards_of(index)]
    for shard in shards:
        if not shard.is_file():
            raise UserError(
                f"{describe}: the shard {shard.name}, which {index.name} names, is missing; "
                "download it beside it"
            )
    return shards


def _open_safetensors(paths: list[Path], describe: str, config: dict[str, Any] | None = None) -> Source:
    places: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    metadata: dict[str, str] = {}
    for path in paths:
        try:
            with safe_open(path, "np") as file:
                metadata |= file.metadata() or {}
                for name in file.keys():  # noqa: SIM118 (an open file is no mapping)
                    places[name], shapes[name] = path, tuple(file.get_slice(name).get_shape())
        except (OSError, SafetensorError) as problem:
            raise UserError(
                f"{path}: not a whole safetensors file ({_one_line(problem)}); it may be truncated: "
                "download or write it again"
            ) from None

    def read(name: str) -> np.ndarray:
        # opened anew for every tensor: pages of an open file stay in memory until it is closed
        with safe_open(places[name], "np") as file:
            return file.get_tensor(name)

    return Source(describe, paths, shapes, read, config=config, metadata=metadata)


def _open_torch(paths: list[Path], describe: str, config: dict[str, Any] | None = None) -> Source:
    states = [_state_dict(_load_torch(path, describe)) for path in paths]
    items = itertools.chain.from_iterable(state.items() for state in states)
    tensors = {name: value for name, value in items if hasattr(value, "detach")}
    if not tensors:
        raise UserError(f"{describe}: holds no tensors by name; give a file with a state dict")

    def read(name: str) -> np.ndarray:
        tensor = tensors[name].detach()
        # numpy has no bfloat16 of its own, and float32 holds every half exactly
        return (tensor.float() if str(tensor.dtype).removeprefix("torch.") in _HALF else tensor).numpy()

    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return Source(describe, paths, shapes, read, config=config)


def _load_torch(path: Path, describe: str) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{describe}: reading a {path.suffix} file needs PyTorch: pip install torch (or give safetensors)"
        ) from None
    zipped = zipfile.is_zipfile(path)
    broken = f"{describe}: not a whole file of torch.save; it may be truncated: download it again"
    if not zipped and not _is_pickle(path):
        raise UserError(broken)
    try:
        with torch.serialization.safe_globals(stand_ins()):
            # files of before torch 1.6 are no archives and cannot be mapped
            return torch.load(path, weights_only=True, mmap=zipped, map_location="cpu")
    except pickle.UnpicklingError as problem:
        if "weights_only" not in str(problem) and "Unsupported" not in str(problem):
            raise UserError(broken) from None
        raise UserError(
            f"{describe}: the file contains code, which was not run; where you trust it, keep its tensors "
            "alone: torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError):
        raise UserError(broken) from None


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def _state_dict(value: Any) -> Mapping[str, Any]:
    """The state dict inside what training code saved around it."""
    while isinstance(value, Mapping):
        inner = next((value[key] for key in NESTED if isinstance(value.get(key), Mapping)), None)
        if inner is None:
            return value
        value = inner
    return {}


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())
