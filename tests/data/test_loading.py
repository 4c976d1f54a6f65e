"""Loading as a whole: one order for any machine, shares of a mixture, and what happens on failures."""

import hashlib
import multiprocessing
import os
import signal
from itertools import islice

import numpy as np
import pytest

from data_pipelines.loader import Mixture, train_batches
from data_pipelines.sources import Arrays, ClassBalancedIndex, TileIndex
from data_pipelines.transforms import Augment
from spectralmoe_jax.errors import UserError

AUGMENT = Augment(8, scale=(0.5, 2.0), turns=True, photometric_bands=(0, 1, 2), gain=0.1)


def images(domain, count, seed):
    rng = np.random.default_rng(seed)
    return Arrays(
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


def digests(source, count, **settings):
    """A hash of every array of every batch, and the batches."""
    stream = train_batches(source, AUGMENT, **{"batch_size": 4, "seed": 3, "corrupt": "skip", **settings})
    try:
        batches = list(islice(stream, count))
    finally:
        stream.close()
    assert multiprocessing.active_children() == []
    assert all(batch.keys() == {"image", "label"} for batch in batches)
    return [
        tuple(hashlib.sha256(batch[key].tobytes()).hexdigest() for key in batch) for batch in batches
    ], batches


def test_two_hundred_batches_are_the_same_everywhere(mixture):
    """For 0 to 3 workers, for 1, 2 and 4 hosts, and from step 100 on with another number of workers."""
    straight, batches = digests(mixture, 200)
    assert len(set(straight)) == 200
    for workers in (1, 2, 3):
        assert digests(mixture, 200, workers=workers)[0] == straight
    for workers in (0, 2):
        assert digests(mixture, 100, workers=workers, start_step=100)[0] == straight[100:]
    for hosts in (2, 4):
        parts = [digests(mixture, 200, host_index=host, host_count=hosts)[1] for host in range(hosts)]
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


def test_a_mixture_keeps_to_its_weights_and_its_epochs():
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
def test_bad_weights_are_refused(weights):
    part = TileIndex(images("a", 1, 0), 8)
    with pytest.raises(UserError, match=r"data\.weights="):
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
def test_by_default_the_first_failure_stops(mixture, workers):
    with pytest.raises(UserError) as error:
        digests(mixture, 50, workers=workers, corrupt="stop")
    assert str(error.value) == "a/2.tif: truncated"
    assert multiprocessing.active_children() == []


def test_a_source_of_nothing_but_broken_files_is_no_endless_loop():
    broken = TileIndex(Broken(images("a", 1, 0), 0), 8)
    with pytest.raises(UserError, match=r"20 tiles in a row cannot be read, the last: a/0\.tif: truncated"):
        digests(broken, 1)


def test_an_unknown_policy_is_refused(mixture):
    with pytest.raises(UserError, match=r"data\.corrupt='ignore': choose from stop, skip"):
        digests(mixture, 1, corrupt="ignore")


def kill(tile, rng):
    if rng.random() < 0.1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"x": np.zeros(1)}


def test_a_killed_worker_is_an_error_and_no_wait(mixture):
    stream = train_batches(mixture, kill, batch_size=4, seed=0, workers=2)
    with pytest.raises(UserError, match=r"worker process .* was killed.*data\.workers"):
        list(islice(stream, 100))
    assert multiprocessing.active_children() == []
