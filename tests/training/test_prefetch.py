"""Double buffering: order, depth, errors and the end."""

import threading
import time

import jax
import numpy as np
import pytest

from spectralmoe_jax import read_ahead as read_ahead_module
from spectralmoe_jax.training.loop import prefetch


class Batches:
    """Counts what was asked for; fails or ends at a number."""

    def __init__(self, fails_at=None, ends_at=None):
        self.asked, self.closed, self.fails_at, self.ends_at = 0, False, fails_at, ends_at

    def __iter__(self):
        return self

    def __next__(self):
        if self.asked == self.ends_at:
            raise StopIteration
        if self.asked == self.fails_at:
            raise OSError("tile 3 is broken")
        self.asked += 1
        return {"sensor": {"image": np.full((2, 3), self.asked - 1, np.uint8)}}

    def close(self):
        self.closed = True


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_order_and_prefetch_depth(ahead):
    source = Batches()
    batches = prefetch(source, ahead)
    assert source.asked == 0
    for number in range(10):
        batch = next(batches)
        deadline = time.monotonic() + 10
        while source.asked < number + ahead and time.monotonic() < deadline:
            time.sleep(0.001)  # a thread asks
        assert source.asked == number + ahead
        assert isinstance(batch["sensor"]["image"], jax.Array)
        assert batch["sensor"]["image"].dtype == np.uint8
        assert (np.asarray(batch["sensor"]["image"]) == number).all()
    assert not source.closed
    batches.close()
    assert source.closed


def test_an_error_is_raised_after_earlier_batches():
    source = Batches(fails_at=3)
    batches = prefetch(source)
    for number in range(3):
        assert next(batches)["sensor"]["image"][0, 0] == number
    with pytest.raises(OSError, match="tile 3 is broken"):
        next(batches)
    assert source.closed


def test_a_finite_stream_yields_all_batches():
    source = Batches(ends_at=5)
    assert len(list(prefetch(source))) == 5
    assert source.closed


def test_a_batch_that_does_not_come_is_waited_for_until_it_should_stop(monkeypatch, caplog):
    """The thread is left alone, as it cannot be ended, and what it draws from is not closed under it."""
    source, never, stops = Batches(), threading.Event(), []

    def place(batch):
        if source.asked == 3:
            never.wait(60)
        return batch

    monkeypatch.setattr(read_ahead_module, "_TIME_TO_CLOSE", 0.1)
    batches = prefetch(source, 1, place, should_stop=lambda: bool(stops))
    assert [int(next(batches)["sensor"]["image"][0, 0]) for _ in range(2)] == [0, 1]
    threading.Timer(0.3, stops.append, (True,)).start()
    begin = time.monotonic()
    assert next(batches, None) is None
    assert 0.2 < time.monotonic() - begin < 20
    assert not source.closed
    assert "did not come within 0.1 s" in caplog.text
    never.set()
