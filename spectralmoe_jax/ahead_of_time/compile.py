"""`spectralmoe compile`: compile the train and predict steps ahead of time, and report what they cost.

The steps are compiled for the devices of this machine, or for a TPU slice that is not present. Nothing is
allocated.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from spectralmoe_jax.ahead_of_time.program_cost import collectives, product_flops
from spectralmoe_jax.config.load import Configuration, as_run_config
from spectralmoe_jax.config.schema import BALANCED, MESH_AXES, RunConfig
from spectralmoe_jax.errors import UserError, choose, require
from spectralmoe_jax.escapes import plain
from spectralmoe_jax.inference.predict_step import make_predict_step
from spectralmoe_jax.models.build import abstract_segmenter, segmenter_config
from spectralmoe_jax.parallel import Layout
from spectralmoe_jax.parallel.mesh import check_layout
from spectralmoe_jax.parameters import split
from spectralmoe_jax.part_files import scratch_folder
from spectralmoe_jax.training.optimizer import make_optimizer
from spectralmoe_jax.training.step import init_state, make_loss, make_train_step
from spectralmoe_jax.training.train import check_sizes

STEPS = ("train", "predict")
LOCAL = "local"
# Memory of a chip in GiB: Google Cloud, TPU system architecture, page of each generation.
HBM = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
# Environment in place of the metadata server that libtpu queries on a TPU machine. It also lets several
# processes load libtpu.
_LIBTPU_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def with_mesh(config: RunConfig, mesh: str | None) -> RunConfig:
    """Return a configuration on another mesh.

    Args:
      config: a run's configuration.
      mesh: such as `data=64,expert=4`. An axis that is not named has one device; data has all that are left.

    Raises:
      UserError: an axis is unknown, or a size is not a number.
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


def compile_steps(
    config: Configuration, topology: str = LOCAL, steps: Sequence[str] = STEPS
) -> dict[str, Any]:
    """Compile the real steps for the devices of a topology.

    Args:
      config: a run's configuration; `config.parallel` is the mesh.
      topology: `local`, or a TPU that need not be present, such as `v5e:16x16`.
      steps: `train`, `predict` or both.

    Returns:
      `topology`, `devices` (how many), `memory` (bytes of one device, or None), `mesh`, `batch`, `jax` (its
      version) and an entry for each step:

      * `arguments`, `outputs`, `aliased`, `temporaries`, `code`, `total`: bytes per device,
      * `fits`: whether `total` is within `memory`, or None,
      * `flops`: operations of the products in one step, over all devices,
      * `seconds`: time to compile,
      * `collectives`: a list of `kind`, `axes`, `count` and `bytes` that one device exchanges in a step; None
        if the compiler did not write the program as text.

    Raises:
      UserError: the configuration, mesh or topology is not possible.
    """
    machine = find_machine(topology)
    run = as_run_config(config)
    layout = Layout.make(run.parallel, machine.devices)
    check_layout(run, layout)
    check_sizes(run)
    trace = {"train": _trace_train_step, "predict": _trace_predict_step}
    report: dict[str, Any] = {
        "topology": machine.name,
        "devices": len(machine.devices),
        "memory": machine.memory,
        "mesh": dict(layout.mesh.shape),
        "batch": run.train.images_per_step,
        "jax": jax.__version__,
    }
    for step in steps:
        start = time.monotonic()
        traced = trace[step](run, layout)
        compiled, program = _compile(traced.lower(), is_local=topology == LOCAL)
        report[step] = {
            **_memory(compiled, machine.memory),
            "collectives": None if program is None else _sum_collectives(program, layout),
            "flops": product_flops(traced.jaxpr.jaxpr),
            "seconds": round(time.monotonic() - start, 1),
        }
    return report


class Machine(NamedTuple):
    """Devices to compile for.

    Attributes:
      name: name of the machine.
      devices: present or described devices.
      memory: bytes of one device, or None if it is not known.
    """

    name: str
    devices: Sequence[Any]
    memory: int | None


def find_machine(topology: str) -> Machine:
    """Find the devices of a topology.

    Args:
      topology: `local` for the devices of this machine, or a TPU slice such as `v5e:16x16`, which needs
        libtpu and no TPU.

    Raises:
      UserError: the topology is unknown, or libtpu is missing.
    """
    if topology == LOCAL:
        devices = jax.devices()
        statistics = devices[0].memory_stats() or {}
        return Machine(f"{len(devices)} x {devices[0].device_kind}", devices, statistics.get("bytes_limit"))
    generation, _, shape = topology.partition(":")
    if generation not in HBM or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise UserError(
            f"--topology {topology}: give {LOCAL}, or a TPU as GENERATION:SHAPE of {', '.join(HBM)}, "
            "such as v5e:16x16 or v5p:4x4x4"
        )
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")  # leave this machine's devices free
    for name, value in _LIBTPU_WITHOUT_TPU.items():
        os.environ.setdefault(name, value)
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # RuntimeError, NotImplementedError or the runtime's own, by what is missing
        raise UserError(
            f"--topology {topology}: cannot be described ({' '.join(str(error).split())[:200]}); it takes "
            "libtpu (pip install libtpu) and a shape that is built"
        ) from None
    return Machine(topology, described.devices, HBM[generation] << 30)


def _trace_train_step(config: RunConfig, layout: Layout) -> Any:
    """Trace the train step of a configuration from shapes alone."""
    structure, trainable, frozen = _abstract_parameters(config, layout)
    optimizer = make_optimizer(config.train, trainable, structure.optimizer_rules)
    has_average = config.train.ema is not None
    make_state = functools.partial(init_state, optimizer=optimizer, has_average=has_average)
    state = layout.shapes(jax.eval_shape(make_state, trainable))
    crop, rows = config.data.crop, config.train.images_per_step
    batch = {
        "image": _abstract_batch(layout, rows, crop, crop, len(config.bands)),
        "label": _abstract_batch(layout, rows, crop, crop),
    }
    key = layout.shapes(jax.eval_shape(lambda: jax.random.key(0)))
    loss = config.loss
    if loss.class_weights == BALANCED:  # of unknown pixels: any numbers give the same program
        loss = loss.balanced([1] * len(config.classes.names))
    step = make_train_step(
        make_loss(structure, loss, config.train.steps),
        optimizer,
        layout,
        accumulate=config.train.accumulate,
        ema=config.train.ema,
    )
    return step.trace(state, frozen, batch, key)  # type: ignore[attr-defined]


def _trace_predict_step(config: RunConfig, layout: Layout) -> Any:
    """Trace the step that predicts windows from shapes alone."""
    structure, trainable, frozen = _abstract_parameters(config, layout)
    settings = config.evaluate
    parts = layout.size("batch")
    rows = -(-settings.batch_size // parts) * parts
    pixels = _abstract_batch(layout, rows, settings.window, settings.window, len(config.bands))
    return make_predict_step(structure, layout).trace(trainable, frozen, pixels)


def _abstract_parameters(config: RunConfig, layout: Layout) -> tuple[Any, Any, Any]:
    """Return the abstract segmenter, and shapes with shardings of its trainable and frozen parameters."""
    structure = abstract_segmenter(segmenter_config(config))
    trainable, frozen = split(structure)
    return structure, layout.shapes(trainable), layout.shapes(frozen)


def _abstract_batch(layout: Layout, *shape: int) -> jax.ShapeDtypeStruct:
    sharding = layout.sharding(("batch", *(None,) * (len(shape) - 1)))
    return jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding)


def _compile(lowered: Any, is_local: bool) -> tuple[Any, str | None]:
    """Compile a step and return it with its program as text, or None if there is no such text."""
    if is_local:
        compiled = lowered.compile()
        return compiled, compiled.as_text()
    # libtpu writes the text while it compiles: jaxlib 0.10.2 fails to give it afterwards for v6e and v5p
    with scratch_folder() as folder, _without_compilation_cache():
        compiled = lowered.compile(
            compiler_options={"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}
        )
        written = sorted(folder.glob("*.after_codegen.txt"), key=lambda file: file.stat().st_size)
        return compiled, written[-1].read_text(encoding="utf-8") if written else None


@contextlib.contextmanager
def _without_compilation_cache() -> Iterator[None]:
    """Disable the cache: a cached program is not written as text, and cannot be read without its TPU."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _memory(compiled: Any, available: int | None) -> dict[str, Any]:
    """Return the bytes per device that a compiled step needs, by purpose, and whether they fit."""
    analysis = compiled.memory_analysis()
    parts = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "aliased": analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
    }
    # aliased bytes are in the arguments and in the outputs, and have an entry of their own: count them once
    total = sum(parts.values()) - 2 * parts["aliased"]
    return {**parts, "total": total, "fits": None if available is None else total <= available}


def _sum_collectives(program: str, layout: Layout) -> list[dict[str, Any]]:
    """Sum the exchanges between devices by kind and mesh axes."""
    sums: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for item in collectives(program, layout.mesh):
        entry = sums.setdefault((item.kind, item.axes), [0, 0])
        entry[0] += item.times
        entry[1] += item.bytes
    return [
        {"kind": kind, "axes": list(axes), "count": count, "bytes": size}
        for (kind, axes), (count, size) in sorted(sums.items())
    ]


_MEMORY_ROWS = {
    "parameters, state and batch": "arguments",
    "outputs": "outputs",
    "of which in place": "aliased",
    "temporaries": "temporaries",
    "program": "code",
    "total": "total",
}


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Print the report of `compile_steps` as a table: memory, operations, time to compile, exchanges."""
    console = console or Console(highlight=False, soft_wrap=True)
    mesh = " x ".join(f"{axis}={size}" for axis, size in report["mesh"].items())
    memory = "" if report["memory"] is None else f" of {_format_size(report['memory'])}"
    console.print(plain(f"{report['topology']}: {report['devices']} devices{memory}, mesh {mesh}", "bold"))
    steps = [name for name in STEPS if name in report]
    table = Table(box=None, header_style="bold")
    table.add_column("per device")
    for name in steps:
        table.add_column(name, justify="right")
    for title, key in _MEMORY_ROWS.items():
        table.add_row(title, *(_format_size(report[name][key]) for name in steps))
    fits = {None: "-", True: "yes", False: "NO"}
    table.add_row("fits", *(fits[report[name]["fits"]] for name in steps))
    table.add_section()
    table.add_row("TFLOP per step, all devices", *(f"{report[name]['flops'] / 1e12:.3g}" for name in steps))
    table.add_row("seconds to compile", *(f"{report[name]['seconds']:.1f}" for name in steps))
    table.add_section()
    exchanges = {(c["kind"], tuple(c["axes"])) for name in steps for c in report[name]["collectives"] or ()}
    for kind, axes in sorted(exchanges):
        title = f"{kind} along {', '.join(axes) or 'none'}"
        table.add_row(title, *(_format_exchange(report[name], kind, axes) for name in steps))
    console.print(table)
    unknown = [name for name in steps if report[name]["collectives"] is None]
    if unknown:
        names = ", ".join(unknown)
        console.print(plain(f"exchanges between devices are not known: the compiler gave no text of {names}"))


def _format_exchange(step: dict[str, Any], kind: str, axes: tuple[str, ...]) -> str:
    found = [c for c in step["collectives"] or () if c["kind"] == kind and tuple(c["axes"]) == axes]
    return f"{found[0]['count']} x, {_format_size(found[0]['bytes'])}" if found else "-"


def _format_size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.2f} MiB"
