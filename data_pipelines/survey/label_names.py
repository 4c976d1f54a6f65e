"""Names of label files, which say to which image or domain they belong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

_WORD = 4  # letters from which on a name is recognised inside of a word, as "town" in "townmask"


class LabelNames:
    """Which images and domains label files are named after.

    Args:
      root: the folder.
      grouped: domain and path of the images, as each of several patterns finds them.
    """

    def __init__(self, root: Path, grouped: Iterable[Sequence[tuple[str, Path]]]):
        self._root = root
        self._domains_of: dict[Path, set[str]] = {}
        for images in grouped:
            for domain, path in images:
                self._domains_of.setdefault(path, set()).add(domain.lower())
        self._stems = {path.stem.lower() for path in self._domains_of}
        self._domains: set[str] = set().union(*self._domains_of.values())
        self._known: dict[Path, tuple[set[str], set[str]]] = {}

    def of_image(self, label: Path, image: Path) -> bool:
        """Return whether the name of a label contains that of an image."""
        return image.stem.lower() in self._named_after(label)[0]

    def of_another(self, label: Path, image: Path) -> bool:
        """Return whether a label is named after other images, or after domains that are not an image's."""
        stems, domains = self._named_after(label)
        other_image = bool(stems) and image.stem.lower() not in stems
        return other_image or (bool(domains) and not domains & self._domains_of[image])

    def _named_after(self, label: Path) -> tuple[set[str], set[str]]:
        """Return stems of images in the name of a label, and domains in its name and folders."""
        if label not in self._known:
            folders = {part.lower() for part in label.relative_to(self._root).parent.parts}
            domains = _names_in(label.stem, self._domains) | (folders & self._domains)
            self._known[label] = _names_in(label.stem, self._stems), domains
        return self._known[label]


def _names_in(text: str, names: set[str]) -> set[str]:
    """Return the names that a text contains, not counting parts of numbers, and short parts of words."""
    text = text.lower()
    parts = ((i, j) for i in range(len(text)) for j in range(i + 1, len(text) + 1))
    return {text[i:j] for i, j in parts if text[i:j] in names and _stands_alone(text, i, j)}


def _stands_alone(text: str, start: int, end: int) -> bool:
    name = text[start:end]
    for inside, outside in ((name[0], text[start - 1 : start]), (name[-1], text[end : end + 1])):
        if inside.isdigit() and outside.isdigit():
            return False
        if name.isalpha() and len(name) < _WORD and outside.isalpha():
            return False
    return True
