"""A sign of life for a watchdog outside: collectives that wait for a lost host wait for ever."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Self

import jax

from spectralmoe_jax.errors import naming
from spectralmoe_jax.files import replacing

FOLDER = "heartbeat"
EVERY = 10.0  # seconds


class Heartbeat:
    """Keeps `WORKDIR/heartbeat/PROCESS.json` of this process: step, time (seconds since 1970), host, pid.

    The file is renewed when training starts and then after steps, every `EVERY` seconds at most, and removed
    when training ends, however it ends but by a kill: what is old is stuck.
    """

    def __init__(self, workdir: str | os.PathLike[str]):
        self.path = Path(workdir) / FOLDER / f"{jax.process_index()}.json"
        self._next = 0.0

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.beat(None)
        return self

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)

    def beat(self, step: int | None) -> None:
        """Training is alive after `step`; None before the first."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + EVERY
        life = {"step": step, "time": time.time(), "host": os.uname().nodename, "pid": os.getpid()}
        with naming(self.path), replacing(self.path) as aside:
            aside.write_text(json.dumps(life) + "\n")
