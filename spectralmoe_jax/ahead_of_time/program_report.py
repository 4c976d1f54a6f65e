"""The figures of compiled steps as a table, and the mesh they are for.

Floating-point operations of the products in a traced function, loops counted by their turns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from jax.extend import core
from rich.console import Console
from rich.table import Table

from spectralmoe_jax.config.schema import MESH_AXES, RunConfig
from spectralmoe_jax.errors import choose, require


def product_flops(jaxpr: core.Jaxpr) -> int:
    """Two for each multiplication and addition of matrix products and convolutions, over all devices.

    A compiler's own count takes the body of a loop once. A loop whose number of turns depends on the data is
    taken once here, too: that of the matching, which has no products.
    """
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        return 2 * math.prod(out) * math.prod(left[axis] for axis in contracted)
    if name in ("ragged_dot", "ragged_dot_general"):
        left, right = (operand.aval.shape for operand in equation.invars[:2])
        return 2 * math.prod(left) * right[-1]
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // features
    inner = sum(product_flops(jaxpr) for jaxpr in _inside(params))
    if name == "scan":
        return inner * params["length"]
    if name == "shard_map":
        return inner * params["mesh"].size
    return inner


def _inside(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


_ROWS = {
    "parameters, state and batch": "arguments",
    "outputs": "outputs",
    "of which in place": "aliased",
    "temporaries": "temporaries",
    "program": "code",
    "in all": "total",
}


def with_mesh(config: RunConfig, mesh: str | None) -> RunConfig:
    """Return a configuration on another mesh.

    Args:
      config: a run's configuration.
      mesh: such as `data=64,expert=4`. An axis that is not named has one device; data has all that are left.

    Raises:
      UserError: an unknown axis, or a size that is no number.
    """
    if mesh is None:
        return config
    sizes = {"data": -1, "fsdp": 1, "expert": 1}
    for part in mesh.split(","):
        axis, _, size = part.strip().partition("=")
        choose("--mesh", axis, MESH_AXES)
        require(size.lstrip("-").isdigit(), "--mesh", f"{part!r} is no AXIS=NUMBER, as in data=64,expert=4")
        sizes[axis] = int(size)
    return config.replaced({f"parallel.{axis}": size for axis, size in sizes.items()})


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Memory a device against what it has, FLOPs, and what crosses between devices."""
    console = console or Console(highlight=False, soft_wrap=True)
    mesh = " x ".join(f"{axis}={size}" for axis, size in report["mesh"].items())
    memory = "" if report["memory"] is None else f" of {_size(report['memory'])}"
    console.print(f"{report['topology']}: {report['devices']} devices{memory}, mesh {mesh}", style="bold")
    steps = [name for name in ("train", "predict") if name in report]
    table = Table(box=None, header_style="bold")
    table.add_column("a device")
    for name in steps:
        table.add_column(name, justify="right")
    for title, key in _ROWS.items():
        table.add_row(title, *(_size(report[name][key]) for name in steps))
    table.add_row("fits", *(_fits(report[name]["fits"]) for name in steps))
    table.add_section()
    table.add_row("TFLOP a step, all devices", *(f"{report[name]['flops'] / 1e12:.3g}" for name in steps))
    table.add_row("seconds to compile", *(f"{report[name]['seconds']:.1f}" for name in steps))
    table.add_section()
    crossing = {(c["kind"], tuple(c["axes"])) for name in steps for c in report[name]["collectives"] or ()}
    for kind, axes in sorted(crossing):
        title = f"{kind} along {', '.join(axes) or 'none'}"
        table.add_row(title, *(_moved(report[name], kind, axes) for name in steps))
    console.print(table)
    unread = [name for name in steps if report[name]["collectives"] is None]
    if unread:
        console.print(
            f"what crosses between devices is not known: the compiler did not write down {', '.join(unread)}"
        )


def _moved(step: dict[str, Any], kind: str, axes: tuple[str, ...]) -> str:
    found = [c for c in step["collectives"] or () if c["kind"] == kind and tuple(c["axes"]) == axes]
    return f"{found[0]['count']} x, {_size(found[0]['bytes'])}" if found else "-"


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.2f} MiB"


def _fits(fits: bool | None) -> str:
    return "-" if fits is None else "yes" if fits else "NO"
