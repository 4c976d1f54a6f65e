"""What asks for more memory than there is ends in one line, before it is allocated."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.loader import train_batches
from data_pipelines.records import ArraySource
from data_pipelines.splits import open_splits, training_batches
from data_pipelines.synthetic import SyntheticScenes
from data_pipelines.tiles.tile_index import TileIndex
from spectralmoe_jax.cli import main as main_module
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.errors import UserError
from spectralmoe_jax.host_memory import physical_memory
from spectralmoe_jax.inference.segmenter_weights import initial_segmenter
from spectralmoe_jax.inference.sliding_window import predict_tiles
from tests.tiny_run import SIZES


def tiny(*overrides):
    return load_config("configs/quickstart.py", [f"--config.{value}" for value in (*SIZES, *overrides)])


@pytest.mark.parametrize(
    "override",
    ["model.visual.mlp_ratio=1e9", "model.adapter.rank=1000000000", "model.head.decoder_ffn=1000000000"],
)
def test_weights(override):
    """Each of these makes a leaf of at least 16 columns and 10**9 rows, of 2 or more bytes a number."""
    with pytest.raises(UserError, match=r"config.model: its weights take [\d,]+ GB or more, \w+/.* alone"):
        initial_segmenter(tiny(override))


@pytest.mark.parametrize("key", ["batch_size", "accumulate"])
def test_batches(key):
    config = tiny(f"train.{key}=1000000000")
    with pytest.raises(UserError, match=rf"config.train.{key} = 10{{9}}: needs [\d,]+ GB for the tiles"):
        next(training_batches(config, open_splits(config), 0))


def test_windows():
    tiles = iter([((0, 0), np.zeros((32, 32, 3), np.float32))])
    with pytest.raises(UserError, match=r"config.evaluate.batch_size = 10{9}: needs 12,288 GB"):
        next(predict_tiles(tiles, lambda batch: batch, 10**9))


def test_scenes():
    with pytest.raises(UserError, match=r"config.data.scene_size = 10{9}: needs [\d,]+ GB for the scenes"):
        SyntheticScenes({"sensor_a": 1}, size=10**9)


def test_workers():
    count = physical_memory() >> 26
    image = (np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8))
    tiles = TileIndex(ArraySource({("d", "0"): image}), stride=16)
    with pytest.raises(UserError, match=rf"config.data.workers = {count}: needs [\d,]+ GB for the proc"):
        train_batches(tiles, None, batch_size=1, seed=0, workers=count)


def too_large_for_jax():
    jnp.zeros((1 << 30, 1 << 20)).block_until_ready()


def too_large_for_opencv():
    cv2.copyMakeBorder(np.zeros((4, 4, 4), np.float32), 0, 10**9, 0, 10**9, cv2.BORDER_REFLECT_101)


def too_large_for_numpy():
    np.ones((1 << 30, 1 << 20))


@pytest.mark.parametrize("allocate", [too_large_for_jax, too_large_for_opencv, too_large_for_numpy])
def test_libraries_that_get_no_memory(allocate, monkeypatch, capsys):
    """Their own errors, as they raise them, become one line and status 2."""
    monkeypatch.setattr(main_module, "_dispatch", lambda argv: allocate())
    assert main_module.main(["train"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: not enough memory (")
    assert said.count("\n") == 1
