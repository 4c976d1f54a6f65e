"""Batches are the same for any number of workers and hosts and any restart; errors reach the parent."""

import multiprocessing
import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.loader import train_batches
from data_pipelines.readers.image_files import ImageFolder
from data_pipelines.records import ArraySource
from data_pipelines.tiles.tile_index import TileIndex
from data_pipelines.transforms import Augment
from spectralmoe_jax.config.schema import AugmentConfig
from spectralmoe_jax.errors import UserError

ROOT = Path(__file__).parents[2]
AUGMENT = Augment(16, AugmentConfig(flip=0.5, vertical_flip=0.5, turns=True), photometric_bands=(0, 1, 2))


@pytest.fixture(scope="module")
def tiles():
    """11 cells of two images, so that a batch of 4 runs across the ends of epochs."""
    rng = np.random.default_rng(0)
    images = {
        ("d", str(i)): (rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 4, size, np.uint8))
        for i, size in enumerate([(40, 48), (16, 32)])
    }
    return TileIndex(ArraySource(images), stride=16)


def take(tiles, count, **settings):
    batches = train_batches(tiles, AUGMENT, **{"batch_size": 4, "seed": 7, **settings})
    try:
        return list(islice(batches, count))
    finally:
        batches.close()


def assert_same(some, others):
    assert len(some) == len(others) > 0
    for a, b in zip(some, others, strict=True):
        assert a.keys() == b.keys() == {"image", "label"}
        for key in a:
            assert a[key].dtype == b[key].dtype
            assert a[key].tobytes() == b[key].tobytes()


def test_batches_are_independent_of_workers_and_restarts(tiles):
    assert len(tiles) == 11
    straight = take(tiles, 8)
    assert straight[0]["image"].shape == (4, 16, 16, 3)
    assert straight[0]["label"].shape == (4, 16, 16)
    assert straight[0]["image"].dtype == straight[0]["label"].dtype == np.uint8
    assert_same(straight, take(tiles, 8, workers=1))
    assert_same(straight[3:], take(tiles, 5, workers=2, start_step=3))
    assert_same(straight[5:], take(tiles, 3, start_step=5))
    assert multiprocessing.active_children() == []
    assert straight[0]["image"].tobytes() != take(tiles, 1, seed=8)[0]["image"].tobytes()


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_divide_each_batch_in_order(tiles, hosts):
    parts = [take(tiles, 5, start_step=2, host_index=h, host_count=hosts) for h in range(hosts)]
    joined = [
        {k: np.concatenate([p[k] for p in batch]) for k in batch[0]} for batch in zip(*parts, strict=True)
    ]
    assert_same(take(tiles, 7)[2:], joined)


def test_every_epoch_visits_each_cell_once_in_its_own_order(tiles):
    def name(tile, _):
        return {"cell": np.array([int(tile.record.name[-1]), *tile.cell])}

    batches = train_batches(tiles, name, batch_size=1, seed=0)
    cells = [tuple(batch["cell"][0].tolist()) for batch in islice(batches, 33)]
    batches.close()
    epochs = [cells[i : i + 11] for i in (0, 11, 22)]
    assert all(set(epoch) == set(cells) and len(set(epoch)) == 11 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_source_smaller_than_a_batch(tiles):
    (batch,) = take(tiles, 1, batch_size=32)
    assert batch["image"].shape == (32, 16, 16, 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_file_is_named_in_the_parent_process(tmp_path, workers):
    from PIL import Image

    for kind in ("images", "masks"):
        (tmp_path / "x" / kind).mkdir(parents=True)
        Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "x" / kind / "broken.png")
    source = ImageFolder(
        tmp_path, palette=((0, 0, 0),), bands=("red", "green", "blue"), image_glob="*/images/*.png"
    )
    path = tmp_path / "x/images/broken.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"broken\.png: truncated"):
        take(TileIndex(source, 16), 1, workers=workers)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 6, "host_count": 4}, "config.train.batch_size = 6: must be a multiple of 4"),
        ({"batch_size": 0}, r"train\.batch_size = 0: must be"),
        ({"host_index": 2, "host_count": 2}, "host 2 of 2"),
        ({"seed": -1}, "seed = -1"),
        ({"start_step": -1}, "step = -1"),
    ],
)
def test_bad_arguments_are_rejected_at_once(tiles, settings, message):
    with pytest.raises(UserError, match=message):
        train_batches(tiles, AUGMENT, **{"batch_size": 4, "seed": 7, **settings})


def test_an_empty_source_is_rejected(tiles):
    with pytest.raises(UserError, match="empty"):
        train_batches([], AUGMENT, batch_size=4, seed=0)
    with pytest.raises(UserError, match="empty"):
        TileIndex(tiles.source, 16, records=())


def test_sources_and_transforms_do_not_import_jax():
    code = "import sys, data_pipelines.readers, data_pipelines.transforms; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_workers_outlive_sigterm_but_not_their_parent(tmp_path):
    """A scheduler sends SIGTERM to all processes of a run; the one that trains may still need a batch."""
    script = tmp_path / "script.py"
    script.write_text("""
import multiprocessing, os, signal
from itertools import islice
import numpy as np
from data_pipelines.loader import train_batches
from data_pipelines.records import ArraySource
from data_pipelines.tiles.tile_index import TileIndex
from tests.loading.test_loader import AUGMENT

if __name__ == "__main__":
    image = np.zeros((40, 48, 3), np.uint8), np.zeros((40, 48), np.uint8)
    tiles = TileIndex(ArraySource({("d", "0"): image}), stride=16)
    batches = train_batches(tiles, AUGMENT, batch_size=4, seed=7, workers=1)
    first = next(batches)
    children = [child.pid for child in multiprocessing.active_children()]
    for child in children:
        os.kill(child, signal.SIGTERM)
        os.kill(child, signal.SIGINT)
    more = list(islice(batches, 12))
    print(*children, flush=True)
    os._exit(0 if len(more) == 12 else 1)
""")
    done = subprocess.run(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    workers = [Path("/proc", number) for number in done.stdout.split()]
    assert len(workers) == 1
    until = time.monotonic() + 30
    while any(worker.exists() for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.1)
