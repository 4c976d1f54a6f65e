"""The command line with a tiny segmenter: quickstart, train, kill, resume, evaluate and predict."""

import contextlib
import io
import json
import logging
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import rasterio

from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.config.stored import read_run_config
from spectralmoe_jax.evaluation.metrics import read_images
from spectralmoe_jax.inference.segmenter_weights import initial_segmenter
from spectralmoe_jax.parameters import named_leaves, split
from tests.tiny_run import SIZES

STEPS = 8
TINY = [*SIZES, f"train.steps={STEPS}", "train.evaluate_every=4", "train.checkpoint_every=2"]
OVERRIDES = [f"--config.{value}" for value in TINY]
ARGUMENTS = ["--config", "configs/quickstart.py", *OVERRIDES]


def parameters(workdir: Path) -> dict[str, bytes]:
    config = read_run_config(workdir)
    trainable, _ = split(initial_segmenter(config))
    with CheckpointStore(workdir, config) as store:
        assert store.last == STEPS
        restored = store.restore_params(store.last, trainable)
    return {name: np.asarray(leaf).tobytes() for name, leaf in named_leaves(restored).items()}


class Quickstart(NamedTuple):
    """The folder that the quickstart wrote, what it printed, and how often each function was compiled."""

    workdir: Path
    said: str
    compiled: Counter


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> Quickstart:
    workdir, log = tmp_path_factory.mktemp("quickstart"), io.StringIO()
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    with jax.log_compiles(), contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["quickstart", *OVERRIDES, "--workdir", str(workdir)]) == 0
    logging.getLogger().removeHandler(handler)
    return Quickstart(
        workdir, said.getvalue(), Counter(re.findall(r"Compiling jit\((\w+)\)", log.getvalue()))
    )


@pytest.fixture(scope="module")
def run(quickstart) -> Path:
    """The run that the quickstart trained."""
    return quickstart.workdir


def logged(workdir: Path) -> str:
    file = workdir / "metrics.jsonl"
    return file.read_text() if file.exists() else ""


@pytest.mark.slow  # by default on a smaller experiment, in training/test_resume.py
def test_killed_training_resumes_bit_for_bit(run, tmp_path):
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "spectralmoe_jax", "train", *ARGUMENTS, "--workdir", str(workdir)]
    # not the last two steps: there the process could end before the signal comes
    wanted = random.randrange(1, STEPS - 1)
    print(f"killed at step {wanted}")
    with (tmp_path / "errors").open("wb") as errors:  # a pipe that nobody reads may fill up
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
    deadline = time.monotonic() + 300
    while f'"step": {wanted},' not in logged(workdir) and process.poll() is None:
        assert time.monotonic() < deadline, "the step was not logged in five minutes"
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL, (tmp_path / "errors").read_text()
    assert main(command[3:]) == 0
    assert parameters(workdir) == parameters(run)


def test_metrics_are_logged(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [record for record in records if "loss" in record]
    assert [record["step"] for record in train] == list(range(1, STEPS + 1))
    parts = ("loss_cls", "loss_mask", "loss_dice", "loss_balance")
    for record in train:
        assert record["loss"] == pytest.approx(sum(record[part] for part in parts), rel=1e-5)
    assert [record["step"] for record in records if "miou" in record] == [4, 8]
    usage = [record["expert_usage"] for record in records if record["kind"] == "experts"]
    assert np.shape(usage) == (STEPS, 4, 1, 4)  # steps, layers, modalities, experts
    np.testing.assert_allclose(np.sum(usage, axis=-1), 1, atol=1e-3)
    assert list((run / "tensorboard").glob("*tfevents*"))


def test_evaluate(run, tmp_path, capsys):
    report_path, images_path = tmp_path / "scores.json", tmp_path / "images.npz"
    given = ["--workdir", str(run), "--output", str(report_path), "--images", str(images_path)]
    assert main(["evaluate", *given]) == 0
    report = json.loads(report_path.read_text())
    assert set(report["domains"]) == {"sensor_b"}
    assert np.sum(report["all"]["confusion"]) == 64 * 64
    said = capsys.readouterr().out
    assert "quickstart, target: 1 images" in said
    assert "mutual information of expert and class by layer, visual: " in said
    np.testing.assert_array_equal(
        sum(image.counts for image in read_images(images_path)), report["all"]["confusion"]
    )
    # 3 x 3 windows of 4 x 4 patches, their 24 pixels of overlap counted as often as they are seen
    assert [np.sum(entry["counts"]) for entry in report["routing"]] == [9 * 16] * 4
    assert [(entry["layer"], entry["modality"]) for entry in report["routing"]] == [
        (layer, "visual") for layer in (1, 2, 3, 4)
    ]


def test_predict(run, tmp_path):
    from data_pipelines.synthetic import SyntheticDataset

    scene = SyntheticDataset(0, 4, 1, 64).write(tmp_path, "target")[0]
    paths = {"--input": scene, "--output": tmp_path / "map.tif", "--preview": tmp_path / "map.png"}
    assert main(["predict", "--checkpoint", str(run), *(str(x) for pair in paths.items() for x in pair)]) == 0
    with rasterio.open(scene) as image, rasterio.open(tmp_path / "map.tif") as result:
        assert (image.crs, image.transform, image.shape) == (result.crs, result.transform, result.shape)
        assert result.tags()["CLASS_2"] == "water"
        assert result.read(1).max() < 6
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_a_scene_of_other_values(run, tmp_path, capsys):
    """Refused, unless the command line says otherwise or the run is of an earlier version."""
    from data_pipelines.synthetic import SyntheticDataset

    assert read_run_config(run).values_of_files.high > 100
    scene = SyntheticDataset(0, 4, 1, 64).write(tmp_path, "target")[0]
    with rasterio.open(scene) as dataset:
        profile, pixels, names = dataset.profile, dataset.read(), dataset.descriptions
    other, output = tmp_path / "other.tif", tmp_path / "map.tif"
    with rasterio.open(other, "w", **{**profile, "dtype": "float32"}) as dataset:
        dataset.write(pixels.astype(np.float32) / 10_000)
        dataset.descriptions = names
    command = ["predict", "--input", str(other), "--output", str(output), "--checkpoint"]
    assert main([*command, str(run)]) == 2
    assert f"error: {other}: float32 values from " in capsys.readouterr().err
    assert not output.exists()
    assert main([*command, str(run), "--config.data.check_values=warn"]) == 0
    output.unlink()
    earlier = shutil.copytree(run, tmp_path / "earlier")
    given = json.loads((earlier / "config.json").read_text())
    del given["stated_values"]
    (earlier / "config.json").write_text(json.dumps(given))
    assert main([*command, str(earlier)]) == 0


def test_checkpoint_of_another_model(run, capsys):
    assert main(["evaluate", "--workdir", str(run), "--config.model.visual.width=32"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "config.model.visual.width is 16 there, 32 here" in error
    assert main(["train", *ARGUMENTS, "--config.model.visual.width=32", "--workdir", str(run)]) == 2
    assert "config.model.visual.width" in capsys.readouterr().err
    assert read_run_config(run).model.visual.width == 16


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.window=none", "config.evaluate.window = None: must be a whole number"),
        (
            "evaluate.window=36",
            "config.evaluate.window = 36: must be a multiple of config.model.visual.patch_size",
        ),
        ("evaluate.overlap=32", "config.evaluate.overlap = 32"),
        ("evaluate.batch_size=0", "config.evaluate.batch_size = 0: must be at least 1"),
        (
            "data.crop=24",
            "config.data.crop = 24: must be at least 32: 4 patches are one pixel",
        ),
        ("evaluate.window=24", "config.evaluate.window = 24: must be at least 32"),
        ("data.crop=30", "config.data.crop = 30: must be a multiple of config.model.visual.patch_size = 8"),
        ("data.crop=0", "config.data.crop = 0: must be between 1 and 16384"),
        ("data.workers=-1", "config.data.workers = -1: must be between 0 and 1024"),
        ("data.threads=0", "config.data.threads = 0: must be between 1 and 1024"),
        ("data.workers=none", "config.data.workers = None: must be a whole number"),
        ("augment.flip=2.0", "config.augment.flip = 2.0: must be between 0 and 1"),
        ("loss.num_points=0", "config.loss.num_points"),
    ],
)
def test_a_bad_value_creates_no_folder(tmp_path, capsys, override, message):
    given = [*ARGUMENTS, f"--config.{override}", "--workdir", str(tmp_path / "run")]
    assert main(["train", *given]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_quickstart(quickstart):
    assert quickstart.compiled["train_step"] == 1
    assert quickstart.compiled["scores"] <= 1  # for all of training, tables, map and picture
    for name in ("panel.png", "map.png", "map.tif", "report.json", "sensor_b/images/scene_000.tif"):
        assert (quickstart.workdir / name).exists(), name
    report = json.loads((quickstart.workdir / "report.json").read_text())
    assert 0 <= report["target"] <= 1
    truth = np.sum(report["reports"]["target"]["all"]["confusion"], axis=1)
    assert report["constant"] == pytest.approx(truth.max() / truth.sum() / np.count_nonzero(truth))
    assert "best constant prediction" in quickstart.said
