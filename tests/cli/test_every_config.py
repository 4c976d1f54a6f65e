"""Every shipped configuration trains two steps and is evaluated, at a reduced size.

Configurations of published benchmarks run on generated look-alikes that `spectralmoe prepare` cut; the others
on the real images they are for. By default only one of prepared tiles runs here, and the quickstart in
test_end_to_end; the others are slow.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rich.console import Console

from data_pipelines.prepare.prepare import prepare
from data_pipelines.sources import KINDS
from data_pipelines.splits import open_splits
from spectralmoe_jax.checkpoints.store import CheckpointStore
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.python_files import shipped_files
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.config.stored import save_config
from spectralmoe_jax.evaluation.evaluate import evaluate
from spectralmoe_jax.training.train import train
from tests.datasets.lookalikes import WRITERS, write
from tests.rasters import PLACE, write_raster
from tests.tiny_run import SIZES

ROOT = Path(__file__).resolve().parents[2]
REAL = {
    "dubai": "dubai",
    "cloud_shadow": "cloudshadow",
    "sentinel2_landcover": "sentinel2",
    "sentinel2_landcover:polygons": "sentinel2",
    "enmap_landcover": "enmap",
}
# One of each kind of data: also evaluated on held-out images during training, which takes time.
WITH_HOLDOUT = ("quickstart", "dubai", "cloud_shadow", "loveda")
DOFA = ("fbp_cross_sensor:dofa", "fbp_cross_geospatial:dofa", "flair:dofa")
TINY = {
    "data.crop": 64, "data.workers": 0, "model.remat": "none",
    "model.adapter.num_tokens": 30, "model.adapter.query_dim": 16, "model.adapter.rank": 2,
    "model.head.num_queries": 30, "model.head.width": 16, "model.head.num_heads": 2,
    "model.head.encoder_layers": 1, "model.head.decoder_layers": 1, "model.head.encoder_ffn": 16,
    "model.head.decoder_ffn": 16, "model.head.group_norm_groups": 4, "loss.num_points": 32,
    "train.batch_size": 2, "train.steps": 2, "train.warmup_steps": 0, "train.log_every": 1,
    "train.evaluate_every": 2, "train.checkpoint_every": 2,
    "evaluate.window": 128, "evaluate.overlap": 0, "evaluate.batch_size": 8,
}  # fmt: skip


def reduced(name: str, **values) -> RunConfig:
    """A shipped configuration with a tiny model and run; everything else is its own."""
    file, _, arguments = name.partition(":")
    config = load_config(f"configs/{file}.py" + (f":{arguments}" if arguments else ""))
    encoders = ["visual"] + ["depth"] * (config.model.depth is not None)
    sizes = {f"model.{part}.{key}": value for part in encoders
             for key, value in {"width": 16, "layers": 4, "heads": 2}.items()}  # fmt: skip
    return config.replaced({"model.out_layers": (0, 1, 2, 3)} | TINY | sizes | values)


def run(config: RunConfig, workdir) -> None:
    """Train, evaluate held-out images for those of `WITH_HOLDOUT`, and evaluate the target."""
    check_holdout(config)
    with_holdout = config.name in WITH_HOLDOUT
    if not with_holdout:
        config = config.replaced({"data.holdout": 0.0, "data.holdout_domains": ()})
    result = train(config, workdir)
    assert result["step"] == 2
    assert result["best"] == (2 if with_holdout else None)
    check_metrics(workdir, evaluations=int(with_holdout))
    check_report(evaluate(workdir, config), config)


def check_holdout(config: RunConfig) -> None:
    splits = open_splits(config)
    assert len(splits.holdout) > 0
    assert not set(splits.train) & set(splits.holdout)


def check_metrics(workdir: Path, evaluations: int) -> None:
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["loss"] > 0 for record in records if "loss" in record] == [True, True]
    scores = [record["miou"] for record in records if "miou" in record]
    assert [0 <= score <= 1 for score in scores] == [True] * evaluations


def check_report(report: dict, config: RunConfig) -> None:
    assert report["images"] > 0
    assert set(report["all"]["iou"]) == set(config.classes.names)
    assert 0 <= report["all"]["overall_accuracy"] <= 1


def test_every_kind_of_data_has_a_configuration_with_holdout():
    assert {load_config(f"configs/{name}.py").data.kind for name in WITH_HOLDOUT} == set(KINDS)


def test_every_configuration_is_tested():
    named = {name.partition(":")[0] for name in (*REAL, *WRITERS, *DOFA, "quickstart")}
    assert {f"{name}.py" for name in named} == set(shipped_files("configs"))


@pytest.mark.slow
def test_quickstart(tmp_path):
    run(reduced("quickstart", **{"data.scenes_source": 4, "data.scenes_target": 1, "data.scene_size": 64,
                                 "data.holdout": 0.25}), tmp_path)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_on_real_images(name, shared_data, tmp_path):
    crop, window = {"enmap_landcover": (32, 32), "dubai": (60, 240)}.get(name, (64, 64))
    config = reduced(name, **{"data.root": str(shared_data / REAL[name]), "data.crop": crop,
                              "evaluate.window": window})  # fmt: skip
    if name == "dubai":  # two small places stand for six
        config = config.replaced({"data.source": ("tile_2",), "data.target": ("tile_3",)})
    run(config, tmp_path)
    if name == "enmap_landcover":  # the wavelengths of the files are stored with the run
        kept = json.loads((tmp_path / "config.json").read_text())["stated_wavelengths"]
        assert (len(kept["micrometres"]), kept["sensor"]) == (218, "enmap")


def test_statistics_of_the_enmap_configuration(shared_data):
    """Of each band that is used, over the tiles to train on; bands that are not are empty in all files."""
    config = load_config("configs/enmap_landcover.py")
    files = {path: rasterio.open(path) for path in sorted((shared_data / "enmap/images").glob("*.tif"))}
    pixels = {path.stem.partition("tile_")[2]: file.read().reshape(224, -1) for path, file in files.items()}
    used = [int(name.removeprefix("band ")) - 1 for name in config.bands]
    assert (np.stack(list(pixels.values()))[:, np.setdiff1d(np.arange(224), used)] == -32768).all()
    source = np.concatenate([pixels[domain][used] for domain in config.data.source], axis=1)
    assert (source > -32768).all()
    np.testing.assert_allclose(config.model.pixel_mean, source.mean(axis=1), atol=0.5)
    np.testing.assert_allclose(config.model.pixel_std, source.std(axis=1), atol=0.5)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder of prepared look-alikes, made when asked for."""
    folder = tmp_path_factory.mktemp("prepared")

    def prepare_lookalike(name: str) -> str:
        if not (folder / "out" / name).exists():
            write(name, folder / name)
            prepare(name, folder / name, folder / "out", workers=0, partial=True, console=Console(quiet=True))
        return str(folder / "out" / name)

    return prepare_lookalike


@pytest.mark.slow
@pytest.mark.parametrize("name", [*WRITERS, *DOFA])
def test_on_lookalikes(name, prepared, tmp_path):
    root = prepared(name.partition(":")[0])
    run(reduced(name, **{"data.root": root}), tmp_path)


def test_data_command_on_a_prepared_benchmark(prepared, tmp_path, capsys):
    """`spectralmoe data` draws what training would see, and names classes and bands."""
    config = reduced("loveda", **{"data.root": prepared("loveda")})
    save_config(config, tmp_path / "config.json")
    overrides = [f"--config.data.root={config.data.root}", "--config.data.crop=64", "--config.data.workers=0"]
    picture = tmp_path / "batches.png"
    assert main(["data", "configs/loveda.py", "--batches", "1", "--output", str(picture), *overrides]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in (*config.classes.names, *config.bands, "tiles/s", "train", "target"))
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_prepared_tiles_without_tensorflow(tmp_path):
    """Prepare, train, evaluate and predict, with processes that cut and read tiles, import no TensorFlow.

    A `tensorflow` that ends any process importing it stands first on the path. This is also the default run
    of `loveda`, with a linear head. Opening the generated data imports none either.
    """
    write("loveda", tmp_path / "source")
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    write_raster(tmp_path / "scene.tif", pixels, ("red", "green", "blue"), **PLACE)
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')")
    values = {"data.root": str(tmp_path / "out"), "data.workers": 1}
    config = reduced("loveda", **values).replaced({"model.head": {"kind": "linear"}})
    save_config(config, tmp_path / "config.json")
    (tmp_path / "mine.py").write_text(
        f"from spectralmoe_jax.config.stored import read_config\n"
        f"def get_config(): return read_config({str(tmp_path / 'config.json')!r})\n"
    )
    workdir, report, scene_map = tmp_path / "run", tmp_path / "report.json", tmp_path / "map.tif"
    generated = [f"--config.{size}" for size in SIZES if size.startswith("data.")]
    commands = [
        ["prepare", "loveda", "--source", "source", "--out", "out", "--partial", "--workers", "2"],
        ["train", "--config", "mine.py", "--workdir", "run"],
        ["evaluate", "--workdir", "run", "--output", "report.json"],
        ["predict", "--checkpoint", "run", "--input", "scene.tif", "--output", "map.tif"],
        ["data", str(ROOT / "configs/quickstart.py"), "--batches", "1", "--output", "data.png", *generated],
    ]
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
from spectralmoe_jax.cli.main import main
if __name__ == "__main__":
    assert [main(command) for command in {commands!r}] == [0] * {len(commands)}
    assert "tensorflow_datasets" in sys.modules
    assert not any(name.partition(".")[0] == "tensorflow" for name in sys.modules)
""")
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    check_holdout(config)
    check_metrics(workdir, evaluations=1)
    with CheckpointStore(workdir, config) as store:
        assert (store.last, store.best) == (2, 2)
    check_report(json.loads(report.read_text()), config)
    with rasterio.open(scene_map) as result:
        assert result.shape == (64, 64)
        assert result.read(1).max() < len(config.classes.names)
