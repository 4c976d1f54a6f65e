"""Pairs of images and labels below a folder, their domains, and the patterns that find them."""

from __future__ import annotations

import glob
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.readers.file_search import find_images, mask_path
from data_pipelines.readers.raster_header import read_header
from data_pipelines.readers.same_grid import header_on_same_grid
from data_pipelines.readers.vector_file import VECTOR_FORMATS
from data_pipelines.survey.ambiguity import Ambiguous, listed
from data_pipelines.survey.label_names import LabelNames
from data_pipelines.survey.roles import Family, find_families, find_vector_files, require_files
from spectralmoe_jax.errors import UserError

_DOMAIN, _STEM = "{domain}", "{stem}"
_FEW = 8  # domains up to which the names of files are used whole
_MANY = 60  # domains of one image each, beyond which a configuration would no longer be short
_SEPARATORS = "_-. "
_ASKED = 16  # images whose labels say where those of the others should be
_SHARED = 16  # label files up to which each is tried as that of all images
_MANY_TO_ONE, _ELSEWHERE = 2, 3  # ranks of `_rank`


@dataclass(frozen=True)
class Layout:
    """Images and labels of a folder.

    Attributes:
      root: the folder.
      image_glob: pattern of the images, as `config.data.image_glob`.
      mask_template: path of an image's labels, as `config.data.mask_template`.
      images: domain and path of every image.
      unused: files that are neither, a line for each kind.
    """

    root: Path
    image_glob: str
    mask_template: str
    images: tuple[tuple[str, Path], ...]
    unused: tuple[str, ...]

    @property
    def domains(self) -> dict[str, list[Path]]:
        """Images of each domain."""
        found: dict[str, list[Path]] = {}
        for domain, path in self.images:
            found.setdefault(domain, []).append(path)
        return found

    @property
    def pairs(self) -> list[tuple[Path, Path]]:
        """Image and label file of every image."""
        return [
            (path, mask_path(self.root, self.mask_template, domain, path)) for domain, path in self.images
        ]

    @property
    def polygons(self) -> bool:
        """True if the labels are polygons."""
        return is_vector(self.mask_template)

    def by_domain(self, names: Iterable[str]) -> Layout:
        """Return the part with some domains, in their order."""
        domains = self.domains
        images = tuple((name, path) for name in names for path in domains[name])
        return Layout(self.root, self.image_glob, self.mask_template, images, self.unused)


def is_vector(template: str) -> bool:
    """Return whether a path of labels is one of polygons."""
    return Path(template).suffix.lower() in VECTOR_FORMATS


def find_layout(root: Path, image_glob: str = "", mask_template: str = "") -> Layout:
    """Find the images below a folder, and the labels of each.

    Args:
      root: the folder.
      image_glob: pattern of the images; empty to find it.
      mask_template: path of the labels; empty to find it.

    Raises:
      Ambiguous: several kinds of files can be the images or the labels, or there are too many domains.
      UserError: there are no images, or images without labels.
    """
    require_files(root)
    families, vectors = find_families(root), find_vector_files(root)
    if image_glob:
        grouped = [(image_glob, find_images(root, image_glob, None))]
    else:
        group = _choose_images(root, families, mask_template)
        grouped = [(pattern, _matching(root, pattern, group)) for pattern in _patterns(root, group)]
    labels = [path for family in families if family.labels for path in family.paths]
    names = LabelNames(root, [images for _, images in grouped])
    found: list[tuple[int, Layout]] = []
    for pattern, images in grouped:
        own = {path for _, path in images}
        candidates = [path for path in (*labels, *vectors) if path not in own]
        templates = {mask_template: 0} if mask_template else _templates(root, images, candidates, names)
        ranked = [(rank, Layout(root, pattern, t, tuple(images), ())) for t, rank in templates.items()]
        # a further pattern of the same images is for names that those before cannot pair as closely
        if ranked and (not found or ranked[0][0] < found[0][0]):
            found = ranked
    if not mask_template and (not found or found[0][0] > 0):
        for pattern, images in grouped:
            if partial := _partial_template(root, images, labels + vectors, names):
                _require_labels(Layout(root, pattern, partial, tuple(images), ()))
    layout = _one_of([layout for _, layout in found], grouped[0][1], labels + vectors, root)
    _require_labels(layout)
    if not image_glob:
        _require_few_domains(layout)
    used = {path for pair in layout.pairs for path in pair}
    unused = [f"{_counted(f, used)}" for f in families if not used & set(f.paths)]
    unused += [path.relative_to(root).as_posix() for path in vectors if path not in used]
    return Layout(root, layout.image_glob, layout.mask_template, layout.images, tuple(unused))


# Images


def _choose_images(root: Path, families: Sequence[Family], mask_template: str) -> list[Path]:
    """Return the images: files of one suffix, depth, number of bands and type.

    Raises:
      Ambiguous: no kind of files has both the most files and the most bands.
      UserError: there are none.
    """
    groups: dict[tuple[object, ...], list[Family]] = {}
    for family in families:
        is_labels = family.labels or any(path == root / mask_template for path in family.paths)
        if not is_labels:
            header, first = family.header, family.paths[0]
            depth = len(first.relative_to(root).parts)
            key = first.suffix, depth, header.count, str(header.dtype)
            groups.setdefault(key, []).append(family)
    if not groups:
        seen = listed([family.pattern for family in families]) or "no raster files"
        raise UserError(f"{root}: no images found ({seen}): name them with --images, as in '*/images/*.tif'")
    files = {key: sum(len(family.paths) for family in group) for key, group in groups.items()}
    bands = {key: group[0].header.count for key, group in groups.items()}
    largest = [
        key for key in groups
        if all(other == key or (files[other] < files[key] and bands[other] <= bands[key]) for other in groups)
    ]  # fmt: skip
    if not largest:
        patterns = [_describe(family) for group in groups.values() for family in group]
        raise Ambiguous(
            "--images", f"{root}: several kinds of images", patterns, "give the pattern of those to use with"
        )
    return sorted(path for family in groups[largest[0]] for path in family.paths)


def _describe(family: Family) -> str:
    """Return a family's path with what its files hold."""
    header = family.header
    bands = f"{header.count} band{'s' * (header.count != 1)}"
    return f"{family.pattern}: {bands} of {header.dtype}"


def _counted(family: Family, used: set[Path]) -> str:
    """Return a line about files that are not used."""
    return _describe(family) + (f", {len(family.paths)} files" if len(family.paths) > 1 else "")


def _patterns(root: Path, group: Sequence[Path]) -> list[str]:
    """Return patterns that match all images, the preferred one first.

    The domain is the first folder that differs between images. If none differs, it is the file's name: whole,
    or without the words that all names share.
    """
    places = [path.relative_to(root) for path in group]
    levels = list(zip(*(place.parent.parts for place in places), strict=True))
    suffix = glob.escape(places[0].suffix)
    ending = _shared_ending([place.stem for place in places])
    varying = [number for number, names in enumerate(levels) if len(set(names)) > 1]
    folders = [glob.escape(names[0]) for names in levels]
    if varying:
        for number in varying:
            folders[number] = "*"
        folders[varying[0]] = _DOMAIN
        return ["/".join([*folders, f"*{glob.escape(ending)}{suffix}"])]
    stems = [place.stem for place in places]
    start = _shared_start([stem.removesuffix(ending) for stem in stems])
    names = [f"{_DOMAIN}{glob.escape(ending)}{suffix}"]
    if start:
        names.append(f"{glob.escape(start)}{names[0]}")
    if len(group) > _FEW:
        names.reverse()
    return ["/".join([*folders, name]) for name in names]


def _shared_start(stems: Sequence[str]) -> str:
    """Return what all names start with, up to a separator; empty for a single name."""
    first, last = min(stems), max(stems)
    length = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    shared = first[:length] if len(stems) > 1 else ""
    cut = max(shared.rfind(separator) for separator in _SEPARATORS)
    return shared[: cut + 1]


def _shared_ending(stems: Sequence[str]) -> str:
    """Return what all names end with, from a separator on; empty for a single name."""
    return _shared_start([stem[::-1] for stem in stems])[::-1]


def _matching(root: Path, pattern: str, group: Sequence[Path]) -> list[tuple[str, Path]]:
    """Return domain and path of the images that a pattern finds, other files of a single folder left out.

    Raises:
      Ambiguous: the pattern finds other files in the folders of the domains, too.
    """
    found = find_images(root, pattern, None)
    others = [path for _, path in found if path not in set(group)]
    if others and not Path(pattern).name.count(_DOMAIN):
        raise Ambiguous(
            "--images",
            f"{root}: {pattern} finds {others[0].relative_to(root)} as well, which is no image",
            remedy="give a pattern that tells them apart with",
        )
    return [(domain, path) for domain, path in found if path in set(group)]


def _require_few_domains(layout: Layout) -> None:
    """Raise Ambiguous if every image is a domain of its own, and there are many."""
    if len(layout.domains) <= _MANY or len(layout.domains) < len(layout.images):
        return
    words = Counter(re.split(r"[_\-. ]", path.stem)[0] for _, path in layout.images)
    first = layout.images[0][1]
    folder = first.parent.relative_to(layout.root)
    pattern = (folder / f"{_DOMAIN}_*{first.suffix}").as_posix()
    raise Ambiguous(
        "--images",
        f"{layout.root}: {len(layout.images)} images in one folder",
        [f"names start with {listed([*words])}"],
        f"put each place, date or sensor into a folder of its own, or say where its name stands, as in "
        f"'{pattern}', with",
    )


# Labels


def _templates(
    root: Path, images: Sequence[tuple[str, Path]], labels: Sequence[Path], names: LabelNames
) -> dict[str, int]:
    """Return the paths of labels that every image has, of the closest kind only, with its rank.

    Labels of single images come before those of domains, and these before labels of all images. Labels that
    are named after an image or a domain are of no other.
    """
    domain, image = images[0]
    every = set(labels)
    labels = [path for path in labels if not names.of_another(path, image)]
    ranked: dict[str, int] = {}
    seen: set[tuple[Path, ...]] = set()
    for template in dict.fromkeys(t for path in labels for t in _relations(root, domain, image, path)):
        masks = tuple(mask_path(root, template, own, path) for own, path in images)
        rank = _rank(images, masks)
        if rank >= _ELSEWHERE or masks in seen or not every.issuperset(masks):
            continue
        pairs = zip(masks, images, strict=True)
        if _STEM in template or not any(names.of_another(mask, path) for mask, (_, path) in pairs):
            seen.add(masks)
            ranked[template] = rank
    for rank in sorted(set(ranked.values())):
        kept = [template for template, of in ranked.items() if of == rank]
        if rank == _MANY_TO_ONE and len(kept) > _SHARED:
            break  # many labels that belong to other images
        fitting = [template for template in kept if rank == 0 or _fits(root, images, template)]
        if fitting:
            return dict.fromkeys(fitting, rank)
    return {}


def _partial_template(
    root: Path, images: Sequence[tuple[str, Path]], labels: Sequence[Path], names: LabelNames
) -> str:
    """Return the path of labels named after images that the most images have, but not all; "" if none has."""
    there, own = set(labels), {path for _, path in images}
    candidates = [path for path in labels if path not in own]
    templates: dict[str, int] = {}
    for domain, image in images[:: -(-len(images) // _ASKED)]:
        for label in candidates:
            if not names.of_image(label, image) or names.of_another(label, image):
                continue
            for template in _relations(root, domain, image, label):
                if _STEM in template and template not in templates:
                    masks = (mask_path(root, template, of, path) for of, path in images)
                    templates[template] = sum(mask in there for mask in masks)
    return max(templates, key=lambda template: templates[template], default="")


def _relations(root: Path, domain: str, image: Path, label: Path) -> list[str]:
    """Return the templates that lead from one image to a label file."""
    place = label.relative_to(root)
    folders = [_DOMAIN if part == domain else _braced(part) for part in place.parent.parts]
    names = []
    for text, placeholder in ((image.stem, _STEM), (domain, _DOMAIN)):
        before, held, after = label.stem.partition(text)
        if held:
            names.append(f"{_braced(before)}{placeholder}{_braced(after)}")
    return ["/".join([*folders, f"{name}{place.suffix}"]) for name in (*names, _braced(label.stem))]


def _braced(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _rank(images: Sequence[tuple[str, Path]], masks: Sequence[Path]) -> int:
    """Return 0 for labels of single images, 1 for those of domains, 2 of all images; 3 for anything else."""
    distinct = len(set(masks))
    if distinct == len(images):
        return 0
    of_domains = distinct == len({domain for domain, _ in images})
    return 1 if of_domains else _MANY_TO_ONE if distinct == 1 else _ELSEWHERE


def _fits(root: Path, images: Sequence[tuple[str, Path]], template: str) -> bool:
    """Return whether labels of several images are polygons, or have the size and place of each."""
    if is_vector(template):
        return True
    try:
        for domain, path in images:
            mask = header_on_same_grid(path, read_header(path), mask_path(root, template, domain, path))
            if mask.count != 1 or mask.dtype.kind not in "uif":
                return False
    except UserError:
        return False
    return True


def _one_of(
    layouts: Sequence[Layout], images: Sequence[tuple[str, Path]], labels: Sequence[Path], root: Path
) -> Layout:
    """Return the only layout.

    Raises:
      Ambiguous: there are several, with different labels, or none.
    """
    if not layouts:
        seen = listed([path.relative_to(root).as_posix() for path in labels]) or "no file looks like labels"
        first = images[0][1].relative_to(root)
        raise Ambiguous(
            "--labels",
            f"{root}: no labels found that go with all images, such as {first} ({seen})",
            remedy="say where they are, as in '{domain}/masks/{stem}.png', with",
        )
    if len(layouts) > 1:
        raise Ambiguous(
            "--labels", f"{root}: several labels for each image", [each.mask_template for each in layouts]
        )
    return layouts[0]


def _require_labels(layout: Layout) -> None:
    """Raise a UserError unless every image has its labels."""
    lacking = [(image, mask) for image, mask in layout.pairs if not mask.is_file()]
    if lacking:
        image, mask = lacking[0]
        others = f", nor have {len(lacking) - 1} of the other {len(layout.images) - 1} images"
        raise UserError(
            f"{image}: it has no labels {mask}{others if len(lacking) > 1 else ''}: correct --labels, or "
            "choose images that have with --images"
        )
