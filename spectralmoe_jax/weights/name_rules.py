"""A name table between a PyTorch state dict and our parameters, strict both ways.

A `Rule` says which source tensors fill which leaf and how their axes move. Indices in braces,
`{layer}` or `{expert}`, are the leading (stacked) axes of the leaf, in order, so one rule covers
all layers. Every transform is a permutation of axes: values are never touched, so a round trip is
bit-exact.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from spectralmoe_jax.errors import UserError

Path = tuple[str, ...]
Shape = tuple[int, ...]


class Adapt(Protocol):
    """Makes tensors of another size fit, such as a patch kernel."""

    def fits(self, path: Path, shape: Shape, wanted: Shape) -> bool:
        """Whether an array of `shape`, in our layout, can be made to fit."""
        ...

    def __call__(self, path: Path, value: np.ndarray, wanted: Shape) -> np.ndarray:
        """The array that fits; `fits` said that there is one."""
        ...


class Transform(NamedTuple):
    """Axis moves between the released layout and ours, for one unstacked tensor."""

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
    # a leading axis of one, e.g. cls_token (1, 1, d) <-> (1, d)
    "squeeze": Transform(lambda x: x.squeeze(0), lambda x: x[None]),
    # a leading axis of one that the source does not have, e.g. CLIP's class embedding (d,) <-> (1, d)
    "unsqueeze": Transform(lambda x: x[None], lambda x: x[0]),
    # a square grid of positions (1, S, S, d) <-> (S * S, d)
    "grid": Transform(
        lambda x: x.squeeze(0).reshape(-1, x.shape[-1]),
        lambda x: x.reshape(1, math.isqrt(len(x)), math.isqrt(len(x)), -1),
    ),
    # one value a band, (C, 1, 1) <-> (C,)
    "per_band": Transform(lambda x: x.squeeze((1, 2)), lambda x: x[:, None, None]),
}


ZEROS = ""  # stands for a part that the source does not have and that is zero, such as a key's bias


class Rule(NamedTuple):
    """Which source tensors fill a leaf.

    pattern: source name with `{index}` placeholders, or several, whose tensors stand side by side along the
      leaf's last axis (`ZEROS` for a part the source does not have).
    path: where the leaf stands in the model's pure dict.
    transform: a key of `TRANSFORMS`, for each tensor.
    numbers: what the first index counts in the source where that is not 0, 1, 2, ..., such as the numbers
      of a model's global layers.
    """

    pattern: str | tuple[str, ...]
    path: Path
    transform: str = "copy"
    numbers: tuple[int, ...] = ()

    def under(self, prefix: str, path: Path) -> Rule:
        """The same rule for a module that stands at `path` in ours and at `prefix` in the source names."""
        patterns = tuple(pattern if pattern == ZEROS else prefix + pattern for pattern in self.patterns)
        return self._replace(pattern=patterns, path=(*path, *self.path))

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.pattern,) if isinstance(self.pattern, str) else self.pattern

    @property
    def indices(self) -> list[str]:
        return re.findall(r"{(\w+)}", next(pattern for pattern in self.patterns if pattern != ZEROS))

    def names(self, shape: Shape) -> list[tuple[tuple[int, ...], tuple[str, ...]]]:
        """For a leaf of `shape`: the stacked indices, and the source names of the parts at each."""
        keys = self.indices
        return [
            (index, tuple(p.format(**self._numbered(keys, index)) for p in self.patterns))
            for index in itertools.product(*(range(n) for n in shape[: len(keys)]))
        ]

    def _numbered(self, keys: list[str], index: tuple[int, ...]) -> dict[str, int]:
        numbered = dict(zip(keys, index, strict=True))
        if self.numbers:
            numbered[keys[0]] = self.numbers[index[0]]
        return numbered


def read_tensors(
    rules: Iterable[Rule],
    leaves: Mapping[Path, Shape],
    tensors: Mapping[str, np.ndarray],
    *,
    source: str,
    constants: Mapping[str, float] | None = None,
    ignored: Iterable[str] = (),
    defaults: Mapping[Path, np.ndarray] | None = None,
    adapt: Adapt | None = None,
) -> dict[Path, np.ndarray]:
    """Fill every leaf from `tensors`: all of `stream_tensors` at once.

    Args:
      rules: the name table.
      leaves: path -> shape of every leaf that must be filled.
      tensors: source name -> array.
      source: what to call the file in messages.
      constants: source names that carry a fixed value and no information, with that value.
      ignored: regular expressions of source names that the model has no use for; the whole name must match.
      defaults: values of leaves that the format defines instead of storing them.
      adapt: makes a tensor of another size fit, such as a patch kernel.

    Returns: path -> array in our layout, of the tensors' dtype.

    Raises UserError, listing all problems together: leaves without a rule or tensor, tensors
    nobody reads, tensors of the wrong shape.
    """
    return dict(
        stream_tensors(
            rules, leaves, tensors, source=source, constants=constants, ignored=ignored,
            defaults=defaults, adapt=adapt,
        )
    )  # fmt: skip


def stream_tensors(
    rules: Iterable[Rule],
    leaves: Mapping[Path, Shape],
    tensors: Mapping[str, np.ndarray],
    *,
    source: str,
    constants: Mapping[str, float] | None = None,
    ignored: Iterable[str] = (),
    defaults: Mapping[Path, np.ndarray] | None = None,
    adapt: Adapt | None = None,
) -> Iterator[tuple[Path, np.ndarray]]:
    """As `read_tensors`, one leaf at a time, in the order of `leaves`.

    Names and shapes are checked before this returns: a mapping with a method `shape(name)` is not read for
    that, and a file that does not fit is never read at all.
    """
    defaults = defaults or {}
    used: set[str] = set()
    missing: list[str] = []
    wrong: list[str] = []
    by_path = {rule.path: rule for rule in rules}
    stored: dict[Path, Rule] = {}
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
            wrong += _misfits(rule, shape, tensors, adapt)
    for name, value in (constants or {}).items():
        if name in tensors:
            used.add(name)
            if not np.all(np.asarray(tensors[name]) == value):
                wrong.append(f"{name} should hold the constant {value}")
    left = sorted(name for name in set(tensors) - used if not any(re.fullmatch(p, name) for p in ignored))
    _refuse(source, {"missing": missing, "left over": left, "wrong shape": wrong})
    return (
        (path, _read_leaf(stored[path], path, shape, tensors, adapt) if path in stored else defaults[path])
        for path, shape in leaves.items()
    )


def _refuse(source: str, problems: Mapping[str, list[str]]) -> None:
    listed = [f"{what} ({len(items)}): {_listed(items)}" for what, items in problems.items() if items]
    if listed:
        raise UserError(
            f"{source} does not fit this configuration: {'; '.join(listed)}. "
            "Choose the configuration the file was made with."
        )


def _listed(items: list[str], at_most: int = 12) -> str:
    more = [f"and {len(items) - at_most} more"] * (len(items) > at_most)
    return ", ".join(items[:at_most] + more)


def write_tensors(rules: Iterable[Rule], leaves: Mapping[Path, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `read_tensors`: source name -> array, for every leaf. Raises KeyError for a
    leaf without a rule."""
    return dict(write_each(rules, leaves.items()))


def write_each(
    rules: Iterable[Rule], leaves: Iterable[tuple[Path, np.ndarray]]
) -> Iterator[tuple[str, np.ndarray]]:
    """As `write_tensors`, one tensor at a time, in the order of `leaves`; each is a copy."""
    by_path = {rule.path: rule for rule in rules}
    for path, leaf in leaves:
        for name, view in _views(by_path[path], np.asarray(leaf)):
            yield name, np.array(view, order="C")


def written_shapes(rules: Iterable[Rule], shapes: Mapping[Path, Shape]) -> dict[str, Shape]:
    """Source name -> shape of what `write_tensors` makes of leaves of these shapes."""
    by_path = {rule.path: rule for rule in rules}
    return {
        name: view.shape
        for path, shape in shapes.items()
        for name, view in _views(by_path[path], np.broadcast_to(np.int8(0), shape))
    }


def _views(rule: Rule, leaf: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The source tensors that a leaf holds, without copies."""
    write = TRANSFORMS[rule.transform].write
    for index, names in rule.names(leaf.shape):
        value = leaf[index]
        parts = np.split(value, len(names), axis=-1) if len(names) > 1 else [value]
        yield from ((name, write(part)) for name, part in zip(names, parts, strict=True) if name != ZEROS)


def stored_shapes(rules: Iterable[Rule], tensors: Mapping[str, np.ndarray]) -> dict[Path, Shape]:
    """The shape of every rule's leaf as a file's own tensors have it, for a model whose sizes nobody gave.

    A stacked axis is as long as the longest among the leaves beside it, so that `stream_tensors` reports what
    is missing at its end; of a leaf without any tensor only the stacked axes are known.
    """
    rules = list(rules)
    lengths: dict[tuple[str, Path], int] = {}
    for rule in rules:
        for key in rule.indices:
            place = (key, rule.path[:-1][:3])
            lengths[place] = max(lengths.get(place, 0), _count(rule, key, tensors))
    shapes = {}
    for rule in rules:
        stacked = tuple(lengths[key, rule.path[:-1][:3]] for key in rule.indices)
        first = [name.format(**dict.fromkeys(rule.indices, 0)) for name in rule.patterns if name != ZEROS]
        known = [shape_of(tensors, name) for name in first if name in tensors]
        shapes[rule.path] = (*stacked, *((joined_shape(rule, known) or ()) if known else ()))
    return shapes


def _count(rule: Rule, key: str, tensors: Mapping[str, np.ndarray]) -> int:
    """How many tensors there are along one index, where all others are 0."""
    pattern = next(pattern for pattern in rule.patterns if pattern != ZEROS)
    others = dict.fromkeys(rule.indices, 0)
    return next(n for n in itertools.count() if pattern.format(**{**others, key: n}) not in tensors)


def shape_of(tensors: Mapping[str, np.ndarray], name: str) -> Shape:
    """The shape of a tensor, unread where the mapping knows it."""
    known = getattr(tensors, "shape", None)
    return tuple(known(name) if callable(known) else np.shape(tensors[name]))


def _misfits(rule: Rule, shape: Shape, tensors: Mapping[str, np.ndarray], adapt: Adapt | None) -> list[str]:
    """Which of a leaf's tensors have a shape that does not fit it, in words."""
    want, found = shape[len(rule.indices) :], []
    for _, names in rule.names(shape):
        shapes = {name: shape_of(tensors, name) for name in names if name != ZEROS}
        joined = joined_shape(rule, list(shapes.values()))
        if joined is None or (joined != want and not (adapt and adapt.fits(rule.path, joined, want))):
            listed = ", ".join(f"{name} {theirs}" for name, theirs in shapes.items())
            found.append(f"{listed} does not fit {'/'.join(rule.path)} {want}")
    return found


def joined_shape(rule: Rule, shapes: list[Shape]) -> Shape | None:
    """The shape that a rule makes of tensors of these shapes (those that exist), or None where it cannot."""
    try:
        # a view of one number stands for the tensor: axes move, nothing is read
        read = TRANSFORMS[rule.transform].read
        parts = [read(np.broadcast_to(np.int8(0), shape)).shape for shape in shapes]
    except (ValueError, IndexError):
        return None
    if len(rule.patterns) == 1:
        return parts[0]
    if len({part[:-1] for part in parts}) > 1:
        return None
    absent = len(rule.patterns) - len(parts)
    return (*parts[0][:-1], sum(part[-1] for part in parts) + absent * parts[0][-1])


def _read_leaf(rule: Rule, path: Path, shape: Shape, tensors: Mapping[str, np.ndarray],
               adapt: Adapt | None) -> np.ndarray:  # fmt: skip
    """One leaf, allocated once."""
    want = shape[len(rule.indices) :]
    leaf, read = None, TRANSFORMS[rule.transform].read
    for index, names in rule.names(shape):
        parts = [read(np.asarray(tensors[name])) for name in names if name != ZEROS]
        value = _join(rule.patterns, parts)
        if adapt is not None and value.shape != want:
            value = adapt(path, value, want)
        if not index:
            return value
        leaf = np.empty(shape, value.dtype) if leaf is None else leaf
        leaf[index] = value
    assert leaf is not None
    return leaf


def _join(patterns: tuple[str, ...], parts: list) -> np.ndarray:
    if len(patterns) == 1:
        return parts[0]
    remaining, zeros = iter(parts), np.zeros_like(parts[0])
    return np.concatenate([zeros if pattern == ZEROS else next(remaining) for pattern in patterns], axis=-1)
