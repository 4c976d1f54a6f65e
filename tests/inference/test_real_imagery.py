"""Everything after training on real imagery, from the command line and from Python.

Landsat 5 to 7 with reflectance in six bands, and Dubai's aerial tiles, whose model also maps a Landsat scene
in natural colours. Trainings have two steps: what is compared holds whatever a model has learned.
"""

import json
import re

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from rio_cogeo import cog_validate

import spectralmoe_jax
from spectralmoe_jax.cli.main import main

SMALL = {
    "model.visual.width": 16, "model.visual.heads": 2, "model.adapter.query_dim": 16, "model.adapter.rank": 2,
    "model.head.width": 16, "model.head.num_heads": 2, "model.head.encoder_ffn": 16,
    "model.head.decoder_layers": 1, "model.head.decoder_ffn": 16, "model.head.group_norm_groups": 4,
    "loss.num_points": 32, "train.batch_size": 2, "train.steps": 2, "train.warmup_steps": 0,
    "train.log_every": 1, "train.evaluate_every": 2, "train.checkpoint_every": 2, "evaluate.batch_size": 4,
    "train.ema": 0.5, "train.accumulate": 2,
}  # fmt: skip
PLACES = {
    "clouds": ("cloud_shadow", "cloudshadow", "cloudshadow/landsat7_image.tif"),
    "dubai": ("dubai", "dubai", "scene/landsat_rgb_utm18n.tif"),
}


@pytest.fixture(scope="module", params=PLACES)
def trained(request, shared_data, tmp_path_factory):
    """A run of two steps with its calibration, and a scene that it has not seen."""
    config, folder, scene = PLACES[request.param]
    run = tmp_path_factory.mktemp(request.param) / "run"
    given = [f"--config.{key}={value}" for key, value in SMALL.items()]
    root = f"--config.data.root={shared_data / folder}"
    assert main(["train", "--config", f"configs/{config}.py", root, *given, "--workdir", str(run)]) == 0
    assert main(["calibrate", "--workdir", str(run)]) == 0
    return run, shared_data / scene


def read(path):
    with rasterio.open(path) as dataset:
        return np.moveaxis(dataset.read(), 0, -1)


@pytest.mark.slow
def test_from_the_command_line(trained, tmp_path, capsys):
    run, scene = trained
    output, layer = tmp_path / "map.tif", tmp_path / "map.gpkg"
    command = ["predict", "--checkpoint", str(run), "--input", str(scene), "--output", str(output)]
    more = ["--confidence", "--probabilities", "--uncertainty", "--tta", "flips"]
    assert main([*command, *more, "--vector", str(layer), "--preview", str(tmp_path / "map.png")]) == 0
    # 1. rasters lie on the scene's pixels
    with rasterio.open(scene) as dataset:
        known = dataset.crs, dataset.transform, dataset.shape
        has_data = dataset.dataset_mask() > 0
        area = abs(dataset.transform.a * dataset.transform.e)
    for name in ("", "_confidence", "_probabilities", "_uncertainty"):
        path = tmp_path / f"map{name}.tif"
        with rasterio.open(path) as dataset:
            assert (dataset.crs, dataset.transform, dataset.shape) == known
            np.testing.assert_array_equal(dataset.dataset_mask() > 0, has_data)
        assert cog_validate(path, quiet=True)[:2] == (True, [])
    classes, probabilities = read(output)[..., 0], read(tmp_path / "map_probabilities.tif")
    np.testing.assert_allclose(probabilities[has_data].sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(probabilities[has_data].argmax(-1), classes[has_data])
    far = read(tmp_path / "map_uncertainty.tif")[has_data]
    assert ((far[:, 0] >= 0) & (far[:, 0] <= 1 + 1e-5) & (far[:, 1] > 0)).all()
    # 2. polygons cover what has data
    about, _, geometry, fields = pyogrio.raw.read(layer)
    values = dict(zip(about["fields"], fields, strict=True))
    assert values["pixels"].sum() == has_data.sum()
    covered = shapely.area(shapely.from_wkb(geometry)).sum()
    assert covered == pytest.approx(has_data.sum() * area, rel=0.02)
    # 3. scores, a page, a file, a program
    assert main(["evaluate", "--workdir", str(run), "--output", str(tmp_path / "scores.json")]) == 0
    report = json.loads((tmp_path / "scores.json").read_text())
    assert len(report["reliability"]) == 2
    page = tmp_path / "view.html"
    assert main(["view", "--checkpoint", str(run), "--input", str(scene), "--output", str(page)]) == 0
    assert len(re.findall("<canvas", page.read_text())) == 1
    file, program = tmp_path / "model.safetensors", tmp_path / "program"
    assert main(["convert", str(run), str(file)]) == 0
    assert main(["export", "--checkpoint", str(file), "--output", str(program)]) == 0
    pushed = tmp_path / "pushed"
    told = ["hf://lab/model", "--licence", "cc-by-4.0", "--dry-run", str(pushed)]
    assert main(["push", str(run), *told]) == 0
    assert (pushed / "model.safetensors").is_file()


@pytest.mark.slow
def test_from_python(trained, tmp_path):
    """The converted file gives what the run gives; arrays give what maps give."""
    run, scene = trained
    spectralmoe_jax.convert(str(run), str(tmp_path / "model.safetensors"))
    model, other = spectralmoe_jax.load(run), spectralmoe_jax.load(tmp_path / "model.safetensors")
    done = model.map(scene, tmp_path / "map.tif", probabilities=True)
    assert sum(done["shares"].values()) == pytest.approx(1)
    window = model.config.evaluate.window
    step = window - model.config.evaluate.overlap
    side = window + step  # two windows, which start as in the whole scene
    with rasterio.open(scene) as dataset:
        image = np.moveaxis(dataset.read(list(range(1, 1 + len(model.bands)))), 0, -1)[:side, :side]
        names = [name and name.lower() for name in dataset.descriptions[: len(model.bands)]]
    bands = names if all(names) else None
    found = model.probabilities(image, bands)
    np.testing.assert_array_equal(found, other.probabilities(image, bands))
    # as far as the next window of the whole scene
    whole = read(tmp_path / "map_probabilities.tif")[: 2 * step, : 2 * step]
    inside = np.isfinite(whole).all(-1)
    np.testing.assert_allclose(found[: 2 * step, : 2 * step][inside], whole[inside], atol=1e-4)
    patch = model.segmenter.config.visual.patch_size
    assert model.features(image, bands).shape[:2] == (-(-side // patch),) * 2
    assert model.uncertainty(image, bands).shape == (side, side, 2)
    np.testing.assert_array_equal(model.predict(image, bands), found.argmax(-1))


@pytest.mark.slow
def test_over_http(trained, tmp_path):
    """The server's answer is the map, byte for byte."""
    pytest.importorskip("fastapi", reason="needs the extra `serve`")
    from starlette.testclient import TestClient

    from spectralmoe_jax.serving.app import make_app

    run, scene = trained
    model = spectralmoe_jax.load(run)
    model.map(scene, tmp_path / "map.tif")
    with TestClient(make_app(model)) as client:
        answer = client.post("/predict", content=scene.read_bytes(), headers={"Content-Type": "image/tiff"})
        assert answer.status_code == 200, answer.text
        assert answer.content == (tmp_path / "map.tif").read_bytes()
        about = client.get("/info").json()
    assert [entry["name"] for entry in about["classes"]] == list(model.classes)


@pytest.mark.slow
def test_a_stac_item_beside_the_file(trained, tmp_path):
    """The scene as the asset of an item, and as itself, in one call: the same map."""
    run, scene = trained
    bands = [{"name": name} for name in spectralmoe_jax.load(run).bands]
    item = {
        "type": "Feature", "stac_version": "1.1.0", "id": "as_item", "geometry": None, "links": [],
        "properties": {"datetime": "2024-05-01T00:00:00Z"}, "stac_extensions": [],
        "assets": {"data": {"href": str(scene), "bands": bands}},
    }  # fmt: skip
    (tmp_path / "item.json").write_text(json.dumps(item))
    given = ["predict", "--checkpoint", str(run), "--output", str(tmp_path / "maps")]
    assert main([*given, "--input", str(tmp_path / "item.json"), str(scene)]) == 0
    found, wanted = (read(tmp_path / "maps" / f"{name}.tif") for name in ("as_item", scene.stem))
    np.testing.assert_array_equal(found, wanted)
