"""The complete checkpoints in a run's folder: their steps, scores and records, as they lie on disk.

Read without Orbax: a file that is missing or damaged is named, and reading changes nothing in the folder of a
run that may be training.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from spectralmoe_jax.checkpoints.checksums import damage, read_checksums
from spectralmoe_jax.errors import UserError, shown
from spectralmoe_jax.files import read_json

BEST = "best"
"""Key of a checkpoint's record: the step of the best checkpoint then, and the name of the score."""

STEP = "step"
"""Key of a checkpoint's record: its step."""

_HIGHEST = 1e300  # scores above it are damaged
_METADATA, _METRICS = "_CHECKPOINT_METADATA", "metrics"
_REMEDY = "restore the file, or remove the folder of this checkpoint to go on with the others"

_STEP = re.compile(r"0|[1-9][0-9]{0,17}")  # as a step is written

log = logging.getLogger(__name__)


class Stored(NamedTuple):
    """A complete checkpoint.

    Attributes:
      step: number of steps done.
      place: its folder.
      metrics: scores at this step; None if there was no evaluation.
      record: what the run stored beside the arrays.
    """

    step: int
    place: Path
    metrics: dict[str, float] | None
    record: dict[str, Any]


def read_stored(place: Path) -> Stored:
    """Read what a checkpoint says of itself.

    Raises:
      UserError: a file is missing or damaged; names it.
    """
    # 1. compare the small files with their checksums
    checksums = read_checksums(place)
    if checksums is not None:
        small = [name for name in checksums if "/" not in name or name.startswith(f"{_METRICS}/")]
        if found := damage(place, small, checksums):
            raise UserError(found)
    # 2. the record
    path = place / _METADATA
    stored = _read(path)
    items, record = stored.get("item_handlers"), stored.get("custom_metadata") or {}
    if not isinstance(items, dict) or not isinstance(record, dict):
        raise UserError(f"{path}: damaged, it names no arrays: {_REMEDY}")
    if not isinstance(record.get("model", {}), dict):
        raise UserError(f"{path}: damaged, it does not say of which model it is: {_REMEDY}")
    if str(record.get(STEP, place.name)) != place.name:
        raise UserError(f"{place}: is the checkpoint of step {shown(record[STEP])}: give it its name back")
    # 3. the scores, which must be there if they were stored
    metrics = None
    if _METRICS in items:
        path = place / _METRICS / _METRICS
        metrics = _read(path)
        if not all(map(_is_score, metrics.values())):
            raise UserError(f"{path}: damaged, a score is not a number: {_REMEDY}")
    return Stored(int(place.name), place, metrics, record)


def _is_score(value: Any) -> bool:
    """Return whether a value is a score, or NaN where there is none."""
    return isinstance(value, float | int) and not isinstance(value, bool) and not abs(value) > _HIGHEST


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, _REMEDY)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: missing: {_REMEDY}") from None


def read_folder(folder: Path, metric: str) -> tuple[list[Stored], list[Path]]:
    """Read the checkpoints of a run.

    A run that is killed while it removes an old checkpoint leaves a part of it: neither the last one nor the
    one that the last names as the best. Such remains do not count.

    Args:
      folder: of the checkpoints.
      metric: name of the score that decides which one is best.

    Returns:
      The checkpoints by step, and folders of remains.

    Raises:
      UserError: a file of a checkpoint is missing or damaged; names it.
    """
    places = places_in(folder)
    if not places:
        return [], []
    found, remains = [read_stored(places[-1])], []
    best = best_step(found[0].record, metric)
    for place in places[:-1]:
        try:
            found.append(read_stored(place))
        except UserError:
            if best is None or best == int(place.name):
                raise
            remains.append(place)
    return sorted(found), remains


def places_in(folder: Path) -> list[Path]:
    """Return the folders of complete checkpoints by step; other names are no checkpoints."""
    found = [place for place in folder.iterdir() if _STEP.fullmatch(place.name) and place.is_dir()]
    return sorted(found, key=lambda place: int(place.name))


def best_step(record: Mapping[str, Any], metric: str) -> int | None:
    """Return the step that a record names as the best by a score; None if it names none."""
    stored = record.get(BEST)
    if not isinstance(stored, dict) or stored.get("metric") != metric:
        return None
    step = stored.get("step")
    return step if type(step) is int else None
