"""Files of a published data set as they were downloaded: images, their masks, and what is missing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from data_pipelines.datasets.dataset import Listing, Pair
from spectralmoe_jax.errors import UserError, shown

SPLIT_FILE = "split.txt"
_NAMED = 5  # missing files listed by name; the others are counted
_BLOCK = 1 << 22  # bytes read at a time


def find_folder(root: Path, name: str) -> Path:
    """Return the folder `name`: `root` itself, a folder in it, or one a level below; else `root / name`."""
    nested = sorted(path for path in root.glob(f"*/{name}") if path.is_dir())
    if root.name == name:
        return root
    return nested[0] if nested and not (root / name).is_dir() else root / name


def image_files(images: Path, split: str, glob: str = "*.tif") -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Return the matching files of a folder in order, and a line of text if there are none."""
    if not images.is_dir():
        return (), (f"folder {images} is not there (split {split})",)
    found = tuple(sorted(path for path in images.glob(glob) if path.is_file()))
    return found, () if found else (f"folder {images} holds no {glob} (split {split})",)


def images_and_masks(
    images: Path,
    masks: Path,
    *,
    split: str,
    domain: str,
    glob: str = "*.tif",
    mask_name: Callable[[str], str] = "{}.tif".format,
) -> Listing:
    """Pair the images of one folder with the masks of another; pairs have the names of the image files.

    Args:
      images: folder of the images.
      masks: folder of the masks.
      split: split of all pairs.
      domain: domain of all pairs.
      glob: pattern of the image files.
      mask_name: returns the name of a mask file for an image's stem.
    """
    found, lines = image_files(images, split, glob)
    listing = drop_unlabelled(
        Pair(split, domain, path.stem, path, masks / mask_name(path.stem)) for path in found
    )
    return Listing(listing.pairs, (*lines, *listing.missing))


def drop_unlabelled(pairs: Iterable[Pair]) -> Listing:
    """Keep the pairs whose mask exists, and list the missing masks, one line for each folder."""
    existing: dict[Path, set[str]] = {}
    kept: list[Pair] = []
    dropped: dict[Path, list[Pair]] = {}
    for pair in pairs:
        masks = pair.label.parent
        if masks not in existing:
            existing[masks] = {path.name for path in masks.iterdir()} if masks.is_dir() else set()
        if pair.label.name in existing[masks]:
            kept.append(pair)
        else:
            dropped.setdefault(masks, []).append(pair)
    lines = (
        f"{first_few(pair.label.name for pair in lost)} not in {masks}" for masks, lost in dropped.items()
    )
    return Listing(tuple(kept), tuple(f"images without label: {line}" for line in lines))


def merge(listings: Iterable[Listing]) -> Listing:
    """Concatenate listings in their order."""
    listings = tuple(listings)
    return Listing(
        tuple(pair for listing in listings for pair in listing.pairs),
        tuple(line for listing in listings for line in listing.missing),
    )


def archive_sizes(root: Path, checksums: Mapping[str, str]) -> dict[str, int]:
    """Return the size in bytes of each published archive that is still in `root`."""
    return {name: (root / name).stat().st_size for name in checksums if (root / name).is_file()}


def check_archives(
    root: Path, checksums: Mapping[str, str], advance: Callable[[int], None] = lambda size: None
) -> None:
    """Compare the published archives that are still in `root` with their MD5.

    Args:
      root: the download folder.
      checksums: MD5 by file name.
      advance: called with the number of bytes just read.

    Raises:
      UserError: an archive has another checksum.
    """
    for name in archive_sizes(root, checksums):
        digest = hashlib.md5(usedforsecurity=False)
        with open(root / name, "rb") as archive:
            while block := archive.read(_BLOCK):
                digest.update(block)
                advance(len(block))
        if digest.hexdigest() != checksums[name]:
            raise UserError(
                f"{root / name}: its md5 is {digest.hexdigest()}, published is {checksums[name]}: "
                "download and unpack it again"
            )


def read_names(path: Path) -> tuple[str, ...]:
    """Return the lines of a list, without comments (from # to the end of the line) and empty lines.

    Raises:
      UserError: the file is no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise UserError(f"{path}: no list of names, it is not UTF-8 text ({problem.reason})") from None
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return tuple(line for line in lines if line)


def read_split(path: Path, names: Collection[str], what: str) -> dict[str, str]:
    """Read a user's split, with a line `NAME source` or `NAME target` for each name to use.

    Args:
      path: the file.
      names: all names that may occur in it.
      what: noun for a name, such as "scene", for error messages.

    Returns:
      "source" or "target" by name; a name without a line is left out.

    Raises:
      UserError: a line of another form, an unknown name, or a name given twice.
    """
    sides: dict[str, str] = {}
    for line in read_names(path):
        name, _, side = line.rpartition(" ")
        name = name.strip()
        if side not in ("source", "target") or not name:
            raise UserError(
                f"{path}: {shown(repr(line))} is not understood, write `NAME source` or `NAME target`"
            )
        if name not in names:
            raise UserError(
                f"{path}: there is no {what} {shown(repr(name))} in {path.parent}: correct or remove the line"
            )
        if name in sides:
            raise UserError(f"{path}: {name} is named twice: keep one of the lines")
        sides[name] = side
    return sides


def first_few(names: Iterable[str]) -> str:
    """Join the first few names, and the number of the others."""
    names = tuple(names)
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest
