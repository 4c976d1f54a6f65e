"""Read weight files of any kind one tensor at a time.

A weight file is a safetensors file, a file of `torch.save`, a Hugging Face folder, or a name on the hub:
`hf://owner/name[@revision][/file or folder]`. `open_weight_file` gives each as a `WeightFile`: a read-only
mapping from tensor names to arrays that reads a tensor from disk only on access.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (registers bfloat16 with numpy)
import numpy as np
from safetensors import SafetensorError, safe_open

from spectralmoe_jax.errors import UserError, shown
from spectralmoe_jax.files import parse_json
from spectralmoe_jax.weights import torch_files
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

_LONGEST_PATH = 4096
TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
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
        types: Mapping[str, str] | None = None,
        config: dict[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
    ):
        self.spec, self.paths, self.config = spec, tuple(paths), config
        self.metadata = dict(metadata or {})
        self._shapes, self._read = dict(shapes), read
        self._types = dict.fromkeys(shapes, "float32") | dict(types or {})

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._shapes:
            raise KeyError(name)
        if self._types[name] not in _TYPES:
            raise UserError(
                f"{self.spec}: {shown(name)} is {self._types[name]}, which is not read: save it as float32, "
                "float16 or bfloat16"
            )
        try:
            value = self._read(name)
        except (ArithmeticError, LookupError, OSError, RuntimeError, SafetensorError, ValueError) as problem:
            raise UserError(f"{self.spec}: {shown(name)} cannot be read ({_one_line(problem)})") from None
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

    def type(self, name: str) -> str:
        """Return the name of a tensor's NumPy type, such as "float32", without reading it.

        Of tensors that are not read it is what they are, such as "sparse" or "F8_E4M3".
        """
        return self._types[name]

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
            types={new: self._types[old] for new, old in old_names.items()},
            config=self.config,
            metadata=self.metadata if metadata is None else metadata,
        )


# Keys of a record of origin that are read again, and what they hold.
_RECORDED: dict[str, type | tuple[type, ...]] = {
    "encoder": dict, "encoders": dict, "configuration": dict, "earlier": dict, "format": str, "licence": str,
    "preset": (str, type(None)),
}  # fmt: skip


def manifest(file: WeightFile) -> dict[str, Any]:
    """Return the record of origin in a native file's header; empty if there is none.

    Raises:
      UserError: the record is damaged.
    """
    if MANIFEST not in file.metadata:
        return {}
    remedy = "convert the file that it was made from again"
    record = parse_json(file.metadata[MANIFEST], f"{file.spec}: the record in its header", remedy)
    _require_record(file.spec, record, remedy)
    return record


def _require_record(spec: str, record: Any, remedy: str) -> None:
    """Raise a UserError where a record, or one inside it, holds something else than records do."""
    pending = [record]
    while pending:
        each = pending.pop()
        wrong = not isinstance(each, dict) or [
            key for key, kind in _RECORDED.items() if key in each and not isinstance(each[key], kind)
        ]
        if wrong:
            what = f"wrong {', '.join(wrong)}" if isinstance(wrong, list) else "it is no object"
            raise UserError(f"{spec}: the record in its header is damaged ({what}): {remedy}")
        pending += [each["earlier"]] if "earlier" in each else []
        pending += list(each.get("encoders", {}).values())


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
    name = shown(text, _LONGEST_PATH)
    try:
        return _open_path(Path(text).expanduser(), name)
    except RuntimeError as problem:  # of a home folder that is none
        raise UserError(f"{name}: {problem}") from None


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


# The types of tensors that are read: as they are, or half precision as float32.
_SAFETENSORS_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
_TYPES = frozenset((*_SAFETENSORS_TYPES.values(), "complex128"))


def _open_safetensors(paths: list[Path], spec: str, config: dict[str, Any] | None = None) -> WeightFile:
    path_of: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    types: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for path in paths:
        try:
            with safe_open(path, "np") as file:
                metadata |= file.metadata() or {}
                names = list(file.keys())
                slices = [file.get_slice(name) for name in names]
                of_file = {name: tuple(each.get_shape()) for name, each in zip(names, slices, strict=True)}
                types |= {n: _type_name(each.get_dtype()) for n, each in zip(names, slices, strict=True)}
            _require_distinct(path)
        except (MemoryError, OSError, SafetensorError) as problem:
            raise UserError(
                f"{path}: not a complete safetensors file ({_one_line(problem)}); it may be truncated: "
                "download or write it again"
            ) from None
        _require_new(spec, of_file, shapes)
        shapes |= of_file
        path_of |= dict.fromkeys(of_file, path)

    def read(name: str) -> np.ndarray:
        """Read one tensor."""
        # The file is opened again for every tensor: mapped pages stay in memory until it is closed.
        with safe_open(path_of[name], "np") as file:
            return file.get_tensor(name)

    return WeightFile(spec, paths, shapes, read, types=types, config=config, metadata=metadata)


def _type_name(stored: object) -> str:
    return _SAFETENSORS_TYPES.get(str(stored), str(stored))


def _require_distinct(path: Path) -> None:
    """Raise a UserError if a safetensors file has a name twice; the library would take the last."""
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))

    def refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return an object of the header, whose names have to differ."""
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            name = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{path}: damaged, it holds {shown(name)} twice: download or write it again")
        return found

    json.loads(header, object_pairs_hook=refuse_repeated)


def _require_new(spec: str, names: Iterable[str], known: Mapping[str, Any]) -> None:
    """Raise a UserError if two shards hold a tensor of the same name."""
    for name in names:
        if name in known:
            raise UserError(f"{spec}: two of its files hold {shown(name)}: download them again")


def _one_line(problem: Exception) -> str:
    return shown(" ".join(str(problem).split()))


def _open_torch(paths: list[Path], spec: str, config: dict[str, Any] | None = None) -> WeightFile:
    tensors: dict[str, Any] = {}
    types: dict[str, str] = {}
    metadata: dict[str, str] = {}
    for path in paths:
        loaded = torch_files.load(path, spec)
        of_file = torch_files.find_tensors(loaded)
        _require_new(spec, of_file, tensors)
        sizes = torch_files.sizes_of_storages(path)
        for name, tensor in of_file.items():
            types[name] = torch_files.type_of(tensor)
            if types[name] in _TYPES and torch_files.is_larger_than_file(tensor, path):
                raise UserError(
                    f"{spec}: {shown(name)} repeats few elements to {tensor.numel():,}, more than its file "
                    "holds: save it whole, with .contiguous()"
                )
            if types[name] in _TYPES and sizes is not None and not torch_files.is_stored(tensor, sizes):
                raise UserError(
                    f"{spec}: damaged, it holds {shown(name)} in another size than stated: download it again"
                )
        tensors |= of_file
        metadata |= _metadata_beside(loaded)
    if not tensors:
        raise UserError(f"{spec}: holds no tensors by name; give a file with a state dict")
    unchecked = list(paths)

    def read(name: str) -> np.ndarray:
        """Read one tensor; before the first, compare the files with their checksums."""
        while unchecked:
            torch_files.require_undamaged(unchecked[-1], spec)
            unchecked.pop()
        return torch_files.as_array(tensors[name])

    shapes = {name: torch_files.shape_of(tensor) for name, tensor in tensors.items()}
    return WeightFile(spec, paths, shapes, read, types=types, config=config, metadata=metadata)


def _metadata_beside(loaded: Any) -> dict[str, str]:
    """Return the record of origin that `writing.write_tensors_file` stores beside a state dict."""
    meta = loaded.get("meta") if isinstance(loaded, Mapping) else None
    record = meta.get(MANIFEST) if isinstance(meta, Mapping) else None
    return {MANIFEST: record} if isinstance(record, str) else {}
