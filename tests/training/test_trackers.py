"""Weights & Biases and MLflow: what they hold equals metrics.jsonl; failures do not stop a training."""

import importlib.util
import json
import logging
import struct
import sys
from types import SimpleNamespace

import pytest

from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.config.given import flatten
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.training import trackers
from spectralmoe_jax.training.train import run_experiment
from tests.training.fake_experiment import make_config, make_experiment
from tests.training.test_average import contents
from tests.training.test_resume import records


def needs(name):
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"needs {name}, of the extra `{name}`")


class Interrupted(Exception):
    pass


def interrupt_at(wanted):
    def on_batch(step):
        if step == wanted:
            raise Interrupted

    return on_batch


def logged(workdir):
    """Numbers of metrics.jsonl: {name: [(step, value)]}."""
    found = {}
    for record in records(workdir):
        step, kind = record.pop("step"), record.pop("kind")
        for name, value in record.items():
            found.setdefault(f"{kind}/{name}", []).append((step, value))
    return found


def without_speed(found):
    """Speeds differ for the steps that an interrupted run repeats, and its trackers have the first ones."""
    return {name: values for name, values in found.items() if not name.endswith("images_per_second")}


def best_of(workdir, config):
    with CheckpointStore(workdir, config) as store:
        return store.best, store.metrics_of(store.best)


def read_wandb(file):
    """Records of an offline run, parsed by the library's messages.

    The library has no reader in Python: a file is a log of LevelDB, in blocks of 32 KiB, after 7 bytes.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, found, part = file.read_bytes(), [], b""
    assert data[:4] == b":W&B"
    at = 7
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            found.append(Record.FromString(part))
            part = b""
    return found


def values_of(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def numbers_of_wandb(workdir):
    """The history of all offline runs in a folder, the settings, the summary, and the ids of the runs."""
    history, settings, summary, ids = {}, {}, {}, []
    for file in sorted(workdir.glob("wandb/offline-run-*/*.wandb")):
        for record in read_wandb(file):
            if record.WhichOneof("record_type") == "run":
                ids.append(record.run.run_id)
                settings |= values_of(record.run.config.update)
            if record.WhichOneof("record_type") == "summary":
                summary |= values_of(record.summary.update)
            if record.WhichOneof("record_type") == "history":
                items = values_of(record.history.item)
                for name, value in items.items():
                    if not name.startswith("_") and name != "step":
                        history.setdefault(name, []).append((items["step"], value))
    return history, settings, summary, ids


@needs("wandb")
def test_wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    workdir = tmp_path / "run"
    config = make_config(steps=12, checkpoint_every=5, evaluate_every=4, trackers=("wandb",))
    with pytest.raises(Interrupted):
        run_experiment(make_experiment(interrupt_at(9)), config, workdir)
    assert max(record["step"] for record in records(workdir)) > 5
    run_experiment(make_experiment(), config, workdir)
    history, settings, summary, ids = numbers_of_wandb(workdir)
    assert without_speed(history) == without_speed(logged(workdir))
    assert set(ids) == {json.loads((workdir / "trackers.json").read_text())["wandb"]}
    assert {key: settings[key] for key in ("name", "train.steps", "train.trackers")} == {
        "name": config.name, "train.steps": 12, "train.trackers": ["wandb"],
    }  # fmt: skip
    assert settings.keys() >= flatten(config.given).keys()
    step, scores = best_of(workdir, config)
    assert {key: summary[key] for key in ("best/step", "best/miou")} == {
        "best/step": step, "best/miou": scores["miou"],
    }  # fmt: skip

    run_experiment(make_experiment(), config, workdir)  # nothing is left to do, and nothing is opened
    assert len([*workdir.glob("wandb/offline-run-*")]) == 2


def numbers_of_mlflow(workdir):
    """All metrics of the run that the folder names, read by the library, and the run."""
    from mlflow import MlflowClient

    client, id = MlflowClient(), json.loads((workdir / "trackers.json").read_text())["mlflow"]
    run = client.get_run(id)
    histories = {name: client.get_metric_history(id, name) for name in run.data.metrics}
    return {name: sorted((m.step, m.value) for m in points) for name, points in histories.items()}, run


@pytest.fixture(params=["file", pytest.param("sqlite", marks=pytest.mark.slow)])
def mlflow_store(request, tmp_path, monkeypatch):
    """A local store of MLflow; the database takes seconds to make."""
    place = {"file": f"file:{tmp_path}/mlruns", "sqlite": f"sqlite:///{tmp_path}/mlflow.db"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place[request.param])
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return tmp_path


@needs("mlflow")
def test_mlflow_offline(mlflow_store):
    workdir = mlflow_store / "run"
    config = make_config(steps=12, checkpoint_every=5, evaluate_every=4, trackers=("mlflow",))
    with pytest.raises(Interrupted):
        run_experiment(make_experiment(interrupt_at(9)), config, workdir)
    id = json.loads((workdir / "trackers.json").read_text())["mlflow"]
    run_experiment(make_experiment(), config, workdir)
    found, run = numbers_of_mlflow(workdir)
    step, scores = best_of(workdir, config)
    assert found.pop("best/step") == [(step, step)]
    assert found.pop("best/miou") == [(step, scores["miou"])]
    assert without_speed(found) == without_speed(logged(workdir))
    assert run.info.run_id == id
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["train.steps"] == "12"
    assert run.data.params.keys() == flatten(config.given).keys()


class Broken:
    """A tracker that takes some records and then fails."""

    def __init__(self, takes):
        self.id, self.taken, self.takes = "one", [], takes

    def log(self, step, values):
        if len(self.taken) == self.takes:
            raise ConnectionError("the server\nis gone")
        self.taken.append((step, values))

    def finish(self, best, is_complete):
        raise AssertionError("called again after an error")


def test_a_tracker_that_fails_does_not_stop_the_training(tmp_path, monkeypatch, caplog):
    broken = Broken(takes=3)
    package = trackers.PACKAGES["wandb"]._replace(open=lambda *_: broken)
    monkeypatch.setitem(trackers.PACKAGES, "wandb", package)
    config = make_config(steps=6, trackers=("wandb",))
    with caplog.at_level(logging.WARNING):
        assert run_experiment(make_experiment(), config, tmp_path)["step"] == 6
    (warning,) = [record.getMessage() for record in caplog.records if "trackers" in record.getMessage()]
    assert warning == "config.train.trackers: wandb takes no more (the server is gone); training goes on"
    assert [step for step, _ in broken.taken] == [1, 2, 3]
    assert [record["step"] for record in records(tmp_path) if record["kind"] == "train"] == [*range(1, 7)]


def test_a_tracker_that_cannot_be_opened(tmp_path, monkeypatch, caplog):
    """Fails a new run before its first step, and is left out of one that resumes."""

    def refuse(*_):
        raise PermissionError("no key")

    package = trackers.PACKAGES["wandb"]
    monkeypatch.setitem(trackers.PACKAGES, "wandb", package._replace(open=refuse))
    config = make_config(steps=4, trackers=("wandb",))
    with pytest.raises(UserError, match=r"wandb cannot be opened \(no key\); run `wandb login`, or set"):
        run_experiment(make_experiment(), config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    (tmp_path / "trackers.json").write_text('{"wandb": "one"}')
    with caplog.at_level(logging.WARNING):
        assert run_experiment(make_experiment(), config, tmp_path)["step"] == 4
    assert "wandb cannot be opened (no key); training goes on without it" in caplog.text


def test_a_refused_tracker_leaves_the_run_as_it_was(tmp_path, monkeypatch):
    """The run was killed after step 9, and has records of steps after its last checkpoint."""
    with pytest.raises(Interrupted):
        run_experiment(make_experiment(interrupt_at(9)), make_config(steps=12, checkpoint_every=5), tmp_path)
    before = contents(tmp_path)
    package = trackers.PACKAGES["wandb"]._replace(open=lambda *_: 1 / 0)
    monkeypatch.setitem(trackers.PACKAGES, "wandb", package)
    config = make_config(steps=12, checkpoint_every=5, trackers=("wandb",))
    with pytest.raises(UserError, match="wandb cannot be opened"):
        run_experiment(make_experiment(), config, tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("content", [b"", b'{"wandb": ', b"[1]", b'{"wandb": 1}', b"\xff\xfe"])
def test_ids_that_cannot_be_read(tmp_path, monkeypatch, caplog, content):
    """One warning; the tracker starts a new run, whose id takes their place."""
    asked = []
    package = trackers.PACKAGES["wandb"]._replace(open=lambda *given: asked.append(given[2]) or Broken(99))
    monkeypatch.setitem(trackers.PACKAGES, "wandb", package)
    (tmp_path / "trackers.json").write_bytes(content)
    trackers.Trackers(("wandb",), tmp_path, make_config()).open()
    assert asked == [None]
    (warning,) = [record.getMessage() for record in caplog.records if record.name == trackers.__name__]
    assert f"{tmp_path / 'trackers.json'} is damaged" in warning
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "one"}


def test_the_second_tracker_cannot_be_opened(tmp_path, monkeypatch):
    """The run in the first one is ended, and the next attempt resumes it."""
    asked, ended = [], []

    def open_first(workdir, config, id):
        asked.append(id)
        return SimpleNamespace(id="one", log=None, finish=lambda best, is_complete: ended.append(is_complete))

    def refuse(*_):
        raise PermissionError("no key")

    for name, action in (("wandb", open_first), ("mlflow", refuse)):
        monkeypatch.setitem(trackers.PACKAGES, name, trackers.PACKAGES[name]._replace(open=action))
    config = make_config(steps=4, trackers=("wandb", "mlflow"))
    for _ in range(2):
        with pytest.raises(UserError, match="mlflow cannot be opened"):
            run_experiment(make_experiment(), config, tmp_path)
    assert (asked, ended) == ([None, "one"], [False, False])


def test_trackers_get_no_folders():
    config = make_config().replaced({"data.root": "/home/alice/secret/dubai"})
    assert trackers._settings(config)["data.root"] == "dubai"


def test_numbers_that_are_not_finite_are_left_out(tmp_path):
    taken = []
    several = trackers.Trackers((), tmp_path)
    several._open["wandb"] = SimpleNamespace(log=lambda *record: taken.append(record))
    several.log(3, "evaluate", {"miou": float("nan"), "overall_accuracy": 0.5})
    assert taken == [(3, {"evaluate/overall_accuracy": 0.5})]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("mlflow", "mlflow is not installed: pip install 'spectralmoe-jax[mlflow]'"),
        ("tensorboard", "one of wandb, mlflow"),
    ],
)
def test_bad_values_are_one_line(tmp_path, monkeypatch, capsys, value, said):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    given = ["--config", "configs/quickstart.py", "--workdir", str(tmp_path / "run")]
    assert main(["train", *given, f"--config.train.trackers={value}"]) == 2
    error = capsys.readouterr().err
    assert "config.train.trackers" in error
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()
