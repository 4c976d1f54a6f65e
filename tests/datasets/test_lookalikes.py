"""Every benchmark from files in the published layout to exact tiles, also through its TFDS builder."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipelines.datasets import DATASETS, get_dataset
from data_pipelines.datasets.builder import builder_class
from tests.datasets.lookalikes import Tile, write

ROOT = Path(__file__).resolve().parent.parent.parent
SPLITS = {
    "whu_ohs": {"train": 1, "validation": 1, "test": 1, "source": 3, "target": 2},
    "fbp_cross_sensor": {
        "gaofen2": 8, "beijing": 4, "guangzhou": 4, "wuhan": 4, "chengdu": 4, "shanghai": 4,
    },
    "fbp_cross_geospatial": {"source": 24, "target": 4},
    "flair": {"train": 3, "validation": 2, "test": 2},
    "loveda": {"train_rural": 4, "train_urban": 1, "val_rural": 2, "val_urban": 3},
    "potsdam_vaihingen": {"potsdam": 7, "vaihingen_train": 4, "vaihingen_test": 2},
    "open_earth_map": {"source_train": 4, "source_val": 1, "target": 3},
}  # fmt: skip


@pytest.fixture(scope="module", params=DATASETS)
def lookalike(request, tmp_path_factory):
    """(name, folder, tiles) of each benchmark in turn; the folder's name has a space and letters like ü."""
    folder = tmp_path_factory.mktemp(request.param) / "heruntergeladene Bögen"
    return request.param, folder, write(request.param, folder)


def by_place(tiles):
    places = {tile[:5]: tile for tile in tiles}
    assert len(places) == len(tiles)
    return places


def assert_same(found: dict, wanted: dict[tuple, Tile]) -> None:
    assert sorted(found) == sorted(wanted)
    for place, tile in wanted.items():
        image, label = found[place]
        np.testing.assert_array_equal(image, tile.image, err_msg=str(place))
        np.testing.assert_array_equal(label, tile.label, err_msg=str(place))
        assert (image.dtype, label.dtype) == (tile.image.dtype, np.uint8)


def test_tiles_are_exact(lookalike):
    name, folder, tiles = lookalike
    benchmark = get_dataset(name)
    found = {
        (*pair[:3], cell.row, cell.col): benchmark.read_tile(pair, cell)
        for pair in benchmark.find(folder).pairs
        for cell in benchmark.cells(pair)
    }
    assert_same(found, by_place(tiles))
    assert Counter(place[0] for place in found) == SPLITS[name]
    assert set(SPLITS[name]) == set(benchmark.splits)
    held = np.unique(np.concatenate([np.unique(tile.label) for tile in tiles]))
    assert held.tolist() == [*range(len(benchmark.classes)), 255]  # every class was compared, and "no label"


def test_the_builder_gives_the_same_tiles(lookalike, tmp_path):
    name, folder, tiles = lookalike
    builder = builder_class(name)(data_dir=tmp_path)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    found = {}
    for split, source in builder.as_data_source().items():
        for record in source:
            image, label, row, col = (record[key] for key in ("image", "label", "row", "col"))
            place = record["domain"].decode(), record["name"].decode()
            found[split, *place, row, col] = image, label
    assert_same(found, by_place(tiles))
    benchmark = get_dataset(name)
    info = tfds.builder_from_directory(builder.data_dir).info  # as read back from the files
    assert {split: entry.num_examples for split, entry in info.splits.items()} == SPLITS[name]
    assert info.citation == benchmark.citation
    assert info.homepage == benchmark.homepage
    assert info.redistribution_info.license == benchmark.licence
    assert benchmark.title in info.description
    assert all(path.suffix != ".tfrecord" for path in Path(builder.data_dir).iterdir())


def test_index_masks_of_cities_are_read(tmp_path):
    from PIL import Image

    tiles = by_place(write("fbp_cross_sensor", tmp_path))
    megacities = tmp_path / "C-megacities"
    city, name = "guangzhou", "T49QGF_20210218T025749"
    coloured = np.asarray(Image.open(megacities / "label_dense__color" / f"{name}_dense.tif"))
    palette = np.array([(0, 0, 0), *get_dataset("fbp_cross_sensor").palette])
    index = (coloured[:, :, None] == palette).all(-1).argmax(-1).astype(np.uint8)
    (megacities / "label_dense__index").mkdir()
    Image.fromarray(index).save(megacities / "label_dense__index" / f"{name}_dense.png")
    benchmark = get_dataset("fbp_cross_sensor")
    (pair,) = (pair for pair in benchmark.find(tmp_path).pairs if pair.split == city)
    assert pair.label.suffix == ".png"
    for cell in benchmark.cells(pair):
        wanted = tiles[city, city, name, cell.row, cell.col]
        np.testing.assert_array_equal(benchmark.read_tile(pair, cell)[1], wanted.label)


def test_tensorflow_is_never_imported(tmp_path):
    """Not even where it is installed: here it is, as a package that ends the process when it is imported."""
    write("loveda", tmp_path / "source")
    package = tmp_path / "installed" / "tensorflow" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("raise SystemExit('tensorflow was imported')")
    script = f"""
import sys
sys.path.append({str(tmp_path / "installed")!r})
import tensorflow_datasets as tfds
from data_pipelines.datasets.builder import builder_class
builder = builder_class("loveda")(data_dir={str(tmp_path)!r})
builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir={str(tmp_path / "source")!r})
)
print("tiles", len(builder.as_data_source("train_rural")))
print(builder.as_data_source("val_urban")[0]["image"].shape)
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "jax", "torch")]
"""
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "tiles 4\n(512, 512, 3)" in run.stdout
