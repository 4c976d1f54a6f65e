"""Search for images and their masks below a folder or in a list, and their domains."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Literal

from data_pipelines.readers.address import Address, as_path, is_remote
from data_pipelines.records import NoImagesError
from spectralmoe_jax.errors import UserError, shown

_DOMAIN = "{domain}"
_LIST = ".txt"
# Unicode forms of letters with marks: Linux and Windows keep what is typed, macOS writes the second
_FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
_NO_IMAGES = ("thumbs.db", "desktop.ini", "__macosx")  # written by file managers, in small letters
_IMAGES = (".tif", ".tiff", ".TIF", ".jpg", ".jpeg", ".png", ".img", ".dat", ".bil", ".bsq", ".bip")
_BESIDE = (
    ".aux.xml", ".ovr", ".msk", ".aux", ".tfw", ".tifw", ".jgw", ".jpgw", ".pgw", ".pngw", ".wld", ".hdr",
    ".prj",
)  # fmt: skip
"""Suffixes of what GDAL and GIS programs keep beside images."""
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{(?P<inside>(?:[^{}]|\{[^{}]*\})*)\}|[{}]")
"""A doubled brace, a part in braces, whose expression may have pairs of braces, or a single brace."""


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
        A file that matches twice counts once. Hidden files and folders, such as the `._NAME` that macOS
        writes, and what programs keep beside images are ignored. In a list, lines that start with `#` are
        comments, and quotes around a name are left out.
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
            listed = _listed_in(image_glob, pattern)
            raise UserError(
                f"{root}: no image matches data.image_glob={shown(repr(pattern))}{listed}, correct the "
                "pattern or the root"
            )
        for path in matching:
            if path not in seen:
                found.setdefault(_domain(root, path, pattern), []).append(path)
                seen.add(path)
    wanted = tuple(found) if domains is None else tuple(dict.fromkeys(domains))
    if not wanted:
        raise UserError(f"{root}: the split is empty, name at least one of its domains: {', '.join(found)}")
    spelt = {_composed(name): name for name in found}
    for domain in wanted:
        if domain not in found and _composed(domain) not in spelt:
            raise NoImagesError(f"{root}: no images of domain {domain!r}, there are {', '.join(found)}")
    return [
        (domain, path)
        for domain in wanted
        for path in found[domain if domain in found else spelt[_composed(domain)]]
    ]


def _composed(text: str) -> str:
    """Return a text in which letters and their marks are one character, in which names are compared."""
    return unicodedata.normalize("NFC", text)


def _listed_in(image_glob: str | Sequence[str], pattern: str) -> str:
    """Return where a pattern stands if it is a line of a list, in brackets, or ""."""
    entries = (image_glob,) if isinstance(image_glob, str) else image_glob
    lists = [entry for entry in entries if _is_list(entry)]
    return f" (a line of {', '.join(lists)})" if lists and pattern not in entries else ""


def _is_list(entry: str) -> bool:
    return entry.lower().endswith(_LIST)


def mask_path(root: Path, template: str, domain: str, image: Path) -> Path:
    r"""Return the path of an image's mask.

    Args:
      root: folder that the template starts from.
      template: path with `{domain}`, `{stem}`, the image's name without suffix, and `{path}`, its path below
        `root` without suffix. `{stem:PATTERN->TEXT}` replaces all that matches a regular expression by a
        text, in which `\1` is the first group: `{stem:_image$->_label}`.
      domain: domain of the image.
      image: path of the image.

    Returns:
      The path; one whose suffix is written in other letters if only that exists.

    Raises:
      UserError: the template has another placeholder, its expression is malformed, or it matches nothing.
    """
    path = _relative(root, image).with_suffix("").as_posix()
    values = {"domain": domain, "stem": image.stem, "path": path}
    filled = _PLACEHOLDER.sub(lambda found: _filled(found, template, values, image), template)
    if is_remote(filled):
        return as_path(filled)
    place = root / filled
    return place if isinstance(root, Address) or place.is_file() else _other_case(place)


def _filled(found: re.Match[str], template: str, values: Mapping[str, str], image: Path) -> str:
    """Return the text in place of a part in braces."""
    if found[0] in ("{{", "}}"):
        return found[0][0]
    name, colon, change = (found["inside"] or "").partition(":")
    if name not in values or found[0] in "{}":
        raise UserError(
            f"data.mask_template={template!r}: only {{domain}}, {{stem}} and {{path}} can stand in it, "
            "alone or with a replacement, as in {stem:_image->_label}"
        )
    if not colon:
        return values[name]
    expression, arrow, text = change.rpartition("->")
    try:
        changed, count = re.subn(expression, text, values[name])
    except (re.error, IndexError, RecursionError, OverflowError) as error:
        raise UserError(
            f"data.mask_template={template!r}: {expression!r} is no regular expression with the replacement "
            f"{text!r} ({error})"
        ) from error
    if not arrow or not expression:
        raise UserError(
            f"data.mask_template={template!r}: {found[0]} names no replacement, give {{{name}:PATTERN->TEXT}}"
        )
    if not count:
        raise UserError(
            f"{image}: {expression!r} of data.mask_template={template!r} does not match {values[name]!r}: "
            "correct the expression, or the pattern of the images"
        )
    return changed


def _other_case(place: Path) -> Path:
    """Return the file whose name differs in capitals of its suffix or in Unicode's form; `place` for none."""
    for form in _FORMS:
        other = Path(unicodedata.normalize(form, str(place)))
        suffixes = (other.suffix, other.suffix.lower(), other.suffix.upper(), other.suffix.title())
        for suffix in suffixes if other.suffix else ():
            if other.with_suffix(suffix).is_file():
                return other.with_suffix(suffix)
    return place


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
        if not _is_list(entry):
            patterns.append(_plain(entry))
            continue
        try:
            place = Path(_plain(entry)) if isinstance(root, Address) else root / _plain(entry)
            lines = _decoded(place.read_bytes()).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{place}: cannot be read as a list of images ({' '.join(str(error).split())}): correct "
                "data.image_glob, or save the list as UTF-8"
            ) from error
        if any("\0" in line for line in lines):
            raise UserError(f"{place}: is no list of images, but binary: correct data.image_glob")
        patterns += [_plain(_unquoted(line.strip())) for line in lines if not _is_comment(root, line.strip())]
    if not patterns:
        raise UserError(f"{root}: data.image_glob={image_glob!r} names no image: give a pattern or paths")
    return patterns


def _is_comment(root: Path, line: str) -> bool:
    """Return whether a line of a list names nothing: it is empty, or starts with # and is no file's name."""
    return not line or (line.startswith("#") and (isinstance(root, Address) or not (root / line).is_file()))


def _unquoted(line: str) -> str:
    """Return a line of a list without quotes around it."""
    return line[1:-1] if len(line) > 2 and line[0] == line[-1] and line[0] in "\"'" else line


def _plain(pattern: str) -> str:
    """Return a pattern with the home folder in place of `~/`, and without `./` before it."""
    if is_remote(pattern):
        return pattern
    while pattern.startswith("./"):
        pattern = pattern[2:].lstrip("/")
    return os.path.expanduser(pattern) if pattern.startswith("~/") else pattern


def _decoded(data: bytes) -> str:
    """Decode text with or without a byte order mark: UTF-8, or UTF-16 as some editors save it."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    return data.decode("utf-8-sig")


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
    try:
        forms = dict.fromkeys((pattern, *(unicodedata.normalize(form, pattern) for form in _FORMS)))
        for form in forms:
            if (root / form).is_file():  # an absolute path stays as it is
                return [root / form]
        for form in forms:
            start, below = root, PurePath(_any_case(form))
            if below.is_absolute():
                start, below = Path(below.anchor), below.relative_to(below.anchor)
            found = sorted(path for path in _glob(start, below) if _is_image(path, start, form))
            if found:
                return found
        return []
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"data.image_glob={shown(repr(pattern))}: cannot be searched ({reason})") from error
    except (ValueError, NotImplementedError, IndexError, re.error) as error:
        raise UserError(
            f"data.image_glob={shown(repr(pattern))} is no pattern below data.root: {error}"
        ) from error


def _is_image(path: Path, start: Path, pattern: str) -> bool:
    """Return whether what a pattern matches may be an image: no folder, nothing hidden or beside an image.

    A link that leads nowhere may be, too: reading it tells.
    """
    if not (path.is_file() or (path.is_symlink() and not path.exists())):
        return False
    wanted = PurePath(pattern).parts
    for part in path.relative_to(start).parts:
        is_odd = (part.startswith(".") and part != "..") or part.lower() in _NO_IMAGES
        if is_odd and part not in wanted:
            return False
    name = path.name.lower()
    beside = next((end for end in _BESIDE if name.endswith(end)), "")
    if not beside or pattern.lower().endswith(beside):
        return True
    return not any(path.with_name(path.name[: -len(beside)] + end).is_file() for end in ("", *_IMAGES))


def _any_case(pattern: str) -> str:
    """Return a pattern whose suffix matches in capitals and small letters, as `.tif` and `.TIF`."""
    start, dot, suffix = pattern.rpartition(".")
    if not dot or not suffix.isascii() or not suffix.isalnum():
        return pattern
    return (
        start
        + dot
        + "".join(f"[{letter.lower()}{letter.upper()}]" if letter.isalpha() else letter for letter in suffix)
    )


def _glob(root: Path, pattern: PurePath) -> Iterator[Path]:
    """Yield what matches a pattern; `**` is any number of folders, links to folders among them."""
    if "**" not in pattern.parts:
        yield from root.glob(str(pattern))
        return
    place = pattern.parts.index("**")
    before, after = pattern.parts[:place], pattern.parts[place + 1 :]
    starts = root.glob(str(PurePath(*before))) if before else [root]
    rest = PurePath(*after) if after else PurePath("*")
    seen: set[Path] = set()
    for start in starts:
        for folder in _folders(start, ()):
            for path in _glob(folder, rest):
                if path not in seen:
                    seen.add(path)
                    yield path


def _folders(folder: Path, within: tuple[Path, ...]) -> Iterator[Path]:
    """Yield a folder and all below it, through links but not through one back to a folder on the way.

    Args:
      folder: the folder.
      within: the folders on the way to it, without links.
    """
    real = folder.resolve()
    if real in within or not folder.is_dir():
        return
    yield folder
    try:
        inner = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except PermissionError:
        return
    for name in inner:
        yield from _folders(folder / name, (*within, real))


def _relative(root: Path, path: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def _domain(root: Path, path: Path, pattern: str) -> str:
    place = _relative(root, path)
    if _DOMAIN in pattern:
        before, _, after = _any_case(pattern).partition(_DOMAIN)
        expression = f"{_regex(before)}(?P<domain>[^/]+?){_regex(after.replace(_DOMAIN, '*'))}"
        match = re.fullmatch(expression, (path if PurePath(pattern).is_absolute() else place).as_posix())
        if match is None:
            raise UserError(f"data.image_glob={pattern!r}: cannot tell from it the domain of {path}")
        return match["domain"]
    if path.parent == root:
        return path.stem
    return path.parent.name if place == path or place.parts[0] == ".." else place.parts[0]


def _regex(pattern: str) -> str:
    """Translate a part of a glob pattern to a regular expression."""
    pieces = re.split(r"(\*\*/|\*|\?|\[!?[^\]]+\])", pattern)
    return "".join(_piece_regex(piece) for piece in pieces)


def _piece_regex(piece: str) -> str:
    if re.fullmatch(r"\[!?[^\]]+\]", piece):  # one character of a set, or none of it
        letters = piece[1:-1].replace("\\", r"\\").replace("^", r"\^")
        return f"[^/{letters[1:]}]" if letters.startswith("!") else f"[{letters}]"
    return {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}.get(piece, re.escape(piece))
