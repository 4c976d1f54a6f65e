"""Tiles of downloaded benchmarks: the pixels that were written, or one line. Chunks of PNG have checksums."""

import numpy as np
import pytest
from PIL import Image

from data_pipelines.datasets import get_dataset
from data_pipelines.datasets.dataset import Pair
from data_pipelines.datasets.downloaded_files import read_names, read_split
from spectralmoe_jax.errors import UserError
from tests.fuzzing.mutations import damaged
from tests.fuzzing.outcome import try_all

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (60, 40, 3), np.uint8)
MASK = RANDOM.integers(0, 8, (60, 40), np.uint8)


@pytest.fixture
def pair(tmp_path):
    """A pair of LoveDA, in PNG."""
    Image.fromarray(PIXELS).save(tmp_path / "1.png")
    Image.fromarray(MASK).save(tmp_path / "1_mask.png")
    return Pair("train_rural", "rural", "1", tmp_path / "1.png", tmp_path / "1_mask.png")


@pytest.mark.parametrize(("seed", "count"), [(0, 64), pytest.param(1, 500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("side", ["image", "label"])
def test_tiles(side, seed, count, pair, record_property):
    path, dataset = getattr(pair, side), get_dataset("loveda")

    def read(variant):
        path.write_bytes(variant)
        (cell,) = dataset.cells(pair)
        return dataset.read_tile(pair, cell)

    def is_exact(variant, tile):
        pixels, labels = tile
        area, labelled = np.s_[:60, :40], MASK > 0
        same = np.array_equal(labels[area][labelled] + 1, MASK[labelled])
        return same and (labels[area][~labelled] == 255).all() and np.array_equal(pixels[area], PIXELS)

    variants = damaged(path.read_bytes(), count, seed, headers=0.2)
    try_all(variants, read, is_exact, record_property, f"downloaded tile, {side}")


def test_lists_that_are_no_text(tmp_path):
    (tmp_path / "split.txt").write_bytes(b"\xff\xfea\x00")
    with pytest.raises(UserError, match=r"split\.txt: no list of names, it is not UTF-8 text"):
        read_names(tmp_path / "split.txt")
    (tmp_path / "split.txt").write_text("\ufeffa source\n", encoding="utf-8")
    assert read_split(tmp_path / "split.txt", ["a"], "scene") == {"a": "source"}
    (tmp_path / "split.txt").write_text("\x1b[2J" + "b" * 5000 + " source\n")
    with pytest.raises(UserError, match="there is no scene") as error:
        read_split(tmp_path / "split.txt", ["a"], "scene")
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()
