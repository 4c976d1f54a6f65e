"""Files of prepared tiles: the description in JSON, the index, and the records in the shards.

TensorFlow Datasets reads the same folder. It imports the modules that features.json names, so it is not asked
here: the fields of a record follow from statistics.json, and features.json only has to agree.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.records import IGNORE, Record
from spectralmoe_jax.errors import UserError, shown
from spectralmoe_jax.files import read_json
from spectralmoe_jax.npz import read_npz

STATISTICS, INDEX, INFO, FEATURES = "statistics.json", "index.npz", "dataset_info.json", "features.json"
DTYPES = ("uint8", "int8", "uint16", "int16", "float32")
_TEXTS, _NUMBERS = ("domain", "name", "image"), ("height", "width", "class_pixels")
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_LARGEST_SIDE = 1 << 20  # pixels
_MOST_CLASSES = 255
_importing = threading.Lock()


def remedy_for(folder: Path) -> str:
    """Return what can be done about a damaged file of a folder."""
    return f"restore the file, or remove {folder} and prepare it again"


def read_statistics(folder: Path) -> dict[str, Any]:
    """Return the content of statistics.json, as far as it is read here checked.

    Raises:
      UserError: it is damaged.
    """
    path = folder / STATISTICS
    found = read_json(path, remedy_for(folder))
    splits = found.get("splits")
    sound = {
        "benchmark": isinstance(found.get("benchmark"), str),
        "bands": _are_names(found.get("bands")),
        "classes": _are_names(found.get("classes")) and len(found["classes"]) <= _MOST_CLASSES,
        "dtype": found.get("dtype") in DTYPES,
        "splits": isinstance(splits, dict)
        and _are_names(list(splits))
        and all(isinstance(split, dict) and _is_count(split.get("tiles")) for split in splits.values()),
    }
    wrong = [key for key, is_sound in sound.items() if not is_sound]
    if wrong:
        raise damaged(path, f"{', '.join(wrong)} missing or of another form")
    return found


def damaged(path: Path, what: str) -> UserError:
    """Return the error for a damaged file of a folder."""
    return UserError(f"{path}: damaged, {what}: {remedy_for(path.parent)}")


def _are_names(value: Any) -> bool:
    """Return whether a value is a list of different names."""
    are_texts = isinstance(value, list) and value and all(isinstance(name, str) and name for name in value)
    return bool(are_texts) and len(set(value)) == len(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def read_columns(
    folder: Path, splits: Sequence[str], statistics: Mapping[str, Any]
) -> dict[str, dict[str, np.ndarray]]:
    """Return the columns of index.npz for each of some splits: `class_pixels` (N, K), the others (N,).

    Raises:
      UserError: the file is damaged, or does not fit the statistics.
    """
    path, keys = folder / INDEX, (*_TEXTS, *_NUMBERS)
    arrays = read_npz(path, remedy_for(folder), [f"{split}/{key}" for split in splits for key in keys])
    columns = {split: {key: arrays[f"{split}/{key}"] for key in keys} for split in splits}
    for split, of_split in columns.items():
        tiles, classes = statistics["splits"][split]["tiles"], len(statistics["classes"])
        for key, column in of_split.items():
            shape = (tiles, classes) if key == "class_pixels" else (tiles,)
            if column.shape != shape or column.dtype.kind not in ("U" if key in _TEXTS else "iu"):
                raise damaged(path, f"{shown(split)}/{key} is {column.shape} {column.dtype}, not {shape}")
        height, width = (of_split[key].astype(np.int64) for key in ("height", "width"))
        sides, counts = np.concatenate([height, width]), of_split["class_pixels"].astype(np.int64)
        if not ((sides > 0) & (sides <= _LARGEST_SIDE)).all():
            raise damaged(path, f"a tile of {shown(split)} has a side of no or too many pixels")
        if (counts < 0).any() or (counts.max(axis=1, initial=0) > height * width).any():
            raise damaged(path, f"a tile of {shown(split)} has more labelled pixels than pixels")
    return columns


@dataclass(frozen=True)
class PreparedRecord(Record):
    """A prepared tile.

    Attributes:
      image: name of the image that it was cut from.
      split: its split.
      index: its number in the split.
      labelled: number of its labelled pixels.
    """

    image: str
    split: str
    index: int
    labelled: int

    @property
    def image_name(self) -> str:
        """The image that the tile was cut from."""
        return self.image


@dataclass(frozen=True)
class Layout:
    """Shards of a folder, and how a record is stored.

    Attributes:
      paths: files of the shards of each split.
      ends: for each of them the number of tiles up to its end.
      dtype: type of the pixels.
      bands: number of bands.
      classes: number of classes.
    """

    paths: Mapping[str, tuple[Path, ...]]
    ends: Mapping[str, np.ndarray]
    dtype: np.dtype
    bands: int
    classes: int

    def locate(self, split: str, index: int) -> tuple[Path, int, int]:
        """Return (shard, its number of records, position in it) of tile `index` of `split`."""
        ends = self.ends[split]
        shard = int(np.searchsorted(ends, index, side="right"))
        start = int(ends[shard - 1]) if shard else 0
        return self.paths[split][shard], int(ends[shard]) - start, index - start

    def decode(self, encoded: bytes, tile: PreparedRecord) -> dict[str, np.ndarray]:
        """Return `image` (h, w, C) and `label` (h, w) of the record of a tile, read-only.

        Raises:
          ValueError: the record is damaged, or not the one that the index describes.
        """
        from google.protobuf.message import DecodeError

        try:
            fields = _example().FromString(encoded).features.feature
        except DecodeError as problem:
            raise ValueError(str(problem)) from None
        domain, image, name = _tile_names(fields)
        if (tile.domain, tile.image) != (domain, image) or tile.name not in (image, name):
            raise ValueError(f"it holds the tile {name} of {domain}, not {tile.name} of {tile.domain}")
        size = (tile.height, tile.width)
        stored = {"image": (self.dtype, (*size, self.bands)), "label": (np.dtype(np.uint8), size)}
        arrays = {name: _array(fields, name, dtype, shape) for name, (dtype, shape) in stored.items()}
        label = arrays["label"]
        labelled = np.count_nonzero(label < self.classes)
        if labelled + np.count_nonzero(label == IGNORE) != label.size:
            raise ValueError(f"its label has values that are none of the {self.classes} classes")
        if labelled != tile.labelled:
            raise ValueError(f"it has {labelled} labelled pixels, {INDEX} says {tile.labelled}")
        return arrays


def _tile_names(fields: Any) -> tuple[str, str, str]:
    """Return the names of the domain, the image and the tile of a record, as the index has them.

    The name of the tile is that of an image with several; the index gives one without others its image's.
    """
    texts = [list(fields[key].bytes_list.value) for key in ("domain", "name") if key in fields]
    places = [list(fields[key].int64_list.value) for key in ("row", "col") if key in fields]
    if [len(values) for values in (*texts, *places)] != [1, 1, 1, 1]:
        raise ValueError("it has no domain, name, row or col")
    domain, name = (values[0].decode() for values in texts)
    image = f"{domain}/{name}"
    return domain, image, "_".join([image, *(f"{values[0]:05d}" for values in places)])


def _example() -> Any:
    """Return the type of the message that a record is.

    TensorFlow Datasets imports its parts when they are first used. Two threads that begin at the same time
    would wait for each other for ever.
    """
    with _importing:
        from tensorflow_datasets.proto import tf_example_pb2

        return tf_example_pb2.Example


def _array(fields: Any, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Return a field of a record whose type and shape are known."""
    values: Sequence[bytes] = fields[f"{name}/value"].bytes_list.value if f"{name}/value" in fields else ()
    if len(values) != 1:
        raise ValueError(f"it has no {name}")
    data = values[0]
    stated = tuple(fields[f"{name}/shape"].int64_list.value)
    if stated != shape or len(data) != int(np.prod(shape)) * dtype.itemsize:
        raise ValueError(f"its {name} is {stated}, {len(data)} bytes, not {shape} {dtype}")
    return np.frombuffer(data, dtype).reshape(shape)


def read_layout(folder: Path, statistics: Mapping[str, Any]) -> Layout:
    """Return the layout of a folder from dataset_info.json and features.json.

    Raises:
      UserError: a file is damaged, or does not fit the statistics.
    """
    dtype, bands = np.dtype(statistics["dtype"]), len(statistics["bands"])
    _check_features(folder / FEATURES, dtype, bands)
    path = folder / INFO
    info = read_json(path, remedy_for(folder))
    name, splits = info.get("name"), info.get("splits")
    if not (isinstance(name, str) and name.isidentifier()) or info.get("fileFormat") != "array_record":
        raise damaged(path, "its name or fileFormat is not one of prepared tiles")
    if not isinstance(splits, list) or not all(isinstance(split, dict) for split in splits):
        raise damaged(path, "it lists no splits")
    lengths = {str(split.get("name")): _shard_lengths(path, split) for split in splits}
    stated = {split: sum(of_split) for split, of_split in lengths.items()}
    if len(lengths) < len(splits) or stated != {k: v["tiles"] for k, v in statistics["splits"].items()}:
        raise damaged(path, f"its splits are not those of {STATISTICS}")
    paths = {
        split: tuple(
            folder / f"{name}-{split}.array_record-{number:05d}-of-{len(of_split):05d}"
            for number in range(len(of_split))
        )
        for split, of_split in lengths.items()
    }
    ends = {split: np.cumsum(of_split, dtype=np.int64) for split, of_split in lengths.items()}
    return Layout(paths, ends, dtype, bands, len(statistics["classes"]))


def _shard_lengths(path: Path, split: Mapping[str, Any]) -> list[int]:
    """Return the number of tiles in each shard of a split."""
    name, stored = split.get("name"), split.get("shardLengths")
    if not isinstance(name, str) or not name.replace("-", "_").isidentifier():
        raise damaged(path, f"{shown(repr(name))} is no name of a split")
    if split.get("filepathTemplate", _TEMPLATE) != _TEMPLATE:
        raise damaged(path, f"the shards of {name} are not named as those of prepared tiles")
    try:
        lengths = [int(length) for length in stored] if isinstance(stored, list) else []
    except (TypeError, ValueError, OverflowError):
        lengths = []
    if not lengths or min(lengths) < 1:
        raise damaged(path, f"the split {name} states a shard without tiles")
    return lengths


def _check_features(path: Path, dtype: np.dtype, bands: int) -> None:
    """Compare features.json with the fields of prepared tiles; what it names is not imported."""
    if not path.is_file():
        raise damaged(path, "it is missing")
    found = read_json(path, remedy_for(path.parent))
    wanted = {"image": (dtype.name, ["-1", "-1", str(bands)]), "label": ("uint8", ["-1", "-1"])}
    for name, (type_name, dimensions) in wanted.items():
        tensor = _inside(found, "featuresDict", "features", name, "tensor")
        stored = _inside(tensor, "shape").get("dimensions")
        if stored != dimensions or (tensor.get("dtype"), tensor.get("encoding")) != (type_name, "bytes"):
            raise damaged(path, f"its {name} is not that of prepared tiles, {type_name} of {bands} bands")


def _inside(value: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return an object inside others; an empty one where it is missing or no object."""
    for key in keys:
        inner = value.get(key)
        value = inner if isinstance(inner, dict) else {}
    return value
