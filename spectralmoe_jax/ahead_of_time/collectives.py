"""What crosses between devices in a compiled program: kinds, shapes, mesh axes, and how often."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4,
          "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:to_apply|body|condition|calls)=%?([\w.\-]+)|(?:calls|branch_computations)=\{([^}]*)\}"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BOUND = re.compile(r"ROOT %?[\w.\-]+ = pred\[\]\S* compare\((.*?)\), direction=LT")
_CONSTANT = re.compile(r"^\s*%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")


class Collective(NamedTuple):
    """One kind of exchange in a program.

    Attributes:
      kind: one of `KINDS`.
      axes: of the mesh, along which devices exchange.
      shapes: of what each device has afterwards (before, for a reduce-scatter), (dtype, dimensions) each.
      times: how often in one step; a loop without a known number of turns counts as one turn.
    """

    kind: str
    axes: tuple[str, ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    times: int

    @property
    def bytes(self) -> int:
        """A device's, of all turns together."""
        each = sum(_BYTES.get(dtype, 4) * int(np.prod(shape)) for dtype, shape in self.shapes)
        return each * self.times


def collectives(hlo: str, mesh: Mesh) -> list[Collective]:
    """All collectives of a compiled program's text, whose devices are those of `mesh` in order."""
    computations = dict(_computations(hlo))
    turns = _turns(computations, _entry(hlo))
    found: Counter[tuple] = Counter()
    channels = set[str]()
    for name, lines in computations.items():
        for line in lines:
            match = _COLLECTIVE.search(line)
            if not match or not turns[name]:
                continue
            channel = _CHANNEL.search(line)
            if channel and channel[1] in channels:
                continue  # a TPU computes while it exchanges: one exchange stands in each of several fusions
            channels.update(channel.groups() if channel else ())
            shapes = _shapes(match[1], is_start=bool(match[3]))
            found[match[2], _axes(line, mesh), shapes] += turns[name]
    items = sorted(found.items(), key=lambda item: str(item[0]))
    return [Collective(kind, axes, shapes, times) for (kind, axes, shapes), times in items]


def _computations(hlo: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", list[str]()
    for line in hlo.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            name, lines = header[2], []
        elif line.startswith("}"):
            yield name, lines
        else:
            lines.append(line)


def _entry(hlo: str) -> str:
    headers = (_COMPUTATION.match(line) for line in hlo.splitlines() if line.startswith("ENTRY"))
    return next(header[2] for header in headers if header)


def _turns(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs in one run of the entry."""
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, lines in computations.items():
        for line in lines:
            trips = _trips(line, computations)
            for one, several in _CALLED.findall(line):
                for other in (one or several).split(","):
                    callers[other.strip().lstrip("%")].append((name, trips))
    turns: dict[str, int] = {entry: 1}

    def of(name: str) -> int:
        if name not in turns:
            turns[name] = 0  # a computation does not call itself
            turns[name] = sum(of(caller) * trips for caller, trips in callers[name])
        return turns[name]

    return {name: of(name) for name in computations}


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """How often an instruction runs what it calls.

    Where a loop does not say so, that is the constant which its counter stays below, since JAX counts from 0
    in steps of 1; a loop that ends by what it computes counts as one turn.
    """
    stated = _TRIPS.search(line)
    if stated:
        return int(stated[1])
    condition = _CONDITION.search(line)
    lines = computations.get(condition[1], []) if condition else []
    constants = {found[1]: int(found[2]) for found in map(_CONSTANT.match, lines) if found}
    bound = next((found[1] for found in map(_BOUND.search, lines) if found), "")
    named = [constants[name] for name in re.findall(r"[\w.\-]+", bound) if name in constants]
    return named[0] if len(named) == 1 else 1


def _shapes(result: str, is_start: bool) -> tuple[tuple[str, tuple[int, ...]], ...]:
    shapes = [
        (dtype, tuple(int(n) for n in sizes.split(",") if n)) for dtype, sizes in _SHAPE.findall(result)
    ]
    arrays = [shape for shape in shapes if shape[0] in _BYTES]
    # An asynchronous one gives operands and results side by side.
    return tuple(arrays[len(arrays) // 2 :] if is_start and len(arrays) > 1 else arrays)


def _axes(line: str, mesh: Mesh) -> tuple[str, ...]:
    """Mesh axes along which the devices of a group differ."""
    places = np.array(list(np.ndindex(mesh.devices.shape)))
    different = np.zeros(places.shape[1], bool)
    for group in _groups(line, mesh.size):
        different |= (places[group] != places[group[0]]).any(axis=0)
    return tuple(name for name, differs in zip(mesh.axis_names, different, strict=True) if differs)


def _groups(line: str, devices: int) -> list[list[int]]:
    """Groups of devices that exchange, in any of the ways a program writes them."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}", line)
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", line)
    numbered = re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", line)
    named = re.search(r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\(([^ ]+)\))? ?\{([^}]*)\}", line)
    if pairs or (listed and listed[1]):
        text = pairs[1] if pairs else listed[1]  # type: ignore[index]
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]
    if numbered:
        return _numbers(numbered[1]).tolist()
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        ids = _numbers(named[2]) if named[2] else np.arange(devices)
        together = re.findall(r"'([^']+)'", named[3])
        apart = [name for name in sizes if name not in together]
        order = [list(sizes).index(name) for name in apart + together]
        count = int(np.prod([sizes[name] for name in together]))
        return ids.reshape(list(sizes.values())).transpose(order).reshape(-1, count).tolist()
    return [list(range(devices))]


def _numbers(text: str) -> np.ndarray:
    """`[4,2]<=[2,4]T(1,0)`: the numbers from 0 on in shape (2, 4), transposed, in shape (4, 2); and
    `[2,4]T(1,0)` without the last."""
    shape, dims, order = re.match(r"(?:\[([\d,]+)\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()  # type: ignore[union-attr]
    ids = np.arange(np.prod(_ints(dims))).reshape(_ints(dims))
    ids = ids.transpose(_ints(order)) if order else ids
    return ids.reshape(_ints(shape)) if shape else ids


def _ints(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
