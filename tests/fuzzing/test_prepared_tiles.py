"""Prepared tiles: the tiles that were written, or an error of one line, whichever file is damaged."""

import io
import json
import sys

import numpy as np
import pytest
from rich.console import Console

from data_pipelines.prepare.prepare import prepare
from data_pipelines.readers.prepared import PreparedTiles
from tests.fuzzing.mutations import damaged, reshaped
from tests.fuzzing.outcome import try_all
from tests.prepare import tiny_dataset

JSON_FILES = ("statistics.json", "dataset_info.json", "features.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    tiny_dataset.write_source(root / "source")
    return prepare(tiny_dataset.TINY, root / "source", root / "out", workers=0, console=Console(quiet=True))


@pytest.fixture(scope="module")
def written(folder):
    """The tiles of each split in order, cut with numpy alone."""
    tiles = tiny_dataset.tiles(tiny_dataset.write_source(folder.parent / "again"))
    return {split: [(image, label) for *_, image, label in of_split] for split, of_split in tiles.items()}


@pytest.fixture
def trial(folder, written, record_property):
    """A function that tries variants of one file, and puts the good one back."""

    def run(name, variants, title, is_told=lambda variant, source: True):
        good = (folder / name).read_bytes()

        def read(variant):
            (folder / name).write_bytes(variant)
            source = PreparedTiles(folder)
            tiles = [tile for tile in source.records if tile.split == "test" or not tile.index % 8]
            return source, [(tile, source.read_image(tile), source.read_label(tile)) for tile in tiles]

        def is_exact(variant, found):
            source, tiles = found
            same = all(
                np.array_equal(ours, theirs)
                for tile, *found in tiles
                for ours, theirs in zip(found, written[tile.split][tile.index], strict=True)
            )
            return same and source.dtype == np.int16 and is_told(variant, source)

        try:
            try_all(variants, read, is_exact, record_property, title)
        finally:
            (folder / name).write_bytes(good)

    return run


def is_told_by_json(variant, source):
    stored = json.loads(variant)
    names = [(stored["bands"], source.bands), (stored["classes"], source.classes)]
    return all(tuple(theirs) == tuple(ours) for theirs, ours in names)


@pytest.mark.parametrize(("seed", "count"), [(0, 64), pytest.param(1, 500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", JSON_FILES)
def test_json(name, seed, count, folder, trial):
    good = (folder / name).read_bytes()
    is_told = is_told_by_json if name == "statistics.json" else lambda variant, source: True
    trial(name, damaged(good, count, seed, headers=0.2), f"prepared {name}, damaged", is_told)
    trial(name, reshaped(json.loads(good), count, seed), f"prepared {name}, reshaped", is_told)


@pytest.mark.parametrize(("seed", "count"), [(0, 64), pytest.param(1, 500, marks=pytest.mark.slow)])
def test_index(seed, count, folder, trial):
    def is_told(variant, source):
        with np.load(io.BytesIO(variant), allow_pickle=False) as index:
            names = [name for split in ("train", "test") for name in index[f"{split}/name"]]
        return names == [tile.name for tile in source.records]

    trial(
        "index.npz", damaged((folder / "index.npz").read_bytes(), count, seed), "prepared index.npz", is_told
    )


@pytest.mark.parametrize(("seed", "count"), [(0, 64), pytest.param(1, 500, marks=pytest.mark.slow)])
def test_shard(seed, count, folder, trial):
    (shard,) = folder.glob("tiny-test.array_record-*")
    trial(shard.name, damaged(shard.read_bytes(), count, seed), "prepared shard")


def test_the_good_folder_is_read(folder, trial):
    trial("features.json", [("nothing", (folder / "features.json").read_bytes())], "prepared, as it is")


def test_no_module_is_imported(folder, trial, monkeypatch):
    """Names of classes in features.json go to no importer."""
    names = [
        "payload_module.X",
        "os.system",
        "antigravity.X",
        "..X",
        "tensorflow_datasets.core.features.Image",
    ]
    good = json.loads((folder / "features.json").read_text())
    before = set(sys.modules)

    def variants():
        for name in names:
            document = json.loads(json.dumps(good))
            document["pythonClassName"] = name
            document["featuresDict"]["features"]["image"]["pythonClassName"] = name
            yield name, json.dumps(document).encode()

    trial("features.json", variants(), "class names in features.json")
    assert not {"payload_module", "antigravity"} & (set(sys.modules) - before)
