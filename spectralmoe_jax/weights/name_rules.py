"""Rules that map tensors of a PyTorch state dict to parameters of our model, and back.

A `Rule` defines which tensors of a weight file fill a leaf of the model and how their axes move. Indices in
braces, such as `{layer}` or `{expert}`, are the leading (stacked) axes of the leaf, in order, so one rule
covers all layers. Every transform only permutes or reshapes axes, so a round trip is bit-exact. Loading is
strict: a missing or unexpected tensor is an error.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from spectralmoe_jax.errors import UserError, shown

LeafPath = tuple[str, ...]
_FLOATS = ("float16", "bfloat16", "float32", "float64")
Shape = tuple[int, ...]


class Transform(NamedTuple):
    """Axis moves between the PyTorch layout and ours, for one unstacked tensor.

    Attributes:
      read: from the PyTorch layout to ours.
      write: the inverse.
    """

    read: Callable[[np.ndarray], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


TRANSFORMS: dict[str, Transform] = {
    "copy": Transform(lambda x: x, lambda x: x),
    # torch Linear (out, in) <-> kernel (in, out)
    "linear": Transform(lambda x: x.T, lambda x: x.T),
    # torch Conv2d (out, in, h, w) <-> kernel (h, w, in, out)
    "conv": Transform(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
    # torch 1x1 Conv2d (out, in, 1, 1) <-> kernel (in, out)
    "conv1x1": Transform(lambda x: x.squeeze((2, 3)).T, lambda x: x.T[:, :, None, None]),
    # torch ConvTranspose2d (in, out, h, w) <-> kernel (in, h, w, out)
    "transposed_conv": Transform(lambda x: x.transpose(0, 2, 3, 1), lambda x: x.transpose(0, 3, 1, 2)),
    # torch Conv2d of each channel alone (D, 1, h, w) <-> kernel (h, w, D)
    "depthwise": Transform(
        lambda x: x.squeeze(1).transpose(1, 2, 0), lambda x: x.transpose(2, 0, 1)[:, None]
    ),
    # a leading axis of one, such as a class token (1, 1, D) <-> (1, D)
    "squeeze": Transform(lambda x: x.squeeze(0), lambda x: x[None]),
    # a leading axis of one that the file lacks, such as CLIP's class embedding (D,) <-> (1, D)
    "unsqueeze": Transform(lambda x: x[None], lambda x: x[0]),
    # a square grid of positions (1, S, S, D) <-> (S * S, D)
    "grid": Transform(
        lambda x: x.squeeze(0).reshape(-1, x.shape[-1]),
        lambda x: x.reshape(1, math.isqrt(len(x)), math.isqrt(len(x)), -1),
    ),
    # one value per band, (bands, 1, 1) <-> (bands,)
    "per_band": Transform(lambda x: x.squeeze((1, 2)), lambda x: x[:, None, None]),
}

ZEROS = ""  # marks a zero part of a leaf that no tensor holds, such as the bias of the keys


class Rule(NamedTuple):
    """A leaf of the model and the tensors that fill it.

    Attributes:
      pattern: tensor name with `{index}` placeholders, or several names whose tensors are concatenated along
        the leaf's last axis (`ZEROS` for a part that no tensor holds).
      path: path of the leaf in the model.
      transform: key of `TRANSFORMS`, applied to each tensor.
      numbers: values of the first index in tensor names where these are not 0, 1, 2, ..., such as the numbers
        of the layers with global attention.
    """

    pattern: str | tuple[str, ...]
    path: LeafPath
    transform: str = "copy"
    numbers: tuple[int, ...] = ()

    def under(self, prefix: str, path: LeafPath) -> Rule:
        """Return the rule for a module nested at `path` in our model and at `prefix` in tensor names."""
        patterns = tuple(pattern if pattern == ZEROS else prefix + pattern for pattern in self.patterns)
        return self._replace(pattern=patterns, path=(*path, *self.path))

    @property
    def patterns(self) -> tuple[str, ...]:
        """The tensor names as a tuple, even if there is only one."""
        return (self.pattern,) if isinstance(self.pattern, str) else self.pattern

    @property
    def indices(self) -> list[str]:
        """Names of the placeholders, in order of the leaf's stacked axes."""
        return re.findall(r"{(\w+)}", next(pattern for pattern in self.patterns if pattern != ZEROS))

    def names(self, shape: Shape) -> list[tuple[tuple[int, ...], tuple[str, ...]]]:
        """List the stacked indices of a leaf of `shape`, each with the tensor names that belong to it."""
        keys = self.indices
        return [
            (index, tuple(pattern.format(**self._numbered(keys, index)) for pattern in self.patterns))
            for index in itertools.product(*(range(n) for n in shape[: len(keys)]))
        ]

    def _numbered(self, keys: list[str], index: tuple[int, ...]) -> dict[str, int]:
        numbered = dict(zip(keys, index, strict=True))
        if self.numbers:
            numbered[keys[0]] = self.numbers[index[0]]
        return numbered


class Resizer(Protocol):
    """Makes tensors of another size fit a leaf, such as the kernel of another patch size."""

    def fits(self, path: LeafPath, shape: Shape, wanted: Shape) -> bool:
        """Return whether an array of `shape`, in our layout, can be resized to `wanted`."""
        ...

    def __call__(self, path: LeafPath, value: np.ndarray, wanted: Shape) -> np.ndarray:
        """Resize an array for which `fits` is true."""
        ...


def read_tensors(
    rules: Iterable[Rule],
    leaves: Mapping[LeafPath, Shape],
    tensors: Mapping[str, np.ndarray],
    *,
    file: str,
    constants: Mapping[str, float] | None = None,
    ignored: Iterable[str] = (),
    defaults: Mapping[LeafPath, np.ndarray] | None = None,
    resizer: Resizer | None = None,
) -> dict[LeafPath, np.ndarray]:
    """Fill every leaf from `tensors`, strictly.

    Args:
      rules: one rule for every leaf, perhaps more.
      leaves: shape of every leaf that must be filled, by path.
      tensors: arrays by tensor name.
      file: name of the weight file in error messages.
      constants: tensors that carry a fixed value and no information, with that value.
      ignored: regular expressions of tensor names that the model does not need; the whole name must match.
      defaults: values of leaves that the format defines instead of storing them.
      resizer: makes a tensor of another size fit.

    Returns:
      Arrays in our layout by path, in the tensors' dtype.

    Raises:
      UserError: lists all problems together: leaves without a rule or tensor, unexpected tensors, tensors of
        the wrong shape, and, where the mapping has a method `type(name)`, those that hold no floats.
    """
    return dict(
        stream_tensors(
            rules,
            leaves,
            tensors,
            file=file,
            constants=constants,
            ignored=ignored,
            defaults=defaults,
            resizer=resizer,
        )
    )


def stream_tensors(
    rules: Iterable[Rule],
    leaves: Mapping[LeafPath, Shape],
    tensors: Mapping[str, np.ndarray],
    *,
    file: str,
    constants: Mapping[str, float] | None = None,
    ignored: Iterable[str] = (),
    defaults: Mapping[LeafPath, np.ndarray] | None = None,
    resizer: Resizer | None = None,
) -> Iterator[tuple[LeafPath, np.ndarray]]:
    """Yield every leaf as `read_tensors` fills it, one at a time, in the order of `leaves`.

    All names and shapes are checked before this function returns, so no tensor of a wrong file is read.
    Tensors of a mapping with a method `shape(name)` are not read for the check.
    """
    defaults = defaults or {}
    by_path = {rule.path: rule for rule in rules}
    used: set[str] = set()
    missing: list[str] = []
    wrong: list[str] = []
    untyped: list[str] = []
    # 1. Find the rule that fills each leaf, and check that its tensors exist and fit.
    stored: dict[LeafPath, Rule] = {}
    for path, shape in leaves.items():
        rule = by_path.get(path)
        names = [] if rule is None else [n for _, parts in rule.names(shape) for n in parts if n != ZEROS]
        absent = [name for name in names if name not in tensors]
        used.update(names)
        if path in defaults and len(absent) == len(names):
            continue
        if rule is None:
            missing.append("/".join(path))
        elif absent:
            missing += absent
        else:
            stored[path] = rule
            wrong += _misfits(rule, shape, tensors, resizer)
            untyped += _without_floats(names, tensors)
    # 2. Check tensors that must hold a constant.
    for name, value in (constants or {}).items():
        if name in tensors:
            used.add(name)
            if not np.all(np.asarray(tensors[name]) == value):
                wrong.append(f"{name} should hold the constant {value}")
    # 3. Everything else must be a tensor that the model does not need.
    left = sorted(name for name in set(tensors) - used if not any(re.fullmatch(p, name) for p in ignored))
    problems = {"missing": missing, "unexpected": left, "wrong shape": wrong, "no floats": untyped}
    _raise_problems(file, problems)
    # 4. Read the leaves.
    return (
        (path, _read_leaf(stored[path], path, shape, tensors, resizer) if path in stored else defaults[path])
        for path, shape in leaves.items()
    )


def _misfits(
    rule: Rule, shape: Shape, tensors: Mapping[str, np.ndarray], resizer: Resizer | None
) -> list[str]:
    """Describe the tensors whose shape does not fit a leaf."""
    wanted, problems = shape[len(rule.indices) :], []
    for _, names in rule.names(shape):
        shapes = {name: shape_of(tensors, name) for name in names if name != ZEROS}
        joined = joined_shape(rule, list(shapes.values()))
        if joined is None or (joined != wanted and not (resizer and resizer.fits(rule.path, joined, wanted))):
            listed = ", ".join(f"{name} {theirs}" for name, theirs in shapes.items())
            problems.append(f"{listed} does not fit {'/'.join(rule.path)} {wanted}")
    return problems


def _without_floats(names: Iterable[str], tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Describe the tensors of another type than floats: quantised, packed or of no weights at all."""
    type_of = getattr(tensors, "type", None)
    if type_of is None:
        return []
    return [f"{name} is {type_of(name)}" for name in names if type_of(name) not in _FLOATS]


def _raise_problems(file: str, problems: Mapping[str, list[str]]) -> None:
    listed = [f"{what} ({len(items)}): {_enumerate(items)}" for what, items in problems.items() if items]
    if listed:
        raise UserError(
            f"{file} does not fit this configuration: {'; '.join(listed)}. "
            "Choose the configuration the file was made with."
        )


def _enumerate(items: list[str], at_most: int = 12) -> str:
    more = [f"and {len(items) - at_most} more"] * (len(items) > at_most)
    return ", ".join([shown(item) for item in items[:at_most]] + more)


def _read_leaf(
    rule: Rule,
    path: LeafPath,
    shape: Shape,
    tensors: Mapping[str, np.ndarray],
    resizer: Resizer | None,
) -> np.ndarray:
    """Read one leaf; its memory is allocated once."""
    wanted = shape[len(rule.indices) :]
    leaf, read = None, TRANSFORMS[rule.transform].read
    for index, names in rule.names(shape):
        parts = [read(np.asarray(tensors[name])) for name in names if name != ZEROS]
        value = _concatenate(rule.patterns, parts)
        if resizer is not None and value.shape != wanted:
            value = resizer(path, value, wanted)
        if not index:
            return value
        leaf = np.empty(shape, value.dtype) if leaf is None else leaf
        leaf[index] = value
    assert leaf is not None
    return leaf


def _concatenate(patterns: tuple[str, ...], parts: list) -> np.ndarray:
    if len(patterns) == 1:
        return parts[0]
    remaining, zeros = iter(parts), np.zeros_like(parts[0])
    return np.concatenate([zeros if pattern == ZEROS else next(remaining) for pattern in patterns], axis=-1)


def write_tensors(rules: Iterable[Rule], leaves: Mapping[LeafPath, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors that hold these leaves: the inverse of `read_tensors`.

    Raises:
      KeyError: a leaf has no rule.
    """
    return dict(write_each(rules, leaves.items()))


def write_each(
    rules: Iterable[Rule], leaves: Iterable[tuple[LeafPath, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of `write_tensors` one at a time, in the order of `leaves`; each is a copy."""
    by_path = {rule.path: rule for rule in rules}
    for path, leaf in leaves:
        for name, view in _tensor_views(by_path[path], np.asarray(leaf)):
            yield name, np.array(view, order="C")


def written_shapes(rules: Iterable[Rule], shapes: Mapping[LeafPath, Shape]) -> dict[str, Shape]:
    """Return the shapes, by name, of the tensors that `write_tensors` makes of leaves of these shapes."""
    by_path = {rule.path: rule for rule in rules}
    return {
        name: view.shape
        for path, shape in shapes.items()
        for name, view in _tensor_views(by_path[path], np.broadcast_to(np.int8(0), shape))
    }


def _tensor_views(rule: Rule, leaf: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors that a leaf holds, as views."""
    write = TRANSFORMS[rule.transform].write
    for index, names in rule.names(leaf.shape):
        value = leaf[index]
        parts = np.split(value, len(names), axis=-1) if len(names) > 1 else [value]
        yield from ((name, write(part)) for name, part in zip(names, parts, strict=True) if name != ZEROS)


def stored_shapes(rules: Iterable[Rule], tensors: Mapping[str, np.ndarray]) -> dict[LeafPath, Shape]:
    """Infer the shape of every rule's leaf from the tensors of a file, for a model of unknown size.

    A stacked axis is as long as the longest among the leaves of the same module, so that `stream_tensors`
    reports tensors that are missing at its end. Of a leaf without any tensor only the stacked axes are known.
    """
    rules = list(rules)
    lengths: dict[tuple[str, LeafPath], int] = {}
    for rule in rules:
        for key in rule.indices:
            module = (key, rule.path[:-1][:3])
            lengths[module] = max(lengths.get(module, 0), _count_tensors(rule, key, tensors))
    shapes = {}
    for rule in rules:
        stacked = tuple(lengths[key, rule.path[:-1][:3]] for key in rule.indices)
        first = [name.format(**dict.fromkeys(rule.indices, 0)) for name in rule.patterns if name != ZEROS]
        known = [shape_of(tensors, name) for name in first if name in tensors]
        shapes[rule.path] = (*stacked, *((joined_shape(rule, known) or ()) if known else ()))
    return shapes


def _count_tensors(rule: Rule, key: str, tensors: Mapping[str, np.ndarray]) -> int:
    """Count the tensors along one index while all other indices are 0."""
    pattern = next(pattern for pattern in rule.patterns if pattern != ZEROS)
    others = dict.fromkeys(rule.indices, 0)
    return next(n for n in itertools.count() if pattern.format(**{**others, key: n}) not in tensors)


def shape_of(tensors: Mapping[str, np.ndarray], name: str) -> Shape:
    """Return the shape of a tensor, without reading it where the mapping has a method `shape(name)`."""
    known = getattr(tensors, "shape", None)
    return tuple(known(name) if callable(known) else np.shape(tensors[name]))


def joined_shape(rule: Rule, shapes: list[Shape]) -> Shape | None:
    """Return the shape that a rule makes of tensors of these shapes, or None if they do not fit together.

    Args:
      rule: the rule that joins the tensors.
      shapes: shapes of the tensors that exist, in the order of the rule's patterns.
    """
    try:
        # A broadcast scalar represents the tensor: its axes move, and nothing is read or allocated.
        read = TRANSFORMS[rule.transform].read
        parts = [read(np.broadcast_to(np.int8(0), shape)).shape for shape in shapes]
    except (ValueError, IndexError):
        return None
    if len(rule.patterns) == 1:
        return parts[0]
    if len({part[:-1] for part in parts}) > 1:
        return None
    zero_parts = len(rule.patterns) - len(parts)
    return (*parts[0][:-1], sum(part[-1] for part in parts) + zero_parts * parts[0][-1])
