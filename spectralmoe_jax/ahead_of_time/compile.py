"""`spectralmoe compile`: the train and the predict step of a configuration, compiled ahead of time.

Devices of a machine that need not be here.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from spectralmoe_jax.adapters.base import hook
from spectralmoe_jax.ahead_of_time.collectives import collectives
from spectralmoe_jax.ahead_of_time.program_report import product_flops
from spectralmoe_jax.config.load import Configuration, as_run_config
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.inference.model import make_predict_step
from spectralmoe_jax.models.build import abstract_segmenter, segmenter_config
from spectralmoe_jax.parallel import Layout
from spectralmoe_jax.parallel.mesh import check_layout
from spectralmoe_jax.parameters import split
from spectralmoe_jax.training.optimizer import make_optimizer
from spectralmoe_jax.training.step import init_state, make_loss, make_train_step

LOCAL = "local"
# GiB of a chip's memory: Google Cloud, TPU system architecture, page of each generation.
HBM = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}

# What libtpu would ask the machine it is on, and complain of not finding; its lock on chips that nobody uses.
_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Machine(NamedTuple):
    """name: as asked for. devices: real or described. memory: bytes of one, or None where it does not say."""

    name: str
    devices: Sequence[Any]
    memory: int | None


def find_machine(topology: str) -> Machine:
    """The devices here (`local`), or those of a TPU slice such as `v5e:16x16`, which takes libtpu and no TPU.

    Raises:
      UserError: an unknown topology, or no libtpu.
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

    jax.config.update("jax_platforms", "cpu")  # devices that are here stay free
    for name, value in _NO_TPU_HERE.items():
        os.environ.setdefault(name, value)
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # RuntimeError, NotImplementedError or the runtime's own, by what is missing
        raise UserError(
            f"--topology {topology}: cannot be described ({' '.join(str(error).split())[:200]}); it takes "
            "libtpu (pip install libtpu) and a shape that is built"
        ) from None
    return Machine(topology, described.devices, HBM[generation] << 30)


STEPS = ("train", "predict")


def compile_steps(
    config: Configuration, topology: str = LOCAL, steps: Sequence[str] = STEPS
) -> dict[str, Any]:
    """Compiles the real steps for the devices of a topology, without allocating anything.

    Args:
      config: a run's configuration; `config.parallel` is the mesh.
      topology: `local`, or of a TPU that need not be here, such as `v5e:16x16`.
      steps: of `train` and `predict`.

    Returns:
      `{"topology", "devices", "memory": bytes of one device or None, "mesh", "jax"}` and for each step
      `{"arguments", "outputs", "aliased", "temporaries", "code", "total": bytes a device, "fits": bool or
      None, "flops": of the products of one step over all devices, "seconds": to compile, "collectives":
      [{"kind", "axes", "count", "bytes"}]}`, bytes those that one device receives in a step; None where the
      compiler did not write the program down.

    Raises:
      UserError: a configuration, mesh or topology that cannot be.
    """
    machine = find_machine(topology)
    run = as_run_config(config)
    layout = Layout.make(run.parallel, machine.devices)
    check_layout(run, layout)
    lower = {"train": lower_train, "predict": lower_predict}
    report: dict[str, Any] = {
        "topology": machine.name,
        "devices": len(machine.devices),
        "memory": machine.memory,
        "mesh": dict(layout.mesh.shape),
        "batch": run.train.batch_size,
        "jax": jax.__version__,
    }
    for step in steps:
        start = time.monotonic()
        traced = lower[step](run, layout)
        compiled, program = _compiled(traced.lower(), is_here=topology == LOCAL)
        report[step] = _figures(compiled, program, machine.memory, layout)
        report[step] |= {
            "flops": product_flops(traced.jaxpr.jaxpr),
            "seconds": round(time.monotonic() - start, 1),
        }
    return report


def lower_train(config: RunConfig, layout: Layout) -> Any:
    """The traced train step of a configuration, from shapes alone."""
    structure, trainable, frozen = _shapes(config, layout)
    settings = config.train
    rules = hook(structure.backbone.adapter, "optimizer_rules") or ()
    optimizer = make_optimizer(settings, trainable, rules)
    state = layout.shapes(jax.eval_shape(lambda params: init_state(params, optimizer), trainable))
    crop, rows = config.data.crop, settings.batch_size
    batch = {
        "image": _batch(layout, rows, crop, crop, len(config.bands)),
        "label": _batch(layout, rows, crop, crop),
    }
    key = layout.shapes(jax.eval_shape(lambda: jax.random.key(0)))
    step = make_train_step(make_loss(structure, config.loss), optimizer, layout)
    return step.trace(state, frozen, batch, key)  # type: ignore[attr-defined]


def lower_predict(config: RunConfig, layout: Layout) -> Any:
    """The traced step that maps windows, from shapes alone."""
    structure, trainable, frozen = _shapes(config, layout)
    settings = config.evaluate
    parts = layout.size("batch")
    rows = -(-settings.batch_size // parts) * parts
    pixels = _batch(layout, rows, settings.window, settings.window, len(config.bands))
    return make_predict_step(structure, layout).trace(trainable, frozen, pixels)


def _shapes(config: RunConfig, layout: Layout) -> tuple[Any, Any, Any]:
    structure = abstract_segmenter(segmenter_config(config))
    trainable, frozen = split(structure)
    return structure, layout.shapes(trainable), layout.shapes(frozen)


def _batch(layout: Layout, *shape: int) -> jax.ShapeDtypeStruct:
    sharding = layout.sharding(("batch", *(None,) * (len(shape) - 1)))
    return jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=sharding)


def _compiled(lowered: Any, is_here: bool) -> tuple[Any, str | None]:
    """The compiled step and its program as text; None where there is no such text.

    What libtpu compiles, it writes down itself: asked for it afterwards, jaxlib 0.10.2 fails for v6e and v5p.
    """
    if is_here:
        compiled = lowered.compile()
        return compiled, compiled.as_text()
    with tempfile.TemporaryDirectory() as folder, _without_cache():
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        written = sorted(Path(folder).glob("*.after_codegen.txt"), key=lambda file: file.stat().st_size)
        return compiled, written[-1].read_text() if written else None


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """What comes from the cache is not written down, and cannot be read without the machine it is for."""
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _figures(compiled: Any, program: str | None, memory: int | None, layout: Layout) -> dict[str, Any]:
    analysis = compiled.memory_analysis()
    parts = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "aliased": analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
    }
    total = sum(parts.values()) - 2 * parts["aliased"]
    return {
        **parts,
        "total": total,
        "fits": None if memory is None else total <= memory,
        "collectives": None if program is None else _moved(program, layout),
    }


def _moved(program: str, layout: Layout) -> list[dict[str, Any]]:
    """What crosses between devices, summed by kind and axes."""
    moved: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for item in collectives(program, layout.mesh):
        sums = moved.setdefault((item.kind, item.axes), [0, 0])
        sums[0] += item.times
        sums[1] += item.bytes
    return [
        {"kind": kind, "axes": list(axes), "count": count, "bytes": size}
        for (kind, axes), (count, size) in sorted(moved.items())
    ]
