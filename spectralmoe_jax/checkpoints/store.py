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
import errno
import functools
import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from spectralmoe_jax.checkpoints.checksums import (
    CHECKSUMS_FILE,
    damage,
    read_checksums,
    write_checksums,
)
from spectralmoe_jax.checkpoints.folder import BEST, Stored, best_step, places_in, read_folder
from spectralmoe_jax.checkpoints.held_out import NOTHING_YET, HeldOut
from spectralmoe_jax.config.load import CHECKPOINTS, CHOICES, flatten
from spectralmoe_jax.config.presets import FAMILIES, kind_of
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError, bad_value
from spectralmoe_jax.files import read_json
from spectralmoe_jax.parallel.distributed import gather_values
from spectralmoe_jax.parameters import from_named_leaves, named_leaves

log = logging.getLogger(__name__)

_OCDBT = b"\x0c\xdb\x3a\x2a"  # the first bytes of the index of arrays

TRAINABLE, OPTIMIZER, AVERAGE = "trainable", "optimizer", "average"
_HELD_OUT, _DECAY = "held_out", "average_decay"
_REMEDY = "copy the checkpoint anew from where it is whole, or remove its folder to go on with the others"

_MODEL_SECTIONS = ("bands", "classes", "model")
# Keys that decide how the model is computed, not what it computes: they may differ between runs.
_COMPUTATION_KEYS = ("model.dtype", "model.remat", "model.weights", "model.visual.weights",
                     "model.depth.weights", "model.adapter.strategy")  # fmt: skip
_DEFAULT_KINDS = {f"{section}.kind": next(iter(kinds)) for section, kinds in CHOICES.items()}
# Keys of the sensor: they may differ as well if the encoder takes the bands of any sensor.
_SENSOR_KEYS = (
    "bands",
    "model.pixel_mean",
    "model.pixel_std",
    "model.pixel_statistics",
    "model.visual.wavelengths",
    "model.visual.stored_as",
    "model.visual.resolution",
    "model.visual.month",
    "model.visual.location",
    "model.visual.days",
    "model.visual.bandwidths",
    "model.depth.bands",
)


def model_part(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that runs must share to share checkpoints: bands, classes and model.

    Precision (`model.dtype`), rematerialisation (`model.remat`) and the weight files are left out: they do
    not change what the parameters mean, and files move. The bands are also left out if the visual encoder
    takes those of any sensor (dofa, copernicus_fm, galileo).

    Args:
      given: the configuration as given; default values are not compared.

    Returns:
      JSON values by dotted key.
    """
    sections = {key: given[key] for key in _MODEL_SECTIONS if key in given}
    free = _COMPUTATION_KEYS + (_SENSOR_KEYS if _takes_any_bands(given) else ())
    flat = {key: value for key, value in flatten(sections).items() if key not in free}
    for key, default in _DEFAULT_KINDS.items():
        if flat.get(key) == default:
            del flat[key]  # the same model as without the key
    return json.loads(json.dumps(flat))


def _takes_any_bands(given: Mapping[str, Any]) -> bool:
    """Return True if the visual encoder takes the bands of any sensor."""
    model = given.get("model")
    visual = model.get("visual") if isinstance(model, Mapping) else None
    kind = kind_of(visual if isinstance(visual, Mapping) else {}) or ""
    return kind == "galileo" or (kind in FAMILIES and FAMILIES[kind].wavelengths)


def fingerprint(given: Mapping[str, Any]) -> str:
    """Return a hexadecimal digest of `model_part`, equal for configurations that may share checkpoints."""
    return hashlib.sha256(json.dumps(model_part(given), sort_keys=True).encode()).hexdigest()[:16]


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
            reason = _disk_full(error)
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
            logging.getLogger("absl").addFilter(_is_not_of_a_save)
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
        with _damage_in_one_line(place):
            return dict(ocp.checkpointables_metadata(place).metadata)

    def _load(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        # 1. the checkpoint is complete, of this model, and whole
        stored = self._stored_of(step)
        self._require_same_model(stored.record, stored.place)
        is_checked = _require_whole(stored.place, wanted)
        if not is_checked:
            _require_readable(stored.place, wanted)
        # 2. it holds exactly the wanted leaves
        named = {part: named_leaves(tree) for part, tree in wanted.items()}
        there = self._metadata(step)
        for part, leaves in named.items():
            if not isinstance(there.get(part), Mapping):
                raise UserError(f"{stored.place / part}: missing or damaged: {_REMEDY}")
            _require_same_leaves(leaves, there[part], f"{stored.place}/{part}")
        # 3. restore each leaf onto the devices of the wanted one
        shapes = {part: jax.tree.map(_shape, leaves) for part, leaves in named.items()}
        with contextlib.nullcontext() if is_checked else _damage_in_one_line(stored.place):
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


def _require_whole(place: Path, parts: Iterable[str]) -> bool:
    """Check that the files of some parts of a checkpoint are those that were written.

    The processes of a run share the files among them.

    Returns:
      Whether there are checksums to compare with.

    Raises:
      UserError: in every process; names the damaged file.
    """
    checksums = read_checksums(place)
    if checksums is None:
        return False
    names = [name for name in sorted(checksums) if name.partition("/")[0] in parts]
    found = damage(place, names[jax.process_index() :: jax.process_count()], checksums)
    everyone = [{"damage": found}] if jax.process_count() == 1 else gather_values({"damage": found})
    for each in everyone:
        if each["damage"] is not None:
            raise UserError(each["damage"])
    return True


def _require_readable(place: Path, parts: Iterable[str]) -> None:
    """Check the files that a part of a checkpoint cannot be read without, where there are no checksums.

    Raises:
      UserError: names the first that is missing or damaged.
    """
    for part in parts:
        for path in (place / part / "_METADATA", *sorted((place / part).glob("array_metadatas/*"))):
            try:
                read_json(path, _REMEDY)
            except (FileNotFoundError, NotADirectoryError):
                raise UserError(f"{path}: missing: {_REMEDY}") from None
        path = place / part / "manifest.ocdbt"
        if not path.is_file() or path.read_bytes()[:4] != _OCDBT:
            raise UserError(f"{path}: missing or damaged: {_REMEDY}")


@contextlib.contextmanager
def _damage_in_one_line(place: Path) -> Iterator[None]:
    """Turn the error of an unreadable checkpoint, which may be any, into a UserError of one line."""
    logger = logging.getLogger("absl")
    logger.addFilter(_is_not_of_orbax)
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"checkpoint {place}: damaged ({type(error).__name__}: {reason}): {_REMEDY}"
        ) from None
    finally:
        logger.removeFilter(_is_not_of_orbax)


@functools.cache
def _warn(message: str) -> None:
    """Log a warning, once in a process."""
    log.warning("%s", message)


def _disk_full(error: BaseException) -> str | None:
    """Return the system's message of a full disk or quota; None for any other error."""
    code = error.errno if isinstance(error, OSError) else None
    written = re.search(r"os_error_code='(\d+)'", str(error))  # as the storage library reports it
    code = int(written[1]) if code is None and written else code
    return os.strerror(code) if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else None


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """Filter out what Orbax says of files that it cannot read, beside our one line."""
    return "orbax" not in record.pathname


def _is_not_of_a_save(record: logging.LogRecord) -> bool:
    """Filter Orbax's tracebacks out of the log: every thread logs its own before the error is raised."""
    return "orbax" not in record.pathname or record.levelno < logging.ERROR


def describe_differences(there: Mapping[str, Any], here: Mapping[str, Any], at_most: int = 6) -> str:
    """List the keys that differ between two flat configurations, in one line; empty if none does."""
    keys = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
    listed = [f"config.{key} is {there.get(key)!r} there, {here.get(key)!r} here" for key in keys[:at_most]]
    return "; ".join(listed + [f"and {len(keys) - at_most} more"] * (len(keys) > at_most))


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _require_same_leaves(wanted: Mapping[str, Any], stored: Mapping[str, Any], place: str) -> None:
    missing = sorted(wanted.keys() - stored.keys())
    surplus = sorted(stored.keys() - wanted.keys())
    other = [
        name for name in wanted.keys() & stored.keys() if tuple(stored[name].shape) != wanted[name].shape
    ]
    problems = [
        f"{what} {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
        for what, names in (
            ("misses", missing),
            ("has unknown", surplus),
            ("has another shape of", sorted(other)),
        )
        if names
    ]
    if problems:
        raise UserError(f"checkpoint {place} does not fit the model: it {'; '.join(problems)}")
