"""A name table between a PyTorch state dict and our parameters, strict both ways.

A `Rule` says which source tensors fill which leaf and how their axes move. Indices in braces,
`{layer}` or `{expert}`, are the leading (stacked) axes of the leaf, in order, so one rule covers
all layers. Every transform is a permutation of axes: values are never touched, so a round trip is
bit-exact.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from spectralmoe_jax.errors import UserError

Path = tuple[str, ...]
# (path, array in our layout, wanted shape) -> an array that fits, or the same one where it knows no way
Adapt = Callable[[Path, np.ndarray, tuple[int, ...]], np.ndarray]


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
    "conv1x1": Transform(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]),
    # a leading axis of one, e.g. cls_token (1, 1, d) <-> (1, d)
    "squeeze": Transform(lambda x: x[0], lambda x: x[None]),
    # one value a band, (C, 1, 1) <-> (C,)
    "per_band": Transform(lambda x: x[:, 0, 0], lambda x: x[:, None, None]),
}


ZEROS = ""  # stands for a part that the source does not have and that is zero, such as a key's bias


class Rule(NamedTuple):
    """Which source tensors fill a leaf.

    pattern: source name with `{index}` placeholders, or several, whose tensors stand side by side along the
      leaf's last axis (`ZEROS` for a part the source does not have).
    path: where the leaf stands in the model's pure dict.
    transform: a key of `TRANSFORMS`, for each tensor.
    """

    pattern: str | tuple[str, ...]
    path: Path
    transform: str = "copy"

    def under(self, prefix: str, path: Path) -> Rule:
        """The same rule for a module that stands at `path` in ours and at `prefix` in the source names."""
        patterns = tuple(pattern if pattern == ZEROS else prefix + pattern for pattern in self.patterns)
        return Rule(patterns, (*path, *self.path), self.transform)

    @property
    def patterns(self) -> tuple[str, ...]:
        return (self.pattern,) if isinstance(self.pattern, str) else self.pattern

    @property
    def indices(self) -> list[str]:
        return re.findall(r"{(\w+)}", next(pattern for pattern in self.patterns if pattern != ZEROS))

    def names(self, shape: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[str, ...]]]:
        """For a leaf of `shape`: the stacked indices, and the source names of the parts at each."""
        keys = self.indices
        return [
            (index, tuple(p.format(**dict(zip(keys, index, strict=True))) for p in self.patterns))
            for index in itertools.product(*(range(n) for n in shape[: len(keys)]))
        ]


def read_tensors(
    rules: Iterable[Rule],
    leaves: Mapping[Path, tuple[int, ...]],
    tensors: Mapping[str, np.ndarray],
    *,
    source: str,
    constants: Mapping[str, float] | None = None,
    ignored: Iterable[str] = (),
    defaults: Mapping[Path, np.ndarray] | None = None,
    adapt: Adapt | None = None,
) -> dict[Path, np.ndarray]:
    """Fill every leaf from `tensors`, one leaf at a time: a lazy mapping is read once through.

    Args:
      rules: the name table.
      leaves: path -> shape of every leaf that must be filled.
      tensors: source name -> array.
      source: what to call the file in messages.
      constants: source names that carry a fixed value and no information, with that value.
      ignored: regular expressions of source names that the model has no use for; the whole name must match.
      defaults: values of leaves that the format defines instead of storing them.
      adapt: makes a tensor of another size fit, such as a patch kernel; see `Adapt`.

    Returns: path -> array in our layout, of the tensors' dtype.

    Raises UserError, listing all problems together: leaves without a rule or tensor, tensors
    nobody reads, tensors of the wrong shape.
    """
    defaults = defaults or {}
    filled: dict[Path, np.ndarray] = {}
    used: set[str] = set()
    missing: list[str] = []
    wrong: list[str] = []
    by_path = {rule.path: rule for rule in rules}
    for path, shape in leaves.items():
        rule = by_path.get(path)
        names = [] if rule is None else [n for _, parts in rule.names(shape) for n in parts if n != ZEROS]
        absent = [name for name in names if name not in tensors]
        used.update(names)
        if path in defaults and len(absent) == len(names):
            filled[path] = defaults[path]
        elif rule is None:
            missing.append("/".join(path))
        elif absent:
            missing += absent
        else:
            leaf = _read_leaf(rule, path, shape, tensors, adapt, wrong)
            if leaf is not None:
                filled[path] = leaf
    for name, value in (constants or {}).items():
        if name in tensors:
            used.add(name)
            if not np.all(np.asarray(tensors[name]) == value):
                wrong.append(f"{name} should hold the constant {value}")
    left = sorted(name for name in set(tensors) - used if not any(re.fullmatch(p, name) for p in ignored))
    if missing or left or wrong:
        raise UserError(
            f"{source} does not fit this configuration: "
            + "; ".join(
                f"{what} ({len(items)}): {', '.join(items)}"
                for what, items in (("missing", missing), ("left over", left), ("wrong shape", wrong))
                if items
            )
            + ". Choose the configuration the file was made with."
        )
    return filled


def write_tensors(rules: Iterable[Rule], leaves: Mapping[Path, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `read_tensors`: source name -> array, for every leaf. Raises KeyError for a
    leaf without a rule."""
    by_path = {rule.path: rule for rule in rules}
    tensors = {}
    for path, leaf in leaves.items():
        rule = by_path[path]
        write = TRANSFORMS[rule.transform].write
        for index, names in rule.names(leaf.shape):
            value = np.asarray(leaf)[index]
            parts = np.split(value, len(names), axis=-1) if len(names) > 1 else [value]
            for name, part in zip(names, parts, strict=True):
                if name != ZEROS:
                    tensors[name] = np.array(write(part), order="C")
    return tensors


def _read_leaf(rule: Rule, path: Path, shape: tuple[int, ...], tensors: Mapping[str, np.ndarray],
               adapt: Adapt | None, wrong: list[str]) -> np.ndarray | None:  # fmt: skip
    """One leaf, allocated once; None, with the reason appended to `wrong`, where a tensor does not fit."""
    stacked = len(rule.indices)
    want = shape[stacked:]
    leaf = None
    for index, names in rule.names(shape):
        parts = [_read(rule, np.asarray(tensors[name])) for name in names if name != ZEROS]
        found = ", ".join(f"{name} {tuple(np.shape(tensors[name]))}" for name in names if name != ZEROS)
        if any(part is None for part in parts):
            wrong.append(f"{found} does not fit {'/'.join(path)} {want}")
            continue
        value = _join(rule.patterns, parts)
        if adapt is not None and value.shape != want:
            value = adapt(path, value, want)
        if value.shape != want:
            wrong.append(f"{found} does not fit {'/'.join(path)} {want}")
        elif not stacked:
            return value
        else:
            leaf = np.empty(shape, value.dtype) if leaf is None else leaf
            leaf[index] = value
    return leaf


def _join(patterns: tuple[str, ...], parts: list) -> np.ndarray:
    if len(patterns) == 1:
        return parts[0]
    remaining, zeros = iter(parts), np.zeros_like(parts[0])
    return np.concatenate([zeros if pattern == ZEROS else next(remaining) for pattern in patterns], axis=-1)


def _read(rule: Rule, tensor: np.ndarray) -> np.ndarray | None:
    try:
        return TRANSFORMS[rule.transform].read(tensor)
    except (ValueError, IndexError):
        return None  # the caller reports the shape
