"""Cost of a compiled program: floating-point operations, and exchanges between devices.

Operations are counted in the traced function, exchanges are read from the text of the compiled program (HLO).
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core
from jax.sharding import Mesh


def product_flops(jaxpr: core.Jaxpr) -> int:
    """Count the floating-point operations of matrix products and convolutions, over all devices.

    A multiplication and an addition count as two. The body of a scan counts once for every iteration, unlike
    in the compiler's own count; that of a loop whose length depends on data, such as the one over the classes
    of an image, counts once. Of the branches of a condition, such as one for each platform, the largest
    counts.
    """
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    if name in ("ragged_dot", "ragged_dot_general"):
        left, right = (operand.aval.shape for operand in equation.invars[:2])  # (T, D), (E, D, R)
        return 2 * math.prod(left) * right[-1]
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // features
    if name == "cond":
        return max(product_flops(jaxpr) for jaxpr in _nested_jaxprs(params))
    nested = sum(product_flops(jaxpr) for jaxpr in _nested_jaxprs(params))
    if name == "scan":
        return nested * params["length"]
    if name == "shard_map":
        return nested * params["mesh"].size
    return nested


def _nested_jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4,
    "s64": 8, "u64": 8, "f64": 8,
}  # fmt: skip

# A line `%name (parameters) -> result {` starts a computation, `}` ends it.
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
# `%x = f32[4,8]{1,0} all-gather(...)`; an asynchronous exchange is `all-gather-start(...)`.
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
# The computations that an instruction calls.
_CALLED = re.compile(
    r"(?:to_apply|body|condition|calls)=%?([\w.\-]+)|(?:calls|branch_computations)=\{([^}]*)\}"
)
# The iterations of a loop: stated, or the constant that the loop's condition compares its counter with.
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_COUNTER_BOUND = re.compile(r"ROOT %?[\w.\-]+ = pred\[\]\S* compare\((.*?)\), direction=LT")
_CONSTANT = re.compile(r"^\s*%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")


class Collective(NamedTuple):
    """One kind of exchange in a program.

    Attributes:
      kind: one of `KINDS`.
      axes: mesh axes along which devices exchange.
      shapes: dtype and dimensions of each array that a device has afterwards (before, for a reduce-scatter).
      times: how often it runs in one step; a loop of unknown length counts as one iteration.
    """

    kind: str
    axes: tuple[str, ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    times: int

    @property
    def bytes(self) -> int:
        """Bytes that one device exchanges in a step."""
        each = sum(_BYTES.get(dtype, 4) * int(np.prod(shape)) for dtype, shape in self.shapes)
        return each * self.times


def collectives(hlo: str, mesh: Mesh) -> list[Collective]:
    """Read all collectives from the text of a compiled program.

    Args:
      hlo: the text.
      mesh: the mesh that the program is compiled for, its devices in the program's order.
    """
    # 1. How often does each computation run?
    computations = dict(_computations(hlo))
    runs = _run_counts(computations, _entry(hlo))
    # 2. Collect the exchanges in each.
    found: Counter[tuple] = Counter()
    channels = set[str]()
    for name, lines in computations.items():
        for line in lines:
            match = _COLLECTIVE.search(line)
            if not match or not runs[name]:
                continue
            channel = _CHANNEL.search(line)
            if channel and channel[1] in channels:
                continue  # on a TPU one exchange is part of several fusions, which compute meanwhile
            channels.update(channel.groups() if channel else ())
            shapes = _result_shapes(match[1], is_start=bool(match[3]))
            found[match[2], _axes(line, mesh), shapes] += runs[name]
    items = sorted(found.items(), key=lambda item: str(item[0]))
    return [Collective(kind, axes, shapes, times) for (kind, axes, shapes), times in items]


def _computations(hlo: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the lines of every computation."""
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
    """Return the name of the computation that the program starts with."""
    headers = (_COMPUTATION.match(line) for line in hlo.splitlines() if line.startswith("ENTRY"))
    return next(header[2] for header in headers if header)


def _run_counts(computations: dict[str, list[str]], entry: str) -> dict[str, int]:
    """Count how often each computation runs in one run of the program."""
    # 1. callers of each computation, with the number of iterations of the calling instruction
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, lines in computations.items():
        for line in lines:
            trips = _trip_count(line, computations)
            for one, several in _CALLED.findall(line):
                for called in (one or several).split(","):
                    callers[called.strip().lstrip("%")].append((name, trips))
    # 2. sum over callers, from the entry down
    runs: dict[str, int] = {entry: 1}

    def count(name: str) -> int:
        """Count the executions of a computation in one run of the program."""
        if name not in runs:
            runs[name] = 0  # a computation does not call itself
            runs[name] = sum(count(caller) * trips for caller, trips in callers[name])
        return runs[name]

    return {name: count(name) for name in computations}


def _trip_count(line: str, computations: dict[str, list[str]]) -> int:
    """Return how often an instruction runs the computations that it calls.

    A loop that does not state its length runs while its counter is below a constant: JAX counts from 0 in
    steps of 1. A loop that ends by a computed condition counts as one iteration.
    """
    stated = _TRIP_COUNT.search(line)
    if stated:
        return int(stated[1])
    condition = _CONDITION.search(line)
    lines = computations.get(condition[1], []) if condition else []
    constants = {found[1]: int(found[2]) for found in map(_CONSTANT.match, lines) if found}
    operands = next((found[1] for found in map(_COUNTER_BOUND.search, lines) if found), "")
    bounds = [constants[name] for name in re.findall(r"[\w.\-]+", operands) if name in constants]
    return bounds[0] if len(bounds) == 1 else 1


def _result_shapes(result: str, is_start: bool) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return dtype and dimensions of each array in the type of an instruction's result."""
    shapes = [
        (dtype, tuple(int(n) for n in sizes.split(",") if n)) for dtype, sizes in _SHAPE.findall(result)
    ]
    arrays = [shape for shape in shapes if shape[0] in _BYTES]
    # The start of an asynchronous exchange gives its operands, then its results.
    return tuple(arrays[len(arrays) // 2 :] if is_start and len(arrays) > 1 else arrays)


def _axes(line: str, mesh: Mesh) -> tuple[str, ...]:
    """Return the mesh axes along which the devices of a group differ."""
    coordinates = np.array(list(np.ndindex(mesh.devices.shape)))  # (devices, axes)
    differs = np.zeros(coordinates.shape[1], bool)
    for group in _device_groups(line, mesh.size):
        differs |= (coordinates[group] != coordinates[group[0]]).any(axis=0)
    return tuple(name for name, different in zip(mesh.axis_names, differs, strict=True) if different)


def _device_groups(line: str, devices: int) -> list[list[int]]:
    """Return the groups of devices that exchange with one another, in any of HLO's notations."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}", line)
    listed = re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", line)
    numbered = re.search(r"replica_groups=(\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?)", line)
    named = re.search(r"replica_groups=mesh\[([^\]]+)\](?:, device_ids=\(([^ ]+)\))? ?\{([^}]*)\}", line)
    # {{0,1},{2,3}}
    if pairs or (listed and listed[1]):
        text = pairs[1] if pairs else listed[1]  # type: ignore[index]
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]
    # [4,2]<=[2,4]T(1,0)
    if numbered:
        return _device_numbers(numbered[1]).tolist()
    # mesh['a'=4,'b'=2], device_ids=([4,2]T(1,0)) {'b'}
    if named:
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        numbers = _device_numbers(named[2]) if named[2] else np.arange(devices)
        within = re.findall(r"'([^']+)'", named[3])
        across = [name for name in sizes if name not in within]
        order = [list(sizes).index(name) for name in across + within]
        count = int(np.prod([sizes[name] for name in within]))
        return numbers.reshape(list(sizes.values())).transpose(order).reshape(-1, count).tolist()
    # {}: all devices
    return [list(range(devices))]


def _device_numbers(text: str) -> np.ndarray:
    """Read an array of device numbers.

    `[4,2]<=[2,4]T(1,0)` are the numbers from 0 in shape (2, 4), transposed, then reshaped to (4, 2);
    `[2,4]T(1,0)` are the same without the last step.
    """
    pattern = r"(?:\[([\d,]+)\]<=)?\[([\d,]+)\](?:T\(([\d,]+)\))?"
    shape, dims, order = re.match(pattern, text).groups()  # type: ignore[union-attr]
    numbers = np.arange(np.prod(_integers(dims))).reshape(_integers(dims))
    numbers = numbers.transpose(_integers(order)) if order else numbers
    return numbers.reshape(_integers(shape)) if shape else numbers


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
