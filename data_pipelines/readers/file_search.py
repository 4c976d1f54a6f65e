"""Search for images and their masks below a folder or in a list, and their domains."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.readers.address import Address, as_path, is_remote
from spectralmoe_jax.errors import UserError

_DOMAIN = "{domain}"
_LIST = ".txt"


def find_images(
    root: Path, image_glob: str | Sequence[str], domains: Sequence[str] | None
) -> list[tuple[str, Path]]:
    """Find the images of some domains.

    The domain of an image is the part of its path that matches `{domain}` in the pattern. For a pattern
    without `{domain}`, it is the first folder of the path below `root`, or the file's name without suffix if
    it is in `root` itself. For an image outside `root`, it is the name of its folder. Addresses that GDAL
    opens, such as `https://HOST/NAME.tif`, are images outside `root`; `root` may be an address, too. They
    cannot be searched: name each of their files, in a local list for example; `{domain}` stands for each of
    `domains`.

    Args:
      root: folder that patterns start from.
      image_glob: a pattern or several, each of which has to match something. A path of a file is a pattern
        too; an absolute path may be outside `root`. The name of a text file (.txt) is replaced by its lines.
        A file that matches twice counts once; hidden files, such as the `._NAME` that macOS writes, are
        ignored.
      domains: the domains to use; default all.

    Returns:
      (domain, path) of every image, in the order of `domains`, then of patterns and paths.

    Raises:
      UserError: the folder is missing, nothing is found, a domain is unknown, or a pattern is malformed.
    """
    if not isinstance(root, Address) and not root.is_dir():
        raise UserError(f"{root}: no such folder, set data.root to where the images are")
    found: dict[str, list[Path]] = {}
    seen: set[Path] = set()
    for pattern in _patterns(root, image_glob):
        matching = [path for part in _expanded(root, pattern, domains) for path in _matching(root, part)]
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
    """Return the path of an image's mask.

    Args:
      root: folder that the template starts from.
      template: path with `{domain}` and `{stem}`, the image's name without suffix.
      domain: domain of the image.
      image: path of the image.

    Raises:
      UserError: the template has another placeholder.
    """
    try:
        place = template.format(domain=domain, stem=image.stem)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"data.mask_template={template!r}: only {{domain}} and {{stem}} can stand in it"
        ) from error
    return as_path(place) if is_remote(place) else root / place


def record_names(root: Path, images: Sequence[tuple[str, Path]]) -> list[str]:
    """Return the path of each image without suffix, relative to `root` if it is below it.

    Raises:
      UserError: two images differ only in their suffix.
    """
    names: dict[str, Path] = {}
    for _, path in images:
        name = _relative(root, path).with_suffix("").as_posix()
        if name in names:
            raise UserError(
                f"{path}: the same name as {names[name].name}, masks are found by it: rename one, "
                "or give data.image_glob an ending"
            )
        names[name] = path
    return list(names)


def _patterns(root: Path, image_glob: str | Sequence[str]) -> list[str]:
    """Return all patterns, with those of a text file in its place; beside an address, the file is local."""
    patterns: list[str] = []
    for entry in (image_glob,) if isinstance(image_glob, str) else image_glob:
        if not entry.endswith(_LIST):
            patterns.append(entry)
            continue
        try:
            place = Path(entry) if isinstance(root, Address) else root / entry
            lines = place.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{place}: cannot be read as a list of images ({error}): correct data.image_glob"
            ) from error
        patterns += [line.strip() for line in lines if line.strip()]
    if not patterns:
        raise UserError(f"{root}: data.image_glob={image_glob!r} names no image: give a pattern or paths")
    return patterns


def _expanded(root: Path, pattern: str, domains: Sequence[str] | None) -> list[str]:
    """Return a pattern with anything in place of `{domain}`; one of addresses with each domain there."""
    names = domains if domains is not None and _is_address(root, pattern) else ("*",)
    return list(dict.fromkeys(pattern.replace(_DOMAIN, name) for name in names))


def _is_address(root: Path, pattern: str) -> bool:
    return is_remote(pattern) or isinstance(root, Address)


def _matching(root: Path, pattern: str) -> list[Path]:
    if _is_address(root, pattern):
        if re.search(r"[*?\[]", pattern):
            raise UserError(
                f"data.image_glob={pattern!r}: addresses cannot be searched; name each image, or give the "
                "name of a local text file with one on each line"
            )
        return [as_path(pattern) if is_remote(pattern) else root / pattern]
    if (root / pattern).is_file():  # an absolute path stays as it is
        return [root / pattern]
    try:
        return sorted(path for path in root.glob(pattern) if path.is_file() and not path.name.startswith("."))
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"data.image_glob={pattern!r} is no pattern below data.root: {error}") from error


def _relative(root: Path, path: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def _domain(root: Path, path: Path, pattern: str) -> str:
    place = _relative(root, path)
    if _DOMAIN in pattern:
        before, _, after = pattern.partition(_DOMAIN)
        expression = f"{_regex(before)}(?P<domain>[^/]+?){_regex(after.replace(_DOMAIN, '*'))}"
        match = re.fullmatch(expression, place.as_posix())
        if match is None:
            raise UserError(f"data.image_glob={pattern!r}: cannot tell from it the domain of {path}")
        return match["domain"]
    if path.parent == root:
        return path.stem
    return path.parent.name if place == path else place.parts[0]


def _regex(pattern: str) -> str:
    """Translate a part of a glob pattern to a regular expression."""
    pieces = re.split(r"(\*\*/|\*|\?|\[!?[^\]]+\])", pattern)
    return "".join(_piece_regex(piece) for piece in pieces)


def _piece_regex(piece: str) -> str:
    if re.fullmatch(r"\[!?[^\]]+\]", piece):  # one character of a set, or none of it
        letters = piece[1:-1].replace("\\", r"\\").replace("^", r"\^")
        return f"[^/{letters[1:]}]" if letters.startswith("!") else f"[{letters}]"
    return {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(piece, re.escape(piece))
