"""Run folders of an earlier version resume, evaluate, predict, report and convert as that version did.

`old_run/README.md` beside this file tells how they were made.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio
from safetensors import safe_open

from spectralmoe_jax.cli.main import main

STORED = Path(__file__).with_name("old_run")
EXPECTED = json.loads((STORED / "expected.json").read_text())
TRAIN = ["--config", "configs/quickstart.py", *(f"--config.{value}" for value in EXPECTED["overrides"])]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A folder with the old runs; tests that write into a run take a copy."""
    folder = tmp_path_factory.mktemp("old")
    shutil.unpack_archive(STORED / "runs.tar.xz", folder)
    return folder


def summary(file: Path) -> dict[str, list]:
    """Shape, norm and a checksum that sees the order of every tensor of a safetensors file."""
    found = {}
    with safe_open(file, "np") as tensors:
        for name in tensors.keys():  # noqa: SIM118, as it is no dictionary
            values = tensors.get_tensor(name).astype(np.float64)
            order = np.cos(np.arange(values.size)).reshape(values.shape)
            found[name] = [list(values.shape), float(np.linalg.norm(values)), float(np.sum(values * order))]
    return found


def assert_same_tensors(found: dict[str, list], wanted: dict[str, list], tolerance: float) -> None:
    assert {name: shape for name, (shape, *_) in found.items()} == {
        name: shape for name, (shape, *_) in wanted.items()
    }
    for name, (_, norm, checksum) in wanted.items():
        assert found[name][1:] == pytest.approx([norm, checksum], rel=0, abs=tolerance * (norm + 1e-6)), name


def assert_same_scores(found: dict, wanted: dict) -> None:
    """Every score of then is there and equal; later versions add others."""
    assert found.keys() >= wanted.keys()
    for key, value in wanted.items():
        if isinstance(value, dict):
            assert_same_scores(found[key], value)
        elif isinstance(value, float):
            assert found[key] == pytest.approx(value, rel=1e-6), key
        else:
            assert found[key] == value, key


def test_evaluates(runs, tmp_path):
    output = tmp_path / "scores.json"
    assert main(["evaluate", "--workdir", str(runs / "run"), "--output", str(output)]) == 0
    assert_same_scores(json.loads(output.read_text()), EXPECTED["scores"])


def test_predicts(runs, tmp_path):
    output = tmp_path / "map.tif"
    given = ["--input", str(STORED / "scene.tif"), "--output", str(output)]
    assert main(["predict", "--checkpoint", str(runs / "run"), *given]) == 0
    with rasterio.open(output) as found, rasterio.open(STORED / "map.tif") as wanted:
        profiles = [dict(each.profile, blockxsize=0, blockysize=0) for each in (found, wanted)]
        assert profiles[0] == profiles[1]
        assert found.tags() == wanted.tags()
        np.testing.assert_array_equal(found.read(), wanted.read())


@pytest.mark.parametrize(
    ("run", "target"), [("run", "safetensors"), ("run", "released"), ("depthforge", "safetensors")]
)
def test_converts(runs, tmp_path, run, target):
    output = tmp_path / "weights.safetensors"
    assert main(["convert", str(runs / run), str(output), "--to", target]) == 0
    assert_same_tensors(summary(output), EXPECTED[target][run], 1e-6)


def test_reports(runs, tmp_path):
    """The page shows the scores, class by class."""
    run = shutil.copytree(runs / "run", tmp_path / "run")
    assert main(["report", str(run)]) == 0
    kept = json.loads((run / "evaluation.json").read_text())
    assert_same_scores({key: kept[key] for key in EXPECTED["scores"]}, EXPECTED["scores"])
    assert (kept["step"], kept["trained"], kept["trainable"]) == (40, 42, EXPECTED["trainable"])
    page = (run / "report.html").read_text()
    for name, share in EXPECTED["scores"]["all"]["iou"].items():
        assert name in page
        assert share is None or f"{100 * share:.1f}" in page


@pytest.mark.slow
def test_resumes(runs, tmp_path):
    """From step 42, where it was killed, to 44."""
    run = shutil.copytree(runs / "run", tmp_path / "run")
    assert main(["train", *TRAIN, "--workdir", str(run)]) == 0
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(2, 45, 2))
    last = [record for record in records if record["step"] == 44]
    assert [record["kind"] for record in last] == [record["kind"] for record in EXPECTED["last_records"]]
    for record, wanted in zip(last, EXPECTED["last_records"], strict=True):
        assert record.keys() == wanted.keys()
        for name in wanted.keys() - {"kind", "images_per_second"}:
            np.testing.assert_allclose(record[name], wanted[name], rtol=1e-4, err_msg=name)
    output = tmp_path / "weights.safetensors"
    assert main(["convert", str(run), str(output)]) == 0
    assert_same_tensors(summary(output), EXPECTED["resumed"], 1e-4)
