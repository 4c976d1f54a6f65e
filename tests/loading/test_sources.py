"""Kinds of data: a user's own by import path, and what is imported for the built-in ones."""

import pickle
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_pipelines.prepare.prepare import prepare
from data_pipelines.sources import open_source
from data_pipelines.splits import open_splits, training_batches, training_elements
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.errors import UserError
from tests.datasets.lookalikes import write

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The example file of docs/data.md and tiles for it, in the current folder."""
    page = (ROOT / "docs" / "data.md").read_text()
    (code,) = re.findall(r"```python\n# npz_tiles\.py\n(.*?)```", page, re.DOTALL)
    (tmp_path / "npz_tiles.py").write_text(code)
    rng = np.random.default_rng(0)
    for domain in ("spring", "summer", "winter"):
        (tmp_path / "tiles" / domain).mkdir(parents=True)
        for number in range(2):
            image = rng.integers(0, 256, (40, 50, 3), np.uint8)
            label = rng.integers(0, 3, (40, 50), np.uint8)
            np.savez(tmp_path / "tiles" / domain / f"{number}.npz", image=image, label=label)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configuration(kind, **values):
    overrides = {
        "kind": kind,
        "root": "tiles",
        "source": "spring,summer",
        "target": "winter,",
        "crop": 16,
        **values,
    }
    arguments = [f"--config.data.{key}={value}" for key, value in overrides.items()]
    return load_config(str(ROOT / "configs" / "dubai.py"), [*arguments, "--config.train.batch_size=2"])


@pytest.mark.parametrize(("kind", "workers"), [("npz_tiles.py:open_tiles", 1), ("npz_tiles:open_tiles", 0)])
def test_an_own_source_gives_batches(example, kind, workers, monkeypatch):
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", ".")])
    monkeypatch.delitem(sys.modules, "npz_tiles", raising=False)
    config = configuration(kind, workers=workers, holdout=0.0)
    splits = open_splits(config)
    assert [record.name for record in splits.source.records] == [
        "spring/0",
        "spring/1",
        "summer/0",
        "summer/1",
    ]
    assert [record.domain for record in splits.target.records] == ["winter", "winter"]
    stored = np.load(example / "tiles/winter/1.npz")
    record = splits.target.records[1]
    np.testing.assert_array_equal(splits.target.read_image(record), stored["image"])
    np.testing.assert_array_equal(splits.target.read_label(record), stored["label"])
    batches = training_batches(config, splits, 0)
    for batch in islice(batches, 2):
        assert batch["image"].shape == (2, 16, 16, 3)
        assert batch["label"].shape == (2, 16, 16)
    batches.close()


def test_an_own_source_survives_pickling(example):
    source = open_source(configuration("npz_tiles.py:open_tiles"), ("winter",))
    copy = pickle.loads(pickle.dumps(source))
    assert copy.records == source.records
    np.testing.assert_array_equal(copy.read_label(copy.records[0]), source.read_label(source.records[0]))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("npz_tile.py:open_tiles", r"there is no file .*npz_tile\.py"),
        ("npz_tiles.py:open_tile", r"npz_tiles\.py has no open_tile; did you mean open_tiles"),
        (
            "no_source.py:open_tiles",
            "returned a list without records and read_image and read_label; a source",
        ),
        ("npz", "must be one of image_folder, geotiff, prepared, synthetic, or your own as module:function"),
    ],
)
def test_what_is_no_source_is_said(example, kind, message):
    (example / "no_source.py").write_text("def open_tiles(config, domains): return [config, domains]")
    with pytest.raises(UserError, match=message):
        open_source(configuration(kind), ("winter",))


def test_an_own_source_without_images_is_said(example):
    with pytest.raises(UserError, match="returned no images"):
        open_source(configuration("npz_tiles.py:open_tiles"), ("autumn",))


TAKES_A_BATCH = """
import sys
import spectralmoe_jax.training.train
from data_pipelines.splits import open_splits, training_batches, training_elements
from spectralmoe_jax.config.load import load_config

config = load_config(sys.argv[1], sys.argv[2:])
batches = training_batches(config, open_splits(config), 0)
next(batches)
batches.close()
sys.exit(" ".join({"rasterio", "pyogrio", "shapely"} & sys.modules.keys()) or 0)
"""


@pytest.mark.parametrize("file", ["quickstart.py", "loveda.py"])
def test_generated_and_prepared_tiles_import_no_rasterio(file, tmp_path):
    arguments = ["--config.train.batch_size=1", "--config.data.workers=0"]
    if file == "loveda.py":
        (tmp_path / "source").mkdir()
        write("loveda", tmp_path / "source")
        console = Console(quiet=True)
        folder = prepare("loveda", tmp_path / "source", tmp_path, workers=0, partial=True, console=console)
        arguments.append(f"--config.data.root={folder}")
    command = [sys.executable, "-c", TAKES_A_BATCH, f"configs/{file}", *arguments]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_every_domain_has_its_weight_and_its_own_held_out_images(example):
    """Each domain holds out one of its two images, and the other is drawn with the domain's weight."""
    config = configuration("npz_tiles.py:open_tiles", holdout=0.5, weights="3,1")
    splits = open_splits(config)
    assert [record.domain for record in splits.holdout] == ["spring", "summer"]
    mixture, _ = training_elements(config, splits)
    assert mixture.weights == (3.0, 1.0)
    held = {record.name for record in splits.holdout}
    for domain, index in zip(("spring", "summer"), mixture.sources, strict=True):
        drawn = {index[i].record for i in range(len(index))}
        assert {record.domain for record in drawn} == {domain}
        assert not {record.name for record in drawn} & held
