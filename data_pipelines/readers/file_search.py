"""Finding images and their masks below a folder, or in a list.

Whether image files are whole, seen from their structure, without decoding a pixel.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import rasterio

from data_pipelines.readers.raster_file import opened, unreadable
from spectralmoe_jax.errors import UserError

_DOMAIN = "{domain}"
_LIST = ".txt"


def find_images(
    root: Path, image_glob: str | Sequence[str], domains: Sequence[str] | None
) -> list[tuple[str, Path]]:
    """(domain, path) of every image of `domains`, or of all of them, in a fixed order.

    `image_glob` is a pattern of paths below `root`, or several, each of which has to match something; a file
    matched twice counts once, and a hidden one (macOS leaves `._NAME` beside NAME) is not meant. The path of
    a file is a pattern, too, and that of one elsewhere if it is absolute; a text file (.txt) stands for its
    lines.

    The domain of an image is what stands at `{domain}` in its pattern. For a pattern without, it is the first
    folder of its path below `root`, or the image's name without ending if it lies in `root` itself; of an
    image elsewhere it is the folder that it lies in.

    Raises:
      UserError: no such folder, nothing found, an unknown domain, or a pattern that is none.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder, set data.root to where the images are")
    found: dict[str, list[Path]] = {}
    seen: set[Path] = set()
    for pattern in _patterns(root, image_glob):
        matching = _matching(root, pattern.replace(_DOMAIN, "*"))
        if not matching:
            raise UserError(
                f"{root}: no image matches data.image_glob={pattern!r}, correct the pattern or the root"
            )
        for path in matching:
            if path not in seen:
                found.setdefault(_domain(root, path, pattern), []).append(path)
                seen.add(path)
    wanted = tuple(found) if domains is None else tuple(dict.fromkeys(domains))
    if not wanted:
        raise UserError(f"{root}: the split is empty, name at least one of its domains: {', '.join(found)}")
    for domain in wanted:
        if domain not in found:
            raise UserError(f"{root}: no images of domain {domain!r}, there are {', '.join(found)}")
    return [(domain, path) for domain in wanted for path in found[domain]]


def mask_path(root: Path, template: str, domain: str, image: Path) -> Path:
    """The mask that `template` names for an image.

    Raises:
      UserError: the template has a place that is neither {domain} nor {stem}.
    """
    try:
        return root / template.format(domain=domain, stem=image.stem)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"data.mask_template={template!r}: only {{domain}} and {{stem}} can stand in it"
        ) from error


def record_names(root: Path, images: Sequence[tuple[str, Path]]) -> list[str]:
    """The path of each image below `root`, or the whole path of one elsewhere, without its ending.

    Raises:
      UserError: two images that differ in their ending alone.
    """
    names: dict[str, Path] = {}
    for _, path in images:
        name = _place(root, path).with_suffix("").as_posix()
        if name in names:
            raise UserError(
                f"{path}: the same name as {names[name].name}, masks are found by it: rename one, "
                "or give data.image_glob an ending"
            )
        names[name] = path
    return list(names)


def _patterns(root: Path, image_glob: str | Sequence[str]) -> list[str]:
    """The patterns of `image_glob`, those that stand in text files in their place."""
    patterns: list[str] = []
    for entry in (image_glob,) if isinstance(image_glob, str) else image_glob:
        if not entry.endswith(_LIST):
            patterns.append(entry)
            continue
        try:
            lines = (root / entry).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{root / entry}: cannot be read as a list of images ({error}): correct data.image_glob"
            ) from error
        patterns += [line.strip() for line in lines if line.strip()]
    if not patterns:
        raise UserError(f"{root}: data.image_glob={image_glob!r} names no image: give a pattern or paths")
    return patterns


def _matching(root: Path, pattern: str) -> list[Path]:
    if (root / pattern).is_file():  # an absolute path stays as it is
        return [root / pattern]
    try:
        return sorted(path for path in root.glob(pattern) if path.is_file() and not path.name.startswith("."))
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"data.image_glob={pattern!r} is no pattern below data.root: {error}") from error


def _place(root: Path, path: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def _domain(root: Path, path: Path, pattern: str) -> str:
    place = _place(root, path)
    if _DOMAIN in pattern:
        before, _, after = pattern.partition(_DOMAIN)
        expression = f"{_regex(before)}(?P<domain>[^/]+?){_regex(after.replace(_DOMAIN, '*'))}"
        match = re.fullmatch(expression, place.as_posix())
        if match is None:
            raise UserError(f"data.image_glob={pattern!r}: cannot tell from it the domain of {path}")
        return match["domain"]
    if path.parent == root:
        return path.stem
    return path.parent.name if place.is_absolute() else place.parts[0]


def _regex(pattern: str) -> str:
    """A regular expression for a part of a glob pattern."""
    pieces = re.split(r"(\*\*/|\*|\?|\[!?[^\]]+\])", pattern)
    return "".join(_meaning(piece) for piece in pieces)


def _meaning(piece: str) -> str:
    if re.fullmatch(r"\[!?[^\]]+\]", piece):  # one of several letters, or none of them
        letters = piece[1:-1].replace("\\", r"\\").replace("^", r"\^")
        return f"[^/{letters[1:]}]" if letters.startswith("!") else f"[{letters}]"
    return {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(piece, re.escape(piece))


_JPEG, _JPEG_END, _SCAN = b"\xff\xd8\xff", b"\xff\xd9", 0xDA
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def require_complete(paths: Iterable[Path]) -> None:
    """Check that JPEG, PNG and TIFF files reach their end, several at a time; other formats are not judged.

    A damaged file of full length is found only when it is read.

    Raises UserError for the first file that was cut short, as reading it would.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for path, reason in zip(paths := list(paths), pool.map(what_is_missing, paths), strict=True):
            if reason:
                raise unreadable(path, reason)


def what_is_missing(path: Path) -> str:
    """What a JPEG, PNG or TIFF file lacks, in words, or ""."""
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(_TIFF):
            return _missing_of_tiff(path)
        if not start.startswith((_JPEG, _PNG)):
            return ""
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if start.startswith(_PNG):
                return "" if content.rfind(_PNG_END) >= 0 else "no IEND chunk at its end"
            # From the first scan on: a thumbnail in the header has an end marker of its own.
            scan = _first_scan(content)
            return "" if 0 < scan <= content.rfind(_JPEG_END) else "no end-of-image marker"


def _first_scan(content: mmap.mmap) -> int:
    """Where the first scan of a JPEG starts, or -1 where its header ends before there is one."""
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        if content[place + 1] == _SCAN:
            return place
        # a marker may be preceded by any number of fill bytes
        fill = content[place + 1] == 0xFF
        place += 1 if fill else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return -1


def _missing_of_tiff(path: Path) -> str:
    """Compares the place of the last block of every band with the length of the file."""
    length = path.stat().st_size
    with opened(path) as dataset:
        ends = [_end_of_last_block(dataset, band) for band in dataset.indexes]
    missing = max(ends, default=0) - length
    return f"{missing} bytes short" if missing > 0 else ""


def _end_of_last_block(dataset: rasterio.DatasetReader, band: int) -> int:
    """Where the last strip or tile of a band ends in the file; 0 if it is not stored, as in sparse files."""
    height, width = dataset.block_shapes[band - 1]
    block = f"{(dataset.width - 1) // width}_{(dataset.height - 1) // height}"
    offset, size = (
        dataset.get_tag_item(f"BLOCK_{what}_{block}", "TIFF", bidx=band) for what in ("OFFSET", "SIZE")
    )
    return int(offset or 0) + int(size or 0)
