"""Metrics of a run: `metrics.jsonl`, one JSON object a line, and TensorBoard."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from spectralmoe_jax.errors import naming
from spectralmoe_jax.files import replacing

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class MetricsLog:
    """Appends metrics; after a resume there is one record for each step and kind.

    Args:
      workdir: the run's folder; must exist.
      step: the step the run starts from. Records of later steps, left by a run
        that was killed after its last checkpoint, are dropped.
      silent: writes nothing, as on all hosts but the first.
    """

    def __init__(self, workdir: str | os.PathLike[str], step: int, silent: bool = False):
        self._silent = silent
        if silent:
            return
        from tensorboardX import SummaryWriter

        path = Path(workdir) / METRICS_FILE
        _keep_until(path, step)
        self._file = path.open("a")
        self._tensorboard = SummaryWriter(str(Path(workdir) / TENSORBOARD_FOLDER), purge_step=step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._silent:
            return
        with naming(self._file.name):  # closing writes what a full disk did not take before
            self._file.close()
        self._tensorboard.close()

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Writes one record `{"step": ..., "kind": ..., **values}`; what is not finite becomes null.

        Raises OSError, with the file's name, where it cannot be written.
        """
        if self._silent:
            return
        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        self._append({"step": step, "kind": kind, **finite})
        for name, value in numbers.items():
            self._tensorboard.add_scalar(f"{kind}/{name}", value, step)

    def write_arrays(self, step: int, kind: str, values: Mapping[str, np.ndarray]) -> None:
        """Writes one such record of nested lists, to four decimals, into the file; none without values.

        Raises OSError, with the file's name, where it cannot be written.
        """
        if self._silent or not values:
            return
        rounded = {
            name: np.round(np.asarray(value, np.float64), 4).tolist() for name, value in values.items()
        }
        self._append({"step": step, "kind": kind, **rounded})

    def _append(self, record: Mapping[str, Any]) -> None:
        with naming(self._file.name):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()


def _keep_until(path: Path, step: int) -> None:
    """Drops records beyond `step`, and a last line that a killed run left unfinished."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    with replacing(path) as aside:
        aside.write_text("".join(line + "\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf
