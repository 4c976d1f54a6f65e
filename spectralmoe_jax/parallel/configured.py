"""From a configuration to the layout of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from spectralmoe_jax.configuration import from_config, require
from spectralmoe_jax.parallel.layout import Layout
from spectralmoe_jax.parallel.settings import ParallelSettings


def parallel_settings(config: ConfigDict) -> ParallelSettings:
    """`config.parallel`, or its defaults. Raises UserError naming the key."""
    return from_config(ParallelSettings, config.get("parallel") or ConfigDict(), "parallel")


def training_layout(config: ConfigDict, devices: Sequence[Any] | None = None) -> Layout | None:
    """The layout that a configuration trains on; None for one device.

    Args:
      devices: default all of all processes.

    Raises:
      UserError: a mesh that does not divide the devices, the batch or the experts.
    """
    layout = Layout.make(parallel_settings(config), devices)
    check_layout(config, layout)
    return None if layout.is_single else layout


def check_layout(config: ConfigDict, layout: Layout) -> None:
    """Raises UserError where the devices of a layout cannot share the batch or the experts evenly."""
    parts, experts = layout.size("batch"), layout.mesh.shape["expert"]
    batch = config.train.get("batch_size", 8)
    adapter = config.model.get("adapter") or {}
    require(
        batch % parts == 0,
        "config.train.batch_size",
        f"is {batch}, which {parts} devices along data and fsdp cannot share: give a multiple of {parts}",
    )
    count = adapter.get("num_experts", 1)
    require(
        count % experts == 0,
        "config.parallel.expert",
        f"is {experts}, which does not divide config.model.adapter.num_experts = {count}: choose from "
        f"{', '.join(str(n) for n in range(1, count + 1) if count % n == 0)}",
    )


def using_layout(config: ConfigDict) -> Layout | None:
    """The layout to use a trained model on: the one it was trained on where that fits the devices here, else
    all of them along data; None for one device."""
    layout = Layout.make(parallel_settings(config).fitted(jax.device_count()))
    return None if layout.is_single else layout


def print_view(layout: Layout | None) -> None:
    """One line of what this process sees of the mesh, where it is not alone on one device."""
    if layout is None:
        return
    part, parts = layout.host_part()
    mesh = " x ".join(f"{axis}={size}" for axis, size in layout.mesh.shape.items())
    print(
        f"process {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of "
        f"{jax.device_count()} devices ({jax.devices()[0].device_kind}), mesh {mesh}, "
        f"part {part + 1} of {parts} of every batch",
        flush=True,
    )
