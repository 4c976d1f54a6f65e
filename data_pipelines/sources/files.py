"""Finding images and their masks below a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from spectralmoe_jax.errors import UserError

_DOMAIN = "{domain}"


def find_images(root: Path, image_glob: str, domains: Sequence[str] | None) -> list[tuple[str, Path]]:
    """(domain, path) of every image of `domains`, or of all of them, in a fixed order.

    The domain of an image is what stands at `{domain}` in the pattern, or the first folder of its path below
    `root` for a pattern without; an image in `root` itself is of the domain that `root` is called.

    Raises:
      UserError: no such folder, nothing found, an unknown domain, or a pattern that is none.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder, set data.root to where the images are")
    found: dict[str, list[Path]] = {}
    for path in _matching(root, image_glob.replace(_DOMAIN, "*")):
        found.setdefault(_domain(root, path, image_glob), []).append(path)
    if not found:
        raise UserError(
            f"{root}: no image matches data.image_glob={image_glob!r}, correct the pattern or the root"
        )
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
    """The path of each image below `root` without its ending.

    Raises:
      UserError: two images that differ in their ending alone.
    """
    names: dict[str, Path] = {}
    for _, path in images:
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in names:
            raise UserError(
                f"{path}: the same name as {names[name].name}, masks are found by it: rename one, "
                "or give data.image_glob an ending"
            )
        names[name] = path
    return list(names)


def _matching(root: Path, pattern: str) -> list[Path]:
    try:
        return sorted(path for path in root.glob(pattern) if path.is_file())
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"data.image_glob={pattern!r} is no pattern below data.root: {error}") from error


def _domain(root: Path, path: Path, image_glob: str) -> str:
    place = path.relative_to(root)
    if _DOMAIN not in image_glob:
        return place.parts[0] if path.parent != root else root.name
    before, _, after = image_glob.partition(_DOMAIN)
    pattern = f"{_regex(before)}(?P<domain>[^/]+?){_regex(after.replace(_DOMAIN, '*'))}"
    match = re.fullmatch(pattern, place.as_posix())
    return match["domain"] if match else place.parts[0]


def _regex(pattern: str) -> str:
    """A regular expression for a part of a glob pattern."""
    meanings = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return "".join(meanings.get(piece, re.escape(piece)) for piece in re.split(r"(\*\*/|\*|\?)", pattern))
