"""Values or colours of labels with their pixels, and the classes that follow."""

from __future__ import annotations

import colorsys
import dataclasses
import itertools
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.readers.label_codes import ValueCode
from data_pipelines.readers.labels import VectorLabels
from data_pipelines.readers.raster_file import open_image, read_mask
from data_pipelines.readers.unreadable import map_files
from data_pipelines.readers.vector_file import read_attributes, read_layers
from data_pipelines.records import Window
from data_pipelines.survey.ambiguity import Ambiguous, listed
from data_pipelines.survey.layout import Layout
from spectralmoe_jax.errors import UserError

Value = Any
"""A stored number or text, or a colour (red, green, blue)."""

NO_VALUE = "none"
"""Value of `--ignore` for labels that have a class at every pixel."""

_MOST = 64  # values of labels, beyond which they are no classes
_STRAY = 5e-4  # share of pixels below which a colour is a mistake in painting, not a class
_PIXELS = 1 << 23  # read at a time
_HUE_STEP = 0.618034  # golden ratio: hues of neighbouring classes are far apart


@dataclass(frozen=True)
class LabelContents:
    """What label files hold.

    Attributes:
      counts: pixels of each value or colour, ascending by value.
      unlabelled: pixels outside all polygons, or with the files' nodata value.
      colours: the labels are colours.
      nodata: values that the files declare as nodata.
      attribute: attribute of the polygons with the values; empty for rasters.
      layer: layer of the polygons; empty for the only one.
      texts: names of the values, where the polygons have them in another attribute.
    """

    counts: Mapping[Value, int]
    unlabelled: int
    colours: bool
    nodata: tuple[Value, ...] = ()
    attribute: str = ""
    layer: str = ""
    texts: Mapping[Value, str] = dataclasses.field(default_factory=dict)

    @property
    def pixels(self) -> int:
        """Number of all pixels."""
        return sum(self.counts.values()) + self.unlabelled


@dataclass(frozen=True)
class Classes:
    """Classes of the labels.

    Attributes:
      names: their names.
      palette: their colours.
      values: stored value or colour of each.
      ignored: values or colours that mean "no label".
      stray: colours that are too rare to be a class, and are ignored.
      named: the names are the user's or the files', not numbers.
    """

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    values: tuple[Value, ...]
    ignored: tuple[Value, ...]
    stray: tuple[Value, ...]
    named: bool


def read_contents(layout: Layout, attribute: str = "", layer: str = "") -> LabelContents:
    """Count the values or colours of all labels.

    Args:
      layout: images and labels.
      attribute: attribute of polygons; empty to find it.
      layer: layer of polygons; empty for the only one.

    Raises:
      Ambiguous: several attributes, or layers, can hold the class.
      UserError: a file cannot be read, or its values cannot be classes.
    """
    if layout.polygons:
        return _of_polygons(layout, attribute, layer)
    if attribute or layer:
        raise UserError("--attribute and --layer are for polygons; the labels are rasters: leave them out")
    masks = list(dict.fromkeys(mask for _, mask in layout.pairs))
    found = [result for result in map_files(_count_raster, masks, "stop") if result is not None]
    kinds = {colours for _, colours, _ in found}
    if len(kinds) > 1:
        raise UserError(
            f"{layout.root}: some masks hold colours and others numbers: store all of them in one way"
        )
    counts: Counter = sum((counts for counts, _, _ in found), Counter())
    nodata = sorted({value for _, _, value in found if value is not None and value in counts})
    contents = LabelContents(
        counts=dict(sorted(counts.items())), unlabelled=0, colours=kinds == {True}, nodata=tuple(nodata)
    )
    _require_few(contents, str(masks[0]))
    return contents


def _count_raster(mask: Path) -> tuple[Counter, bool, Value | None]:
    """Count the values of one mask; returns them, whether they are colours, and the nodata value."""
    counts: Counter = Counter()
    with open_image(mask) as dataset:
        height, width, nodata = dataset.height, dataset.width, dataset.nodata
    colours = False
    for rows in _rows(height, width):
        pixels, table = read_mask(mask, rows)  # (h, W, bands)
        colours = pixels.shape[-1] >= 3 or table is not None
        if table is not None:
            values, numbers = np.unique(pixels[..., 0], return_counts=True)
            of_file = [tuple(table.get(int(value), (0, 0, 0))[:3]) for value in values]
            for colour, number in zip(of_file, numbers.tolist(), strict=True):
                counts[colour] += number
        elif colours:
            packed = pixels[..., 0].astype(np.uint32) << 16 | pixels[..., 1].astype(np.uint32) << 8
            values, numbers = np.unique(packed | pixels[..., 2], return_counts=True)
            for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
                counts[value >> 16, value >> 8 & 255, value & 255] += number
        else:
            stored = pixels[..., 0]
            if stored.dtype.kind == "f":  # NaN is no label
                stored = stored[~np.isnan(stored)]
            values, numbers = np.unique(stored, return_counts=True)
            if not np.isfinite(values).all():
                raise UserError(f"{mask}: holds values that are not finite: store labels as whole numbers")
            if (fractional := values[values != np.round(values)]).size:
                raise UserError(f"{mask}: holds {fractional[0]:g}: store labels as whole numbers")
            for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
                counts[_whole(value)] += number
        if len(counts) > 1 << 16:
            raise UserError(f"{mask}: more than {1 << 16} values: no labels; name these with --labels")
    return counts, colours, None if colours or nodata is None or nodata != nodata else _whole(nodata)


def _rows(height: int, width: int) -> Iterator[Window]:
    step = max(1, _PIXELS // width)
    for row in range(0, height, step):
        yield Window(row, 0, min(step, height - row), width)


def _whole(value: Any) -> Any:
    """Return a number as an int if it is whole."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _require_few(contents: LabelContents, file: str) -> None:
    """Raise a UserError if there are more values than classes can be."""
    frequent = [v for v, n in contents.counts.items() if n >= _STRAY * contents.pixels]
    kinds = len(frequent) if contents.colours else len(contents.counts)
    if kinds > _MOST or not kinds:
        what = "colours" if contents.colours else "values"
        raise UserError(
            f"{file} and others like it: {len(contents.counts)} {what}, too many for classes: "
            "name the labels with --labels (masks must not be compressed with loss)"
        )


# Polygons


def _of_polygons(layout: Layout, attribute: str, layer: str) -> LabelContents:
    """Count the pixels of polygons by the values of an attribute."""
    files = list(dict.fromkeys(mask for _, mask in layout.pairs))
    layer = layer or _only_layer(files[0])
    columns: dict[str, list[Any]] = {}
    for file in files:
        for name, values in read_attributes(file, layer).items():
            columns.setdefault(name, []).extend(values)
    attribute = attribute or _only_attribute(files[0], columns)
    if attribute not in columns:
        raise UserError(
            f"{files[0]}: no attribute {attribute!r}, it has {listed([*columns])}: correct --attribute"
        )
    if not all(isinstance(value, Hashable) for value in columns[attribute]):
        raise UserError(f"{files[0]}: {attribute} holds lists, not the class: correct --attribute")
    values = sorted(
        {v for v in columns[attribute] if v is not None and v == v}, key=lambda v: (str(type(v)), v)
    )
    if not 1 <= len(values) <= _MOST:
        raise UserError(
            f"{files[0]}: {attribute} has {len(values)} values, too many for classes: correct --attribute"
        )
    labels = VectorLabels(ValueCode(values), attribute, layer)
    total = np.zeros(256, np.int64)
    for image, file in layout.pairs:
        with open_image(image) as dataset:
            height, width = dataset.height, dataset.width
            georeferenced = dataset.crs is not None
        if not georeferenced:
            raise UserError(
                f"{image}: is not georeferenced, so polygons cannot be placed: give raster labels"
            )
        for rows in _rows(height, width):
            total += np.bincount(labels.read(image, file, rows)[0].ravel(), minlength=256)
    counts = {value: int(total[number]) for number, value in enumerate(values)}
    if not any(counts.values()):
        raise UserError(f"{files[0]}: no polygon lies on any image: check the coordinate systems")
    return LabelContents(
        counts=counts,
        unlabelled=int(total[len(values) :].sum()),
        colours=False,
        attribute=attribute,
        layer=layer if len(read_layers(files[0])) > 1 else "",
        texts=_texts(columns, attribute),
    )


def _only_layer(file: Path) -> str:
    """Return the layer with polygons.

    Raises:
      Ambiguous: there are several.
      UserError: there is none.
    """
    layers = read_layers(file)
    if not layers:
        raise UserError(f"{file}: no layer with polygons: name the labels with --labels")
    if len(layers) > 1:
        raise Ambiguous("--layer", f"{file}: several layers with polygons", layers)
    return layers[0]


def _only_attribute(file: Path, columns: Mapping[str, Sequence[Any]]) -> str:
    """Return the attribute of which several polygons have the same value.

    Raises:
      Ambiguous: there are several, or none.
    """
    fitting = []
    for name, values in columns.items():
        if not all(isinstance(value, Hashable) for value in values):
            continue  # lists
        distinct = set(values)
        is_code = all(v is None or isinstance(v, int | str) for v in distinct)
        if is_code and 2 <= len(distinct) <= _MOST and (len(distinct) < len(values)):
            fitting.append(name)
    if len(fitting) != 1:
        raise Ambiguous(
            "--attribute", f"{file}: no single attribute that can hold the class", fitting or list(columns)
        )
    return fitting[0]


def _texts(columns: Mapping[str, Sequence[Any]], attribute: str) -> dict[Value, str]:
    """Return the text of each value, of the first attribute with one text for each value and no two alike."""
    for name, texts in columns.items():
        if not all(isinstance(text, Hashable) for text in texts):
            continue  # lists
        pairs = {(value, text) for value, text in zip(columns[attribute], texts, strict=True)}
        values, names = {v for v, _ in pairs}, {t for _, t in pairs}
        if (
            name != attribute
            and len(pairs) == len(values) == len(names)
            and all(isinstance(t, str) for t in names)
        ):
            return dict(pairs)
    return {}


# Classes


def choose_classes(
    contents: LabelContents, ignore: Sequence[Value] | None = None, names: Sequence[str] = ()
) -> Classes:
    """Turn values or colours into classes.

    Args:
      contents: what the labels hold.
      ignore: values or colours that mean "no label"; None to find them.
      names: names of the classes, in ascending order of values; empty for those of the files, or numbers.

    Raises:
      Ambiguous: 0, 255 or a grey colour is there, which can mean "no label" or be a class.
      UserError: `ignore` is not in the labels, no class is left, or there are not as many names as classes.
    """
    held = contents.counts
    stray = [v for v, n in held.items() if contents.colours and n < _STRAY * contents.pixels]
    ignored = _ignored(contents, ignore, stray)
    values = [value for value in held if value not in ignored and value not in stray]
    if not values:
        raise UserError(f"--ignore {_said(ignored)}: leaves no class: leave one out")
    texts = contents.texts
    given = [texts.get(value) or (value if isinstance(value, str) else "") for value in values]
    chosen = tuple(names) or tuple(given if all(given) else (_number(value) for value in values))
    if len(chosen) != len(values) or len(set(chosen)) != len(chosen):
        raise UserError(
            f"--classes {','.join(chosen)}: {len(chosen)} names for {len(values)} classes ({_said(values)}): "
            "give each one, all different"
        )
    return Classes(
        names=chosen,
        palette=tuple(values) if contents.colours else tuple(itertools.islice(_colours(), len(values))),
        values=tuple(values),
        ignored=tuple(ignored),
        stray=tuple(v for v in stray if v not in ignored),
        named=bool(names) or all(given),
    )


def _ignored(contents: LabelContents, ignore: Sequence[Value] | None, stray: Sequence[Value]) -> list[Value]:
    """Return the values that mean "no label"."""
    held = contents.counts
    if ignore is not None:
        for value in ignore:
            if value not in held:
                raise UserError(
                    f"--ignore {_said([value])}: not in the labels, which hold {_said(list(held))}"
                )
        return list(ignore)
    if contents.nodata:
        return list(contents.nodata)
    suspects = [
        v for v in held if v not in stray and (len(set(v)) == 1 if contents.colours else v in (0, 255, ""))
    ]
    if suspects:
        raise Ambiguous(
            "--ignore",
            f"labels hold {shares(contents)}; {_said(suspects)} may mean 'no label'",
            remedy=f"give its value, or {NO_VALUE} if all are classes, with",
        )
    return []


def shares(contents: LabelContents) -> str:
    """Return the commonest values with their share of pixels, in words."""
    total = contents.pixels
    ranked = sorted(contents.counts.items(), key=lambda item: -item[1])
    return listed([f"{_said([value])} {count / total:.1%}" for value, count in ranked])


def parse_values(text: str, contents: LabelContents) -> list[Value]:
    """Return the values that the option `--ignore` names: none, or several, separated by commas."""
    if text == NO_VALUE:
        return []
    known = {_said([value]): value for value in contents.counts}
    return [
        known.get(word.strip(), known.get(word.strip().lower(), word.strip())) for word in text.split(",")
    ]


def _said(values: Sequence[Value]) -> str:
    """Return values as on the command line."""
    return listed(
        [f"#{v[0]:02x}{v[1]:02x}{v[2]:02x}" if isinstance(v, tuple) else str(v) or '""' for v in values]
    )


def _number(value: Value) -> str:
    return f"colour {_said([value])}" if isinstance(value, tuple) else f"class {value}"


def _colours() -> Iterator[tuple[int, int, int]]:
    """Yield colours that differ from one another, for maps of values without colours."""
    for number in itertools.count():
        hue, lightness = (0.08 + number * _HUE_STEP) % 1, (0.5, 0.35, 0.65)[number // 5 % 3]
        red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.6)
        yield round(255 * red), round(255 * green), round(255 * blue)
