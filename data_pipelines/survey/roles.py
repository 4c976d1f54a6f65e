"""Which files of a folder are images and which are labels, by their names and contents."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.windows import Window

from data_pipelines.readers.raster_file import open_image
from data_pipelines.readers.raster_header import Header, read_header
from data_pipelines.readers.vector_file import VECTOR_FORMATS
from spectralmoe_jax.errors import UserError

RASTER_FORMATS = (".tif", ".tiff", ".jp2", ".png", ".jpg", ".jpeg", ".bmp", ".img", ".vrt")
"""Suffixes of raster files that are looked at; others are named with `--images` and `--labels`."""

_LABEL_WORDS = {
    "mask", "masks", "label", "labels", "lbl", "gt", "truth", "groundtruth", "annotation", "annotations",
    "seg", "segmentation", "landcover", "lulc", "class", "classes",
}  # fmt: skip
_IMAGE_WORDS = {"image", "images", "img", "imgs", "scene", "scenes", "rgb", "photo", "photos"}
_LOOKED_AT = 3  # files of a family whose contents are looked at
_SIDE = 512  # pixels along a side that are looked at, spread over the file
_LARGE, _WINDOW = 1 << 26, 4096  # pixels of a file of which a window in the middle is looked at, and its side
_NOT_LABELS = (".json", ".parquet")  # as often something else; used only where `--labels` names them
# number of different values or colours up to which a raster may be labels: with a name that says so, and
# without
_NAMED, _UNNAMED = 256, 32


@dataclass(frozen=True)
class Family:
    """Files whose paths differ in numbers only.

    Attributes:
      pattern: their path below the folder, with `#` for each number.
      paths: the files.
      header: header of the first one.
      labels: their names and contents are those of labels.
    """

    pattern: str
    paths: tuple[Path, ...]
    header: Header
    labels: bool


def find_files(root: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the files below a folder with one of some suffixes, hidden ones left out, by path.

    Links to folders are followed, but not to one that they are in, which would have no end.

    Raises:
      UserError: the name of a file is not UTF-8.
    """
    found: list[Path] = []
    for folder, inner, names in os.walk(root, followlinks=True):
        here = Path(folder)
        inner[:] = [name for name in inner if not name.startswith(".") and not _is_loop(here / name)]
        paths = [here / name for name in names if not name.startswith(".")]
        found += [path for path in paths if path.suffix.lower() in suffixes and path.is_file()]
    for path in found:
        require_text(os.fspath(path), "the name of a file")
    return sorted(found)


def _is_loop(folder: Path) -> bool:
    """Return whether a folder's place, or a folder that its path leads through, is inside of it."""
    if not any(part.is_symlink() for part in (folder, *folder.parents)):
        return False
    inside = os.path.realpath(folder)
    return any(Path(os.path.realpath(parent)).is_relative_to(inside) for parent in folder.absolute().parents)


def require_text(text: str, what: str) -> None:
    """Raise a UserError unless text can be written as UTF-8, as not all names of files can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        said = text.encode(errors="backslashreplace").decode()
        raise UserError(f"{said}: {what} is not UTF-8, and cannot be in a configuration: rename it") from None


def find_families(root: Path) -> list[Family]:
    """Return the families of the raster files below a folder.

    Raises:
      UserError: a file cannot be read.
    """
    members: dict[str, list[Path]] = {}
    for path in find_files(root, RASTER_FORMATS):
        pattern = re.sub(r"\d+", "#", path.relative_to(root).as_posix())
        members.setdefault(pattern, []).append(path)
    return [
        Family(
            pattern=pattern,
            paths=tuple(paths),
            header=read_header(paths[0]),
            labels=all(looks_like_labels(path, path.relative_to(root)) for path in paths[:_LOOKED_AT]),
        )
        for pattern, paths in members.items()
    ]


def find_vector_files(root: Path) -> list[Path]:
    """Return the files of polygons below a folder."""
    return find_files(root, [suffix for suffix in VECTOR_FORMATS if suffix not in _NOT_LABELS])


def looks_like_labels(path: Path, place: Path) -> bool:
    """Return whether a raster can be labels: one band of few values, or few colours.

    Args:
      path: the file.
      place: its path below the folder, whose words count: "mask" allows more values, "image" none.

    Raises:
      UserError: the file cannot be read.
    """
    word = _role_in_words(place)
    if word == "image":
        return False
    with open_image(path) as dataset:
        if dataset.driver == "JPEG" or dataset.count not in (1, 3, 4):
            return False
        if dataset.count > 1 and set(dataset.dtypes) != {"uint8"}:
            return False
        pixels = _sample(dataset)
    return _is_coded(pixels, _NAMED if word == "label" else _UNNAMED)


def _sample(dataset: Any) -> np.ndarray:
    """Read a part of the pixels (bands, h, w) of an open file: every n-th, or of large files a window."""
    height, width = dataset.height, dataset.width
    part = None
    if height * width > _LARGE:
        height, width = min(height, _WINDOW), min(width, _WINDOW)
        part = Window((dataset.width - width) // 2, (dataset.height - height) // 2, width, height)
    shape = dataset.count, min(height, _SIDE), min(width, _SIDE)
    return dataset.read(window=part, out_shape=shape)  # nearest neighbours, so that values stay


def _is_coded(pixels: np.ndarray, limit: int) -> bool:
    """Return whether pixels (bands, H, W) are whole numbers, or colours, of at most `limit` kinds."""
    if len(pixels) == 1:
        values = np.unique(pixels)
        values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        return values.dtype.kind in "uif" and len(values) <= limit and bool((values == values.round()).all())
    packed = pixels[:3].astype(np.uint32) * np.array([1 << 16, 1 << 8, 1], np.uint32)[:, None, None]
    return len(np.unique(packed.sum(axis=0))) <= limit


def _role_in_words(place: Path) -> str:
    """Return what the words of a path say: "label", as in masks/image_1.png, or else "image", or ""."""
    words = set(re.findall(r"[a-z]+", place.with_suffix("").as_posix().lower()))
    return "label" if words & _LABEL_WORDS else "image" if words & _IMAGE_WORDS else ""


def require_files(root: Path) -> None:
    """Raise a UserError unless a folder exists."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder, name the one with your images")
