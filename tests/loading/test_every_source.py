"""Batches of every kind of source: the same on any machine, mixture weights, and failures."""

import hashlib
import multiprocessing
import os
import signal
from functools import partial
from itertools import islice

import numpy as np
import pytest
from rich.console import Console

from data_pipelines.loader import Mixture, train_batches
from data_pipelines.prepare import plan
from data_pipelines.prepare.prepare import prepare
from data_pipelines.readers.image_files import GeoTiffTiles
from data_pipelines.readers.label_codes import ValueCode
from data_pipelines.readers.labels import VectorLabels
from data_pipelines.readers.prepared import PreparedTiles
from data_pipelines.records import ArraySource
from data_pipelines.tiles.tile_index import ClassBalancedIndex, TileIndex
from data_pipelines.transforms import Augment
from spectralmoe_jax.config.schema import AugmentConfig
from spectralmoe_jax.errors import UserError
from tests.prepare import tiny_dataset
from tests.rasters import PLACE, write_polygons, write_raster

AUGMENT = Augment(8, AugmentConfig(scale=(0.5, 2.0), turns=True, gain=0.1), photometric_bands=(0, 1, 2))
SIXTEEN_BITS = Augment(
    8, AugmentConfig(scale=(0.5, 2.0), turns=True, gain=0.1, offset=0.1, drop_bands=0.1, tilt=0.1)
)


def images(domain, count, seed):
    rng = np.random.default_rng(seed)
    return ArraySource(
        {
            (domain, str(i)): (rng.integers(0, 256, (20, 24, 3), np.uint8), rng.integers(0, 3, (20, 24)))
            for i in range(count)
        }
    )


class Broken:
    """A source of which one image cannot be read."""

    def __init__(self, source, broken):
        self.source, self.broken, self.records = source, broken, source.records

    def read_label(self, record, window=None):
        return self.source.read_label(record, window)

    def read_image(self, record, window=None):
        if record == self.records[self.broken]:
            raise UserError(f"{record.name}.tif: truncated")
        return self.source.read_image(record, window)


@pytest.fixture(scope="module")
def mixture():
    """Two domains, one with an image that cannot be read."""
    return Mixture(
        (TileIndex(Broken(images("a", 5, 0), 2), 8), TileIndex(images("b", 2, 1), 8)), weights=(2.0, 0.7)
    )


@pytest.fixture(scope="module")
def geotiffs(tmp_path_factory):
    """Three images with nodata, two read by window, and one file of polygons over all of them."""
    root = tmp_path_factory.mktemp("geotiffs")
    rng = np.random.default_rng(0)
    for name, size in {"a": (40, 56), "b": (24, 31), "c": (70, 41)}.items():
        pixels = rng.integers(1, 9000, (*size, 3)).astype(np.int16)
        pixels[:4] = -9999
        blocks = {"tiled": True, "blockxsize": 16, "blockysize": 16} if name != "b" else {}
        write_raster(root / f"{name}.tif", pixels, nodata=-9999, **blocks, **PLACE)
    east, north = PLACE["transform"] * (0, 0)

    def square(col, row, side):
        corners = ((0, 0), (0, side), (side, side), (side, 0))
        return [(east + 10 * (col + right), north - 10 * (row + down)) for right, down in corners]

    fields = [("wheat", square(0, 0, 64)), ("lake", square(7.3, 9.1, 22)), ("lake", square(30.6, 2.2, 9))]
    write_polygons(root / "fields.geojson", fields, "kind", 32633)
    source = GeoTiffTiles(
        root, bands=("z", "y", "x"), file_bands=("x", "y", "z"), classes=2, cache_bytes=20_000,
        labels=VectorLabels(ValueCode(("wheat", "lake")), "kind"), image_glob="*.tif",
        mask_template="fields.geojson",
    )  # fmt: skip
    assert {record.by_window for record in source.records} == {True, False}
    return TileIndex(source, 8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Tiles in shards that `spectralmoe prepare` wrote."""
    root = tmp_path_factory.mktemp("prepared")
    tiny_dataset.write_source(root / "source")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "PIECE_TILES", 5)
        prepare(tiny_dataset.TINY, root / "source", root / "out", workers=0, console=Console(quiet=True))
    return TileIndex(PreparedTiles(root / "out", splits=("train",), bands=("red", "nir", "blue")), 8)


def digests(source, count, augment=AUGMENT, **settings):
    """A hash of every array of every batch, and the batches."""
    stream = train_batches(source, augment, **{"batch_size": 4, "seed": 3, "corrupt": "skip", **settings})
    try:
        batches = list(islice(stream, count))
    finally:
        stream.close()
    assert multiprocessing.active_children() == []
    assert all(batch.keys() == {"image", "label"} for batch in batches)
    return [
        tuple(hashlib.sha256(batch[key].tobytes()).hexdigest() for key in batch) for batch in batches
    ], batches


@pytest.mark.parametrize(
    ("steps", "workers", "resumed", "hosts"),
    [
        pytest.param(50, (2,), ((2, 2),), (2,), id="two"),
        pytest.param(200, (1, 3), ((0, 2), (0, 5)), (4,), id="all others", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", ["mixture", "geotiffs", "prepared"])
def test_batches_are_the_same_for_any_workers_threads_hosts_and_start(
    kind, steps, workers, resumed, hosts, request
):
    """For 0 to 3 workers, for 1, 2 and 4 hosts, and from halfway with other numbers of workers and threads.

    Sources: arrays of two domains with an image that cannot be read, GeoTIFFs with polygons, prepared tiles.
    """
    settings = {"augment": AUGMENT} if kind == "mixture" else {"augment": SIXTEEN_BITS, "corrupt": "stop"}
    draw = partial(digests, request.getfixturevalue(kind), **settings)
    half = steps // 2
    straight, batches = draw(steps)
    assert len(set(straight)) == steps
    for count in workers:
        assert draw(steps, workers=count)[0] == straight
    for count, threads in resumed:
        assert draw(steps - half, workers=count, threads=threads, start_step=half)[0] == straight[half:]
    for count in hosts:
        parts = [draw(steps, host_index=host, host_count=count)[1] for host in range(count)]
        for number, batch in enumerate(batches):
            for key in batch:
                joined = np.concatenate([part[number][key] for part in parts])
                assert joined.tobytes() == batch[key].tobytes()


def test_class_balanced_batches_are_the_same_for_any_workers():
    source = images("a", 4, 0)
    source.class_pixels = np.array([[400, 60, 20], [480, 0, 0], [300, 180, 0], [480, 0, 0]])
    balanced = ClassBalancedIndex(source, 8, temperature=0.1)
    assert digests(balanced, 20)[0] == digests(balanced, 20, workers=2)[0]


def name(tile, _rng):
    return {
        "domain": np.array(tile.record.domain == "a"),
        "cell": np.array(hash((tile.record.name, tile.cell))),
    }


def test_a_mixture_keeps_its_weights_and_epochs():
    a, b = TileIndex(images("a", 5, 0), 8), TileIndex(images("b", 2, 1), 8)
    stream = train_batches(Mixture((a, b), (3.0, 1.0)), name, batch_size=1, seed=0)
    drawn = list(islice(stream, 4 * len(a)))
    stream.close()
    from_a = np.array([bool(batch["domain"][0]) for batch in drawn])
    shares = np.cumsum(from_a) - 0.75 * np.arange(1, len(drawn) + 1)
    assert np.abs(shares).max() <= 1
    cells = [batch["cell"][0] for batch, is_a in zip(drawn, from_a, strict=True) if is_a]
    for epoch in range(3):
        assert len(set(cells[epoch * len(a) : (epoch + 1) * len(a)])) == len(a)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, float("nan")), (1.0, float("inf"))])
def test_bad_weights_are_rejected(weights):
    part = TileIndex(images("a", 1, 0), 8)
    with pytest.raises(UserError, match=r"data\.weights = "):
        train_batches(Mixture((part, part), weights), AUGMENT, batch_size=2, seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_tiles_are_named_once_and_counted(mixture, workers, caplog):
    digests(mixture, 30, workers=workers)
    told = [entry.getMessage() for entry in caplog.records]
    assert told.count("skipped: a/2.tif: truncated") == 1
    (summary,) = [line for line in told if "were skipped" in line]
    count = int(summary.split()[0])
    assert 120 * 0.74 / 5 * 0.5 < count < 120 * 0.74 / 5 * 2  # a fifth of the tiles of a, which are 74 %


@pytest.mark.parametrize("workers", [0, 2])
def test_by_default_the_first_failure_stops_loading(mixture, workers):
    with pytest.raises(UserError) as error:
        digests(mixture, 50, workers=workers, corrupt="stop")
    assert str(error.value) == "a/2.tif: truncated"
    assert multiprocessing.active_children() == []


def test_a_source_of_only_broken_files_ends_with_an_error():
    broken = TileIndex(Broken(images("a", 1, 0), 0), 8)
    with pytest.raises(UserError, match=r"20 tiles in a row cannot be read, the last: a/0\.tif: truncated"):
        digests(broken, 1)


def test_an_unknown_policy_is_rejected(mixture):
    with pytest.raises(UserError, match=r"data\.corrupt = 'ignore': must be one of stop, skip"):
        digests(mixture, 1, corrupt="ignore")


def kill(tile, rng):
    if rng.random() < 0.1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"x": np.zeros(1)}


def test_a_killed_worker_is_an_error(mixture):
    stream = train_batches(mixture, kill, batch_size=4, seed=0, workers=2)
    with pytest.raises(UserError, match=r"worker process .* was killed.*data\.workers"):
        list(islice(stream, 100))
    assert multiprocessing.active_children() == []
