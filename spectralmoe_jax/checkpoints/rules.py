"""A name table between a PyTorch state dict and our parameters, strict both ways.

A `Rule` says which released tensors fill which leaf and how their axes move. Indices in
braces, `{layer}` or `{expert}`, are the leading (stacked) axes of the leaf, in order, so one
rule covers all layers. Every transform is a permutation of axes: values are never touched, so
a round trip is bit-exact.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from spectralmoe_jax.errors import UserError

Path = tuple[str, ...]


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


class Rule(NamedTuple):
    """`pattern`: released name with `{index}` placeholders; `path`: where the leaf stands in the
    model's pure dict; `transform`: a key of `TRANSFORMS`."""

    pattern: str
    path: Path
    transform: str = "copy"

    @property
    def indices(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.pattern)

    def names(self, shape: tuple[int, ...]) -> list[tuple[tuple[int, ...], str]]:
        """The released names this rule covers for a leaf of `shape`, with their stacked indices."""
        keys = self.indices
        ranges = [range(n) for n in shape[: len(keys)]]
        return [
            (index, self.pattern.format(**dict(zip(keys, index, strict=True))))
            for index in itertools.product(*ranges)
        ]


def read_tensors(
    rules: Iterable[Rule],
    leaves: Mapping[Path, tuple[int, ...]],
    tensors: Mapping[str, np.ndarray],
    *,
    source: str,
    constants: Mapping[str, float] | None = None,
) -> dict[Path, np.ndarray]:
    """Fill every leaf from `tensors`.

    Args:
      rules: the name table.
      leaves: path -> shape of every leaf that must be filled.
      tensors: released name -> array.
      source: what to call the file in messages.
      constants: released names that carry a fixed value and no information, with that value.

    Returns: path -> array in our layout, of the tensors' dtype.

    Raises UserError, listing all problems together: leaves without a rule or tensor, tensors
    nobody reads, tensors of the wrong shape.
    """
    constants = constants or {}
    filled: dict[Path, np.ndarray] = {}
    used: set[str] = set()
    missing: list[str] = []
    wrong: list[str] = []
    by_path = {rule.path: rule for rule in rules}
    for path, shape in leaves.items():
        rule = by_path.get(path)
        if rule is None:
            missing.append("/".join(path))
            continue
        parts = []
        for _, name in rule.names(shape):
            used.add(name)
            if name not in tensors:
                missing.append(name)
                continue
            want = shape[len(rule.indices) :]
            part = _read(rule, np.asarray(tensors[name]))
            if part is None or part.shape != want:
                wrong.append(f"{name} {tuple(np.shape(tensors[name]))} does not fit {'/'.join(path)} {want}")
                continue
            parts.append(part)
        if len(parts) == len(rule.names(shape)):
            filled[path] = np.stack(parts).reshape(shape) if rule.indices else parts[0]
    for name, value in constants.items():
        if name in tensors:
            used.add(name)
            if not np.all(np.asarray(tensors[name]) == value):
                wrong.append(f"{name} should hold the constant {value}")
    left = sorted(set(tensors) - used)
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
    """The inverse of `read_tensors`: released name -> array, for every leaf. Raises KeyError for a
    leaf without a rule."""
    by_path = {rule.path: rule for rule in rules}
    tensors = {}
    for path, leaf in leaves.items():
        rule = by_path[path]
        for index, name in rule.names(leaf.shape):
            tensors[name] = np.array(TRANSFORMS[rule.transform].write(np.asarray(leaf)[index]), order="C")
    return tensors


def _read(rule: Rule, tensor: np.ndarray) -> np.ndarray | None:
    try:
        return TRANSFORMS[rule.transform].read(tensor)
    except (ValueError, IndexError):
        return None  # the caller reports the shape
