"""Finding images and their masks below a source folder, and saying what is not there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from data_pipelines.datasets.dataset import Listing, Pair
from spectralmoe_jax.errors import UserError

SPLIT_FILE = "split.txt"
_NAMED = 5  # of missing files, by name; the others are counted
_BLOCK = 1 << 22  # bytes read at a time


def folder(root: Path, name: str) -> Path:
    """The folder `name` that is `root`, lies in it or in one of its folders; else where it should be."""
    nested = sorted(path for path in root.glob(f"*/{name}") if path.is_dir())
    if root.name == name:
        return root
    return nested[0] if nested and not (root / name).is_dir() else root / name


def image_files(images: Path, split: str, glob: str = "*.tif") -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """The files of a folder that match, in order; or none, and the line that says so."""
    if not images.is_dir():
        return (), (f"folder {images} is not there (split {split})",)
    found = tuple(sorted(path for path in images.glob(glob) if path.is_file()))
    return found, () if found else (f"folder {images} holds no {glob} (split {split})",)


def images_and_masks(
    images: Path, masks: Path, *, split: str, domain: str, glob: str = "*.tif",
    mask_name: Callable[[str], str] = "{}.tif".format,
) -> Listing:  # fmt: skip
    """The images of one folder with the masks of another, in order; named by the image's file.

    `mask_name` makes a mask's file name of its image's stem.
    """
    found, lines = image_files(images, split, glob)
    pairs = with_masks(Pair(split, domain, path.stem, path, masks / mask_name(path.stem)) for path in found)
    return Listing(pairs.pairs, (*lines, *pairs.missing))


def with_masks(pairs: Iterable[Pair]) -> Listing:
    """Those of `pairs` whose mask is there, and a line on each folder in which some are not."""
    there: dict[Path, set[str]] = {}
    here: list[Pair] = []
    gone: dict[Path, list[Pair]] = {}
    for pair in pairs:
        masks = pair.label.parent
        if masks not in there:
            there[masks] = {path.name for path in masks.iterdir()} if masks.is_dir() else set()
        if pair.label.name in there[masks]:
            here.append(pair)
        else:
            gone.setdefault(masks, []).append(pair)
    lines = (f"{listed(pair.label.name for pair in lost)} not in {masks}" for masks, lost in gone.items())
    return Listing(tuple(here), tuple(f"images without label: {line}" for line in lines))


def together(listings: Iterable[Listing]) -> Listing:
    """All listings as one, in their order."""
    listings = tuple(listings)
    return Listing(
        tuple(pair for listing in listings for pair in listing.pairs),
        tuple(line for listing in listings for line in listing.missing),
    )


def archives(root: Path, checksums: Mapping[str, str]) -> dict[str, int]:
    """Size in bytes, by name, of the published archives that still lie in `root`."""
    return {name: (root / name).stat().st_size for name in checksums if (root / name).is_file()}


def check_archives(
    root: Path, checksums: Mapping[str, str], advance: Callable[[int], None] = lambda size: None
) -> None:
    """Compares those published archives that lie in `root` with their md5.

    Args:
      advance: called with the number of bytes just read.

    Raises UserError naming an archive that was not downloaded whole.
    """
    for name in archives(root, checksums):
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
    """The lines of a list, without blank ones and what follows a #."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line)


def read_split(path: Path, names: Collection[str], what: str) -> dict[str, str]:
    """The user's split, of lines `NAME source` and `NAME target`: source or target by name, in no order.

    Names that no line has are in neither.

    Args:
      names: all that may stand in the file. what: what a name is of, for people.

    Raises UserError naming the line that is not understood, or a name that is unknown or given twice.
    """
    sides: dict[str, str] = {}
    for line in read_names(path):
        name, _, side = line.rpartition(" ")
        name = name.strip()
        if side not in ("source", "target") or not name:
            raise UserError(f"{path}: {line!r} is not understood, write `NAME source` or `NAME target`")
        if name not in names:
            raise UserError(
                f"{path}: there is no {what} {name!r} in {path.parent}: correct or remove the line"
            )
        if name in sides:
            raise UserError(f"{path}: {name} is named twice: keep one of the lines")
        sides[name] = side
    return sides


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = tuple(names)
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest
