"""`spectralmoe calibrate`: the fits against closed forms, and what the command leaves and `predict` uses."""

import json
import shutil

import numpy as np
import pyogrio
import pytest
import rasterio
from scipy.spatial.distance import mahalanobis
from scipy.special import softmax

import spectralmoe_jax
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.evaluation.calibrate import fit_gaussian, fit_temperature
from spectralmoe_jax.inference.calibration import (
    add_calibration,
    calibration_file,
    patch_distances,
    read_calibrations,
)
from tests.inference.test_model import folder, image_of  # noqa: F401 (a fixture)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_of_drawn_classes_is_found(temperature):
    """Classes drawn from the probabilities with a temperature."""
    rng = np.random.default_rng(0)
    scores = rng.gamma(1.0, size=(100_000, 4)).astype(np.float32)
    truth = np.array(softmax(np.log(scores.astype(np.float64)) / temperature, axis=-1).cumsum(axis=-1))
    truth = (rng.random((len(scores), 1)) > truth).sum(axis=-1).clip(max=3)
    assert fit_temperature(scores, truth) == pytest.approx(temperature, rel=0.03)


def test_distances_are_those_of_mahalanobis():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(50_000, 6)) @ rng.normal(size=(6, 6)) + 3).astype(np.float32)
    mean, whitening = fit_gaussian(np.array_split(features, 7))
    np.testing.assert_allclose(mean, features.mean(0), rtol=1e-4)
    covariance = np.cov(features.T.astype(np.float64), bias=True)
    shrunk = 0.99 * covariance + 0.01 * np.trace(covariance) / 6 * np.eye(6)
    points = rng.normal(size=(20, 6)).astype(np.float32) * 4
    wanted = [mahalanobis(p, features.mean(0), np.linalg.inv(shrunk)) / 6**0.5 for p in points]
    np.testing.assert_allclose(patch_distances(points, mean, whitening), wanted, rtol=1e-3)
    # a constant feature has no deviation to divide by
    mean, whitening = fit_gaussian([np.concatenate([features, np.ones((len(features), 1))], axis=1)])
    assert np.isfinite(whitening).all()


@pytest.fixture(scope="module")
def calibrated(folder, tmp_path_factory):  # noqa: F811
    """A copy of the run with its calibration, and the report."""
    run = tmp_path_factory.mktemp("calibrated") / "run"
    shutil.copytree(folder / "runs" / "quickstart", run)
    return run, spectralmoe_jax.calibrate(run)


def test_held_out_pixels_become_better_calibrated(calibrated, capsys):
    run, report = calibrated
    assert report["file"] == run / "calibration.npz"
    before, after = report["before"], report["after"]
    assert after["brier"] < before["brier"]
    assert main(["calibrate", "--workdir", str(run)]) == 0
    assert f"temperature {report['temperature']:.3f}" in capsys.readouterr().out
    # most held-out patches are near, as the distance was chosen so
    model = spectralmoe_jax.load(run)
    (kept,) = read_calibrations(run / "calibration.npz")
    assert kept.mean.shape == model.features(image_of(32, 32)).shape[-1:]


def test_all_products_of_a_map(calibrated, tmp_path):
    run, report = calibrated
    scene, output = run / "sensor_b" / "images" / "scene_000.tif", tmp_path / "map.tif"
    command = ["predict", "--checkpoint", str(run), "--input", str(scene), "--output", str(output)]
    more = ["--confidence", "--probabilities", "--uncertainty", "--vector", str(tmp_path / "map.gpkg")]
    assert main([*command, *more, "--min-pixels", "1", "--simplify", "0"]) == 0
    model = spectralmoe_jax.load(run)
    with rasterio.open(scene) as dataset:
        image = np.moveaxis(dataset.read(), 0, -1).astype(np.float32)
        assert dataset.dataset_mask().all()
    read = {}
    for name in ("confidence", "probabilities", "uncertainty"):
        with rasterio.open(tmp_path / f"map_{name}.tif") as dataset:
            read[name] = np.moveaxis(dataset.read(), 0, -1)
            assert all(dataset.descriptions)
            assert float(dataset.tags()["TEMPERATURE"]) == pytest.approx(report["temperature"], rel=1e-5)
    with rasterio.open(output) as dataset:
        classes = dataset.read(1)
    # 1. the same as from Python
    np.testing.assert_allclose(read["probabilities"], model.probabilities(image), atol=1e-5)
    np.testing.assert_allclose(read["uncertainty"], model.uncertainty(image), atol=1e-4)
    # 2. consistent among themselves
    np.testing.assert_allclose(read["probabilities"].sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(read["probabilities"].argmax(-1), classes)
    np.testing.assert_allclose(read["confidence"][..., 0], read["probabilities"].max(-1), atol=1e-6)
    # 3. polygons carry the mean confidence
    about, _, _, fields = pyogrio.raw.read(tmp_path / "map.gpkg")
    values = dict(zip(about["fields"], fields, strict=True))
    mean = (values["confidence"] * values["pixels"]).sum() / values["pixels"].sum()
    assert mean == pytest.approx(read["confidence"].mean(), rel=1e-4)


def test_what_is_unlike_the_source_is_far(calibrated):
    model = spectralmoe_jax.load(calibrated[0])
    splits = model.uncertainty(image_of(64, 64))  # noise, unlike any scene
    assert splits.shape == (64, 64, 2)
    assert ((splits[..., 0] >= 0) & (splits[..., 0] <= 1)).all()
    bright = model.uncertainty(np.full((64, 64, 4), 60_000, np.float32))
    assert bright[..., 1].mean() > 1


def test_evaluate_reports_both_temperatures(calibrated, tmp_path):
    run, found = calibrated
    command = ["evaluate", "--workdir", str(run), "--split", "holdout"]
    assert main([*command, "--output", str(tmp_path / "scores.json")]) == 0
    report = json.loads((tmp_path / "scores.json").read_text())
    assert [r["temperature"] for r in report["reliability"]] == [1, pytest.approx(found["temperature"])]
    # the run is small: all of its held-out pixels were used for the fit
    for scores, wanted in zip(report["reliability"], (found["before"], found["after"]), strict=True):
        assert scores["brier"] == pytest.approx(wanted["brier"], abs=1e-4)
    assert set(report["all"]) >= {"f1", "kappa", "boundary_iou"}


def test_many_scenes_have_products_too(calibrated, tmp_path, capsys):
    run, _ = calibrated
    maps, layers = tmp_path / "maps", tmp_path / "layers"
    command = ["predict", "--checkpoint", str(run), "--input", str(run / "sensor_b" / "images")]
    command += ["--output", str(maps), "--probabilities", "--vector", str(layers)]
    assert main(command) == 0
    names = sorted(path.name for path in maps.iterdir())
    assert "scene_000_probabilities.tif" in names
    assert len(list(layers.glob("*.gpkg"))) == len(names) // 2
    assert main(command) == 0
    assert f"{len(names) // 2} done before" in capsys.readouterr().out


def test_a_converted_file_keeps_the_calibration(calibrated, tmp_path):
    run, report = calibrated
    file = tmp_path / "model.safetensors"
    assert main(["convert", str(run), str(file)]) == 0
    model, image = spectralmoe_jax.load(file), image_of(32, 32)
    assert model.temperature == report["temperature"]
    np.testing.assert_array_equal(model.uncertainty(image), spectralmoe_jax.load(run).uncertainty(image))


def test_a_calibration_of_other_weights(calibrated, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(calibrated[0], run)
    path = run / "calibration.npz"
    (found,) = read_calibrations(path)
    path.unlink()
    add_calibration(found._replace(weights="0" * 32, temperature=3.0), path)
    model = spectralmoe_jax.load(run)
    assert model.temperature == 1
    assert "is of other weights, and not used" in caplog.text
    with pytest.raises(UserError, match="needs a calibration"):
        model.uncertainty(image_of(32, 32))
    # both are kept, as those of the streams of a run are
    add_calibration(found, path)
    assert spectralmoe_jax.load(run).temperature == found.temperature
    assert [each.weights for each in read_calibrations(path)] == [found.weights, "0" * 32]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="not a readable calibration"):
        read_calibrations(path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--uncertainty"], "spectralmoe calibrate"),
        (["--min-pixels", "0", "--vector", "x.gpkg"], "--min-pixels 0"),
        (["--simplify", "nan", "--vector", "x.gpkg"], "--simplify nan"),
        (["--vector", "x.shp"], "written as .gpkg, .geojson, .fgb, .parquet"),
    ],
)
def test_bad_options_are_one_line(folder, tmp_path, monkeypatch, capsys, options, said):  # noqa: F811
    run = folder / "runs" / "quickstart"
    monkeypatch.chdir(tmp_path)
    scene = run / "sensor_b" / "images" / "scene_000.tif"
    command = ["predict", "--checkpoint", str(run), "--input", str(scene), "--output", "map.tif"]
    assert main([*command, *options]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())


def test_calibration_needs_held_out_images(folder, tmp_path, capsys):  # noqa: F811
    run = str(folder / "runs" / "quickstart")
    assert main(["calibrate", "--workdir", run, "--config.data.holdout=0"]) == 2
    assert "needs held-out source images" in capsys.readouterr().err
    assert main(["calibrate", "--workdir", str(tmp_path / "none")]) == 2


def test_where_a_calibration_is_kept(tmp_path):
    assert calibration_file(tmp_path / "runs" / "a") == tmp_path / "runs" / "a" / "calibration.npz"
    (tmp_path / "model.safetensors").touch()
    assert calibration_file(tmp_path / "model.safetensors") == tmp_path / "model.calibration.npz"
    assert calibration_file("hf://owner/name") is None
