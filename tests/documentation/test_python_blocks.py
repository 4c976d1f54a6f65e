"""Every Python block of the documentation, extracted from its page and executed."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spectralmoe_jax
from data_pipelines.splits import open_splits
from spectralmoe_jax.ablation.grid import grid_runs, load_grid
from spectralmoe_jax.cli import data as cli_data
from spectralmoe_jax.cli.main import COMMANDS, main
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.models.build import segmenter_config
from spectralmoe_jax.training.train import check_sizes
from tests.datasets import lookalikes
from tests.documentation import pages
from tests.tiny_run import SIZES

EVERY = {(page, block.line): block for page in pages.PAGES for block in pages.blocks(page, "python")}


def run_configuration(text: str, base: str) -> Any:
    """Execute lines that change `config`, as the body of a file that starts from a shipped configuration."""
    lines = "\n    ".join(text.splitlines())
    Path("mine.py").write_text(
        "from ml_collections import ConfigDict\n"
        f"from spectralmoe_jax.configs import {base}\n\n\n"
        f"def get_config():\n    config = {base}.get_config()\n    {lines}\n    return config\n"
    )
    config = load_config("mine.py")
    segmenter_config(config)
    return config


def prepared_tiles(text: str) -> None:
    assert run_configuration(text, "loveda").data.root == "data"


def geotiffs(text: str) -> None:
    text += "\nconfig.classes.names = ('a', 'b', 'c')\nconfig.classes.palette = None"
    text += "\nconfig.model.pixel_mean = config.model.pixel_std = (1.0,) * 4"
    config = run_configuration(text, "sentinel2_landcover")
    assert config.data.label_values == (1, 2, (3, 4))


def sparse_labels(text: str) -> None:
    config = run_configuration(text, "dubai")
    assert config.loss.excludes_unlabelled
    assert config.augment.crop_on_labels == 1


def streams(text: str) -> None:
    base = "config.bands = ('red', 'green', 'blue', 'nir')\n"
    base += "config.model.pixel_mean = config.model.pixel_std = (1.0,) * 4\n"
    assert set(run_configuration(base + text, "sentinel2_landcover").streams) == {"landsat"}


def another_encoder(text: str) -> None:
    config = run_configuration(text, "loveda")
    assert segmenter_config(config).visual.width == 512


def little_data(text: str) -> None:
    config = run_configuration(text, "sentinel2_landcover")
    assert config.train.lr_factors.adapter == 0.1
    check_sizes(config)


def groups_of_bands(text: str) -> None:
    """Galileo on all bands of Sentinel-2: six groups."""
    text += "\nconfig.model.pixel_mean = config.model.pixel_std = ()"
    config = segmenter_config(run_configuration(text, "sentinel2_landcover"))
    assert config.visual.tokens_per_place == 6
    assert config.pixel_std == (10000.0,) * 13


def published_statistics(text: str) -> None:
    """An encoder with its publishers' statistics, on all bands of Sentinel-2."""
    text += "\nconfig.model.pixel_mean = config.model.pixel_std = ()"
    config = segmenter_config(run_configuration(text, "sentinel2_landcover"))
    assert config.visual.width == 768
    assert len(config.pixel_mean) == 13


def own_source(text: str) -> None:
    """Both blocks about it: the class, saved as its first line says, and the configuration that names it."""
    module, configuration = (
        next(block.text for block in EVERY.values() if part in block.text)
        for part in ("class NpzTiles", '"npz_tiles.py:open_tiles"')
    )
    assert text in (module, configuration)
    Path("npz_tiles.py").write_text(module)
    rng = np.random.default_rng(0)
    for domain, name in itertools.product(("spring", "summer", "winter"), ("a", "b")):
        Path(f"tiles/{domain}").mkdir(parents=True, exist_ok=True)
        image, label = rng.integers(0, 9000, (96, 128, 4), np.uint16), rng.integers(0, 6, (96, 128), np.uint8)
        np.savez(f"tiles/{domain}/{name}.npz", image=image, label=label)
    splits = open_splits(run_configuration(configuration, "quickstart"))
    shapes = {(image.shape, label.shape) for _, _, image, label in splits.examples("target")}
    assert shapes == {((96, 128, 4), (96, 128))}


def own_grid(text: str) -> None:
    Path("grid.py").write_text(text)
    assert len(grid_runs(load_grid("grid.py"), Path("runs"))) == 12


def own_adapter(text: str) -> None:
    Path("my_adapter.py").write_text(text)
    assert (
        main(["params", "--config", "dubai.py", "--config.model.adapter.kind=my_adapter.py:ScaleAndShift"])
        == 0
    )


def own_data_set(text: str) -> None:
    names: dict[str, Any] = {}
    exec(text, names)
    rng = np.random.default_rng(0)
    for town in ("north", "south"):
        lookalikes.write_tiff(
            Path(f"DOWNLOADED/{town}/images/1.tif"), rng.integers(1, 255, (600, 520, 3), np.uint8)
        )
        lookalikes.write_png(Path(f"DOWNLOADED/{town}/masks/1.png"), rng.integers(0, 3, (600, 520), np.uint8))
    spectralmoe_jax.prepare(names["DATASET"], "DOWNLOADED", "data", workers=0)
    assert len(list(Path("data/two_towns").rglob("*.array_record*"))) > 0


def own_subcommand(text: str) -> None:
    names = dict(vars(cli_data))
    exec(text, names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli_data, "Bands", names["Bands"], raising=False)
        patch.setitem(COMMANDS, "bands", ("data", "print the bands of a configuration"))
        assert main(["bands", "configs/dubai.py"]) == 0
        with pytest.raises(SystemExit, match="0"):
            main(["bands", "--help"])


def tiles_in_python(text: str) -> None:
    lookalikes.write("loveda", Path("DOWNLOADED"))
    spectralmoe_jax.prepare("loveda", "DOWNLOADED", "data", workers=0, partial=True)
    names: dict[str, Any] = {}
    exec(text, names)
    assert names["image"].shape == (512, 512, 3)


def tiles_in_tensorflow_datasets(text: str) -> None:
    lookalikes.write("loveda", Path("DOWNLOADED"))
    names: dict[str, Any] = {}
    exec(text, names)
    assert names["tile"]["image"].shape == (512, 512, 3)


def train_from_python(text: str) -> None:
    tiny = [f"--config.{value}" for value in SIZES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            spectralmoe_jax,
            "load_config",
            lambda file, given: load_config(file, [*given, *tiny]),
            raising=False,
        )
        names: dict[str, Any] = {}
        exec(text, names)
    assert names["scores"]["images"] == 1


def model_in_python(text: str) -> None:
    tiny = [size for size in SIZES if not size.startswith("model.head")]
    more = ["model.head.kind=linear", "train.steps=2", "train.evaluate_every=2", "train.checkpoint_every=2"]
    given = [f"--config.{value}" for value in (*tiny, *more)]
    spectralmoe_jax.train(spectralmoe_jax.load_config("configs/quickstart.py", given), "runs/twenty_steps")
    names: dict[str, Any] = {"spectralmoe_jax": spectralmoe_jax}
    exec(text, names)
    assert names["probabilities"].shape == (200, 300, 6)
    np.testing.assert_array_equal(names["reordered"], names["classes"])
    assert names["features"].shape == (25, 38, 16)  # the run here has patches of 8 pixels and width 16


# What a block is, by a part of its text.
EXECUTED = {
    'config.data.kind = "prepared"': prepared_tiles,
    'config.data.kind = "geotiff"': geotiffs,
    "config.loss.unlabelled": sparse_labels,
    "config.streams = ": streams,
    '"kind": "dinov2"': another_encoder,
    'config.train.head_start = "probe"': little_data,
    "config.model.pixel_statistics": published_statistics,
    "config.model.visual.stored_as": groups_of_bands,
    "class NpzTiles": own_source,
    '"npz_tiles.py:open_tiles"': own_source,
    "def get_grid": own_grid,
    "class ScaleAndShift": own_adapter,
    "DATASET = Dataset(": own_data_set,
    "class Bands": own_subcommand,
    "PreparedTiles(": tiles_in_python,
    "builder_class(": tiles_in_tensorflow_datasets,
    "spectralmoe_jax.train(": train_from_python,
    "spectralmoe_jax.load(": model_in_python,
}


def marked(page: str, line: int) -> Any:
    """The parameters of a block; one that trains is slow."""
    slow = "spectralmoe_jax.train(" in EVERY[page, line].text
    return pytest.param(page, line, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(
    ("page", "line"), [marked(*place) for place in EVERY], ids=lambda value: str(value).replace("docs/", "")
)
def test_block(page, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = EVERY[page, line].text
    (run,) = [run for part, run in EXECUTED.items() if part in text]
    run(text)
