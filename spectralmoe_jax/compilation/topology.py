"""Devices of a machine that need not be here."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from spectralmoe_jax.errors import UserError

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
