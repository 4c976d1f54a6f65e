"""Weights & Biases and MLflow as further readers of a run's metrics: `config.train.trackers`.

Each tracker gets the run's configuration once, the scalars of `metrics.jsonl` at their steps under the names
of TensorBoard (`train/loss`, `evaluate/miou`), and at the end the scores of the best checkpoint
(`best/miou`). Where they go is decided by each library's environment variables, offline modes included.

A tracker never stops a training that runs: its first error is one warning, and it is not called again.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from spectralmoe_jax.config.given import flatten
from spectralmoe_jax.config.published import without_folders
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError, bad_value
from spectralmoe_jax.files import atomic_write
from spectralmoe_jax.stored_files import read_form

log = logging.getLogger(__name__)

TRACKERS_FILE = "trackers.json"
"""File in a run's folder with the id of its run in each tracker."""

KEY = "config.train.trackers"
_LONGEST_VALUE = 500  # characters of a setting in MLflow, which refuses long ones


class Tracker(Protocol):
    """One run in a tracker.

    Attributes:
      id: by which the tracker finds the run again.
    """

    id: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take finite numbers of a step, by their whole names."""

    def finish(self, best: Mapping[str, float], is_complete: bool) -> None:
        """Take the scores of the best checkpoint, and end the run or leave it to be resumed."""


class _WandbRun:
    """A run of Weights & Biases, in the project `WANDB_PROJECT`, or else `spectralmoe`."""

    def __init__(self, workdir: Path, config: RunConfig, id: str | None):
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "spectralmoe"),
            name=workdir.name,
            id=id,
            resume=None if id is None else "allow",
            config=None if id else _settings(config),
            dir=str(workdir),
            settings=wandb.Settings(console="off"),  # it would capture the live line
        )
        self.id = self._run.id
        # its own counter refuses the second of two records of one step once a later one is there
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def finish(self, best: Mapping[str, float], is_complete: bool) -> None:
        self._run.summary.update(best)
        self._run.finish(exit_code=0 if is_complete else 1)


class _MLflowRun:
    """A run of MLflow, in the experiment `MLFLOW_EXPERIMENT_NAME`, or else the configuration's name."""

    def __init__(self, workdir: Path, config: RunConfig, id: str | None):
        mlflow = importlib.import_module("mlflow")
        self._metric = mlflow.entities.Metric
        self._client = mlflow.MlflowClient()
        if id is not None:
            self.id = self._client.get_run(id).info.run_id
            self._client.update_run(id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", config.name)
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        self.id = self._client.create_run(experiment, run_name=workdir.name).info.run_id
        shown = {key: str(value)[:_LONGEST_VALUE] for key, value in _settings(config).items()}
        params = [mlflow.entities.Param(key, value) for key, value in shown.items()]
        for start in range(0, len(params), 100):  # the most that it takes at once
            self._client.log_batch(self.id, params=params[start : start + 100])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def finish(self, best: Mapping[str, float], is_complete: bool) -> None:
        if best:
            self.log(int(best["best/step"]), best)
        self._client.set_terminated(self.id, status="FINISHED" if is_complete else "KILLED")


class _Package(NamedTuple):
    """The package of a tracker.

    Attributes:
      extra: name of this project's extra.
      open: make the tracker's run: a new one, or that of an id.
      advice: what to do where it cannot be opened.
    """

    extra: str
    open: Callable[[Path, RunConfig, str | None], Tracker]
    advice: str


PACKAGES = {
    "wandb": _Package("wandb", _WandbRun, "run `wandb login`, or set WANDB_MODE=offline"),
    "mlflow": _Package("mlflow", _MLflowRun, "set MLFLOW_TRACKING_URI, as in sqlite:////folder/mlflow.db"),
}
"""Packages by the name in `config.train.trackers`, which is the module's name too."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of trackers are installed, without importing them.

    Raises:
      UserError: one is not; says how to install it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            must = f"{name} is not installed: pip install 'spectralmoe-jax[{PACKAGES[name].extra}]'"
            raise bad_value(KEY, tuple(names), must)


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as given, as JSON values by dotted key, without folders of this machine."""
    return without_folders(json.loads(json.dumps(flatten(config.given))))


def _stored_ids(path: Path) -> dict[str, str]:
    """Return the ids in a file by the names of trackers; none, with a warning, if it is damaged."""
    try:
        return read_form(path, {"*": str}, "new ids are used") if path.is_file() else {}
    except UserError:
        pass
    log.warning("%s: %s is damaged, so the ids of its runs are lost; new ones are started", KEY, path)
    return {}


class Trackers:
    """The trackers of a run, opened by `open`, ended at the end of the `with` block.

    Args:
      names: of the trackers; none for no tracking.
      workdir: folder of the run, which keeps their ids.
      config: the run's configuration.
    """

    def __init__(self, names: Sequence[str], workdir: Path, config: RunConfig | None = None):
        self._names, self._workdir, self._config = tuple(names), workdir, config
        self._open: dict[str, Tracker] = {}
        self._resumed: set[str] = set()
        self._best: dict[str, float] = {}
        self._is_complete = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in tuple(self._open):
            self._call(name, lambda tracker: tracker.finish(self._best, self._is_complete))

    def open(self) -> None:
        """Start a run in every tracker, or resume the one whose id the folder has.

        Raises:
          UserError: a new run cannot be started. A run that resumes only warns, and goes on without.
        """
        path = self._workdir / TRACKERS_FILE
        ids = _stored_ids(path) if self._names else {}
        for name in self._names:
            assert self._config is not None  # given with names
            id = ids.get(name)
            try:
                self._open[name] = PACKAGES[name].open(self._workdir, self._config, id)
            except Exception as problem:  # each library has its own
                reason = f"cannot be opened ({_one_line(problem)})"
                if id is None:
                    raise UserError(f"{KEY}: {name} {reason}; {PACKAGES[name].advice}") from None
                log.warning("%s: %s %s; training goes on without it", KEY, name, reason)
                continue
            self._resumed |= {name} if id else set()
            if id != self._open[name].id:  # stored at once: the next tracker may end the run
                ids[name] = self._open[name].id
                with atomic_write(path) as aside:
                    aside.write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")

    def log(self, step: int, kind: str, values: Mapping[str, float], was_sent: bool = False) -> None:
        """Send a record of `metrics.jsonl`; numbers that are not finite are left out.

        Args:
          step: of the record.
          kind: of the record.
          values: its numbers.
          was_sent: whether a former part of the run has sent it, to the trackers that it had.
        """
        named = {f"{kind}/{name}": value for name, value in values.items() if math.isfinite(value)}
        for name in tuple(self._open):
            if not (was_sent and name in self._resumed):
                self._call(name, lambda tracker: tracker.log(step, named))

    def conclude(self, step: int | None, scores: Mapping[str, float] | None, is_complete: bool) -> None:
        """Note what trackers get at the end: the best checkpoint's step and scores.

        Args:
          step: of the checkpoint; None if there is none.
          scores: its scores.
          is_complete: whether the run is complete.
        """
        if step is not None:
            best = {"step": float(step), **{name: float(value) for name, value in (scores or {}).items()}}
            self._best = {f"best/{name}": value for name, value in best.items() if math.isfinite(value)}
        self._is_complete = is_complete

    def _call(self, name: str, action: Callable[[Tracker], None]) -> None:
        """Call a tracker; after its first error it is left out."""
        try:
            action(self._open[name])
        except Exception as problem:  # each library has its own
            del self._open[name]
            log.warning("%s: %s takes no more (%s); training goes on", KEY, name, _one_line(problem))


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())[:200] or type(problem).__name__
