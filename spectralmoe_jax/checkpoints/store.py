"""Checkpoints of a run: trainable parameters, their average, optimizer state and step, stored with Orbax.

Frozen weights are never stored. A run's folder holds

    config.json            the configuration of the run
    checkpoints/<step>/    complete checkpoints: the last one and the best one, each with checksums.json

A checkpoint also stores the part of the configuration that determines which parameters there are and what
they mean, so that it cannot be restored into another model unnoticed. Orbax writes a checkpoint to a
temporary folder and renames it when it is complete: a run killed at any time leaves the last complete one
usable. Its files are then given checksums, which are compared before anything is read: damage is an error
that names the file.
"""

import concurrent.futures
import contextlib
import functools
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from spectralmoe_jax.checkpoints.checksums import CHECKSUMS_FILE, write_checksums
from spectralmoe_jax.checkpoints.folder import BEST, STEP, Stored, best_step, places_in, read_folder
from spectralmoe_jax.checkpoints.held_out import NOTHING_YET, HeldOut
from spectralmoe_jax.checkpoints.same_model import describe_differences, fingerprint, model_part
from spectralmoe_jax.checkpoints.whole import (
    REMEDY,
    damage_in_one_line,
    disk_full,
    is_not_of_a_save,
    require_ordinary_files,
    require_readable,
    require_same_leaves,
    require_whole,
)
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.config.stored import CHECKPOINTS
from spectralmoe_jax.errors import UserError, bad_value
from spectralmoe_jax.parameters import from_named_leaves, named_leaves

log = logging.getLogger(__name__)

TRAINABLE, OPTIMIZER, AVERAGE = "trainable", "optimizer", "average"
_HELD_OUT, _DECAY = "held_out", "average_decay"


class CheckpointStore:
    """The checkpoints of one run: saves in the background, keeps the best and the last.

    Args:
      workdir: the run's folder, created by the first save.
      config: the configuration of the run; its model part is stored and compared.
      metric: name of the metric that decides which checkpoint is best, higher is better; by default
        `config.train.selection`.
    """

    def __init__(self, workdir: str | os.PathLike[str], config: RunConfig, metric: str | None = None):
        self._given = config.given
        self._metric = metric or config.train.selection
        self._decay = config.train.ema
        self._folder = (Path(workdir) / CHECKPOINTS).absolute()
        self._checkpointer: ocp.training.Checkpointer | None = None
        self._saving: concurrent.futures.Future[None] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._step = 0  # step of the save under way
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def last(self) -> int | None:
        """The step of the last complete checkpoint, or None.

        Raises:
          UserError: a file of a checkpoint is missing or damaged; names it.
        """
        found = self._stored()
        return found[-1].step if found else None

    @property
    def best(self) -> int | None:
        """The step of the checkpoint with the highest metric (the latest one if equal), or None.

        If the last checkpoint names another one as the best, and that is gone, a warning says so.

        Raises:
          UserError: as in `last`.
        """
        found = self._stored()
        scores = [(self._score(each.metrics), each.step) for each in found if each.metrics is not None]
        best = max(scores)[1] if scores else None
        wanted = best_step(found[-1].record, self._metric) if found else None
        if wanted is not None and all(each.step != wanted for each in found):
            used = "no other has a score" if best is None else f"{self.path(best)} takes its place"
            _warn(f"{self.path(wanted)}: the best checkpoint is missing; {used}")
        return best

    def path(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self._folder / str(step)

    def metrics_of(self, step: int) -> dict[str, Any] | None:
        """Return the metrics stored with a step's checkpoint, or None."""
        return next((each.metrics for each in self._stored() if each.step == step), None)

    def held_out(self, step: int) -> HeldOut:
        """Return the held-out record of a step's checkpoint.

        If it has none, counting starts at the best checkpoint's score.
        """
        found = HeldOut.read(self._stored_of(step).record.get(_HELD_OUT), self._metric)
        if found is not None:
            return found
        score = -math.inf if self.best is None else self._score(self.metrics_of(self.best) or {})
        return HeldOut(score if math.isfinite(score) else None)

    def decay_of(self, step: int) -> float | None:
        """Return the decay of the average in a step's checkpoint; None if it holds no average.

        A checkpoint that does not state it, as those of earlier versions, has that of the configuration.
        """
        if AVERAGE not in self._metadata(step):
            return None
        return self._stored_of(step).record.get(_DECAY, self._decay)

    def save(
        self,
        step: int,
        params: Any,
        opt_state: Any,
        metrics: Mapping[str, float] | None = None,
        held_out: HeldOut = NOTHING_YET,
        average: Any = None,
    ) -> None:
        """Start a save in the background; the arrays may change once this returns.

        A step that is saved already is left alone.

        Args:
          step: number of steps done.
          params: pytree of the trainable parameters.
          opt_state: pytree of the optimizer's state.
          metrics: scores of an evaluation at this step; only a checkpoint with scores can be the best one.
          held_out: the record after this step.
          average: average of the parameters over the steps, a like pytree; None where there is none.

        Raises:
          OSError: the folder cannot be written.
          UserError: the disk is full, now or during the previous save.
        """
        checkpointer = self._open()
        if any(checkpoint.step == step for checkpoint in checkpointer.checkpoints):
            return
        self.wait()
        best = self._best_after(step, metrics)
        parts = {TRAINABLE: params, OPTIMIZER: opt_state}
        parts |= {} if average is None else {AVERAGE: average}
        with self._disk_full_in_one_line(step):
            response = checkpointer.save_checkpointables_async(
                step,
                {part: named_leaves(tree) for part, tree in parts.items()},
                metrics=None if metrics is None else {name: float(value) for name, value in metrics.items()},
                custom_metadata={
                    STEP: step,
                    "fingerprint": fingerprint(self._given),
                    "model": model_part(self._given),
                    _HELD_OUT: held_out.stored(self._metric),
                    _DECAY: None if average is None else self._decay,
                    BEST: None if best is None else {"metric": self._metric, "step": best},
                },
                force=True,
            )
            self._saving = self._thread.submit(self._complete, response, step)
            self._step = step

    def restore(self, step: int, params: Any, opt_state: Any) -> tuple[Any, Any]:
        """Read parameters and optimizer state.

        Args:
          step: step of a complete checkpoint.
          params: wanted parameters, a pytree of arrays or ShapeDtypeStructs.
          opt_state: the same for the optimizer's state.

        Returns:
          The two pytrees, every leaf filled from the checkpoint.

        Raises:
          UserError: the checkpoint belongs to another configuration (names the keys) or holds other leaves
            (names them).
        """
        found = self._load(step, {TRAINABLE: params, OPTIMIZER: opt_state})
        return found[TRAINABLE], found[OPTIMIZER]

    def restore_average(self, step: int, average: Any) -> Any:
        """Read only the average of the parameters; otherwise as `restore`.

        Raises:
          UserError: the checkpoint has none; or as in `restore`.
        """
        if AVERAGE not in self._metadata(step):
            must = f"needs a run that has it from its start; {self.path(step)} holds no average of weights"
            raise bad_value("config.train.ema", self._given["train"].get("ema"), must)
        return self._load(step, {AVERAGE: average})[AVERAGE]

    def restore_params(self, step: int, params: Any) -> Any:
        """Read only the weights that the run is used with: their average, if the checkpoint has one.

        Otherwise as `restore`.
        """
        part = AVERAGE if AVERAGE in self._metadata(step) else TRAINABLE
        return self._load(step, {part: params})[part]

    def wait(self) -> None:
        """Wait until no save is under way.

        Raises:
          UserError: the disk is full; the incomplete checkpoint is removed, earlier ones are intact.
          Exception: any other error of the save.
        """
        if self._saving is not None:
            saving, self._saving = self._saving, None
            with self._disk_full_in_one_line(self._step):
                saving.result()

    def close(self) -> None:
        """Complete the save under way.

        Raises:
          UserError: as in `wait`.
          Exception: as in `wait`.
        """
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            checkpointer, self._checkpointer = self._checkpointer, None
            if checkpointer is not None:
                with contextlib.suppress(Exception) if self._failed else contextlib.nullcontext():
                    checkpointer.close()  # would raise the error of `wait` a second time

    @contextlib.contextmanager
    def _disk_full_in_one_line(self, step: int) -> Iterator[None]:
        """Turn the error of a full disk, however it is reported, into a UserError of one line."""
        try:
            yield
        except Exception as error:
            self._failed = True
            reason = disk_full(error)
            if reason is None:
                raise
            if jax.process_index() == 0:
                shutil.rmtree(f"{self.path(step)}.orbax-checkpoint-tmp", ignore_errors=True)
            others = places_in(self._folder) if self._folder.is_dir() else []
            kept = f"the last good one is {others[-1]}" if others else "there is none before it"
            raise UserError(
                f"checkpoint {self.path(step)} cannot be written: {reason}; {kept}; make room and give the "
                "same command to go on"
            ) from None

    def _open(self) -> ocp.training.Checkpointer:
        """Return what writes checkpoints; remains of killed runs are removed when it is first used."""
        if self._checkpointer is None:
            logging.getLogger("absl").addFilter(is_not_of_a_save)
            self._remove_remains()
            policies = ocp.training.preservation_policies
            best = policies.BestN(get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False)
            self._checkpointer = ocp.training.Checkpointer(
                self._folder,
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(1), best]),
                cleanup_tmp_directories=True,
            )
        return self._checkpointer

    def _remove_remains(self) -> None:
        """Remove what is left of old checkpoints whose removal was interrupted."""
        if jax.process_index() == 0 and self._folder.is_dir():
            for place in read_folder(self._folder, self._metric)[1]:
                shutil.rmtree(place, ignore_errors=True)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("remains of checkpoints removed")

    def _complete(self, response: ocp.AsyncResponse[bool], step: int) -> None:
        """Wait until a checkpoint is complete, and write its checksums."""
        response.result()
        if jax.process_index() == 0:
            write_checksums(self.path(step))

    def _best_after(self, step: int, metrics: Mapping[str, float] | None) -> int | None:
        """Return the step of the best checkpoint once that of `step` is saved."""
        best = self.best
        if metrics is None:
            return best
        others = self._score(self.metrics_of(best) or {}) if best is not None else -math.inf
        return step if self._score(metrics) >= others else best

    def _stored(self) -> list[Stored]:
        """Return the complete checkpoints by step."""
        return read_folder(self._folder, self._metric)[0] if self._folder.is_dir() else []

    def _stored_of(self, step: int) -> Stored:
        found = next((each for each in self._stored() if each.step == step), None)
        if found is None:
            raise UserError(f"{self._folder} has no complete checkpoint of step {step}")
        return found

    def _score(self, metrics: Mapping[str, float]) -> float:
        score = float(metrics.get(self._metric, -math.inf))
        return -math.inf if math.isnan(score) else score

    def _metadata(self, step: int) -> dict[str, Any]:
        """Return shapes and types of the arrays of a complete checkpoint, by part and name."""
        place = self._stored_of(step).place
        require_ordinary_files(place)
        with damage_in_one_line(place):
            return dict(ocp.checkpointables_metadata(place).metadata)

    def _load(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        # 1. the checkpoint is complete, of this model, and whole
        stored = self._stored_of(step)
        self._require_same_model(stored.record, stored.place)
        is_checked = require_whole(stored.place, wanted)
        if not is_checked:
            require_readable(stored.place, wanted)
        # 2. it holds exactly the wanted leaves
        named = {part: named_leaves(tree) for part, tree in wanted.items()}
        there = self._metadata(step)
        for part, leaves in named.items():
            if not isinstance(there.get(part), Mapping):
                raise UserError(f"{stored.place / part}: missing or damaged: {REMEDY}")
            require_same_leaves(leaves, there[part], f"{stored.place}/{part}")
        # 3. restore each leaf onto the devices of the wanted one
        shapes = {part: jax.tree.map(_shape, leaves) for part, leaves in named.items()}
        with contextlib.nullcontext() if is_checked else damage_in_one_line(stored.place):
            found = ocp.load_checkpointables(stored.place, shapes)
        if not is_checked:
            _warn(
                f"{stored.place / CHECKSUMS_FILE} is missing, as in runs of earlier versions: damage to the "
                "checkpoint could go unnoticed"
            )
        return {part: from_named_leaves(found[part], tree) for part, tree in wanted.items()}

    def _require_same_model(self, stored: Mapping[str, Any], place: Path) -> None:
        if stored.get("fingerprint") == fingerprint(self._given):
            return
        listed = describe_differences(stored.get("model", {}), model_part(self._given))
        raise UserError(
            f"checkpoint {place} is of another configuration: {listed}; "
            "use the matching --config or another folder"
        )


@functools.cache
def _warn(message: str) -> None:
    """Log a warning, once in a process."""
    log.warning("%s", message)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
