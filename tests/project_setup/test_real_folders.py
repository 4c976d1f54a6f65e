"""`spectralmoe init` on real imagery, each ending in a training of two steps from the file that it wrote."""

import json
import shlex

import numpy as np
import pytest

import spectralmoe_jax
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.config.load import load_config

EAST = "*128_128,*160_128,*160_160,*192_128,*_96_128"
# folder and options; numbers of source images, target images, bands and classes
FOLDERS = {
    "dubai": (
        ["dubai", "--target", "tile_5,tile_6", "--ignore", "#9b9b9b"], (36, 18, 3, 5),
    ),
    "Landsat pair": (["cloudshadow", "--target", "landsat7"], (1, 1, 6, 3)),
    "Sentinel-2 with polygons": (
        ["sentinel2", "--target", "scene_0", "--labels", "landcover.gpkg", "--attribute", "LULC_ID",
         "--ignore", "0"],
        (3, 1, 13, 5),
    ),
    "EnMAP": (["enmap", "--target", EAST, "--ignore", "0"], (9, 5, 218, 6)),
}  # fmt: skip
SHIPPED = {"dubai": "dubai", "Landsat pair": "cloud_shadow", "EnMAP": "enmap_landcover",
           "Sentinel-2 with polygons": "sentinel2_landcover:polygons"}  # fmt: skip
SMALLEST = {
    "model.visual.width": 16, "model.visual.heads": 2, "model.adapter.query_dim": 16, "model.adapter.rank": 2,
    "model.head.width": 16, "model.head.num_heads": 2, "model.head.encoder_ffn": 16,
    "model.head.decoder_layers": 1,
    "model.head.decoder_ffn": 16, "model.head.group_norm_groups": 4, "loss.num_points": 32,
    "train.batch_size": 2, "train.steps": 2,
    "train.warmup_steps": 0, "train.log_every": 1, "train.evaluate_every": 2, "train.checkpoint_every": 2,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_two_steps(name, shared_data, tmp_path, monkeypatch, capsys):
    """The command that is printed, with overrides that make the run small."""
    monkeypatch.chdir(tmp_path)
    (folder, *options), (source, target, bands, classes) = FOLDERS[name]
    assert main(["init", str(shared_data / folder), "--output", "my.py", *options]) == 0
    printed = capsys.readouterr().out
    assert f": {source + target} images" in printed
    config = load_config("my.py")
    assert (len(config.bands), len(config.classes.names)) == (bands, classes)
    assert len((tmp_path / "my.png").read_bytes()) > 10_000
    lines = (tmp_path / "my.py").read_text().partition("\n# one number for each band")[0].splitlines()
    assert len(lines) <= 60
    command = shlex.split(printed.partition("next: ")[2])
    given = [f"--config.{key}={value}" for key, value in SMALLEST.items()]
    assert main([*command[1:], *given]) == 0
    records = [json.loads(line) for line in (tmp_path / "runs/my/metrics.jsonl").read_text().splitlines()]
    assert [record["loss"] > 0 for record in records if "loss" in record] == [True, True]
    assert [0 <= record["miou"] <= 1 for record in records if "miou" in record] == [True]


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_agrees_with_the_shipped_configuration(name, shared_data, tmp_path):
    """Which people wrote for the same files: bands, label values, and statistics that were measured."""
    (folder, *words), _ = FOLDERS[name]
    options = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    config = spectralmoe_jax.init_config(shared_data / folder, tmp_path / "my.py", **options)
    file, _, arguments = SHIPPED[name].partition(":")
    shipped = load_config(f"configs/{file}.py" + (f":{arguments}" if arguments else ""))
    assert config.bands == shipped.bands
    assert config.sensor == shipped.sensor
    assert config.data.sensors == shipped.data.sensors
    assert config.data.label_values == shipped.data.label_values
    assert set(config.data.source) == set(shipped.data.source)
    assert set(config.data.target) == set(shipped.data.target)
    if name == "dubai":
        assert set(config.classes.palette) == set(shipped.classes.palette)
        assert config.data.ignore_colours == shipped.data.ignore_colours
        return  # its statistics are those of ImageNet
    # Sentinel-2's sensor has nodata 0, which single bands hold here and there
    np.testing.assert_allclose(config.model.pixel_mean, shipped.model.pixel_mean, rtol=0.02)
    np.testing.assert_allclose(config.model.pixel_std, shipped.model.pixel_std, rtol=0.1)


def test_labels_of_two_kinds(shared_data, tmp_path, capsys):
    """The Sentinel-2 folder has the same land cover as a raster and as polygons."""
    given = [
        "init",
        str(shared_data / "sentinel2"),
        "--output",
        str(tmp_path / "my.py"),
        "--target",
        "scene_0",
    ]
    assert main(given) == 2
    assert "several labels for each image (landcover.tif, landcover.gpkg)" in capsys.readouterr().err
    assert main([*given, "--labels", "landcover.gpkg"]) == 2
    assert "(RABA_ID, DATE, LULC_ID, LULC_NAME): choose with --attribute" in capsys.readouterr().err


@pytest.mark.slow
def test_softcon_gets_its_window(shared_data, tmp_path):
    """Pixels are mapped as published: two deviations on either side of the mean become 0 to 1."""
    given = {"target": "scene_0", "labels": "landcover.tif"}
    folder = shared_data / "sentinel2"
    plain = spectralmoe_jax.init_config(folder, tmp_path / "a.py", **given).model
    softcon = spectralmoe_jax.init_config(folder, tmp_path / "b.py", encoder="softcon_s", **given)
    assert softcon.data.crop % 14 == 0
    mean, std = np.array(plain.pixel_mean), np.array(plain.pixel_std)
    np.testing.assert_allclose(softcon.model.pixel_mean, mean - 2 * std, rtol=0.01, atol=1)
    np.testing.assert_allclose(softcon.model.pixel_std, 4 * std, rtol=0.01)


@pytest.mark.slow
def test_galileo_trains(shared_data, tmp_path, monkeypatch, capsys):
    """With its weights, from the printed command."""
    weights = shared_data.parent / "weights" / "galileo_nano"
    if not weights.is_dir():
        pytest.skip("needs the weights in ../shared/weights, which this machine does not have")
    monkeypatch.chdir(tmp_path)
    given = ["--target", "landsat7", "--encoder", "galileo_nano", "--weights", str(weights)]
    assert main(["init", str(shared_data / "cloudshadow"), "--output", "my.py", *given]) == 0
    assert load_config("my.py").model.visual.stored_as == "unit"
    command = shlex.split(capsys.readouterr().out.partition("next: ")[2])
    small = {"train.steps": 2, "train.warmup_steps": 0, "train.batch_size": 2, "train.probe_tiles": 4,
             "train.evaluate_every": 2, "train.checkpoint_every": 2}  # fmt: skip
    assert main([*command[1:], *(f"--config.{key}={value}" for key, value in small.items())]) == 0
