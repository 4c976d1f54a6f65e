"""Windows of several requests in one call of the model."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra `serve`")

from spectralmoe_jax.serving import window_queue
from spectralmoe_jax.serving.window_queue import OutOfTimeError, WindowQueue

FAR = time.monotonic() + 3600


class Slow:
    """A model whose first call waits for leave, and which remembers its calls."""

    def __init__(self):
        self.calls, self.leave = [], threading.Event()

    def __call__(self, tiles):
        self.calls.append(tiles.copy())
        assert self.leave.wait(20)
        if (tiles == 13).any():
            raise ValueError("thirteen")
        return 2.0 * tiles


def windows(number, count=1, dtype=np.uint8):
    return np.full((count, 4, 4, 2), number, dtype)


def ask_all(queue, model, asked):
    """Ask from a thread each, the first alone; the model goes on when all have arrived."""
    with ThreadPoolExecutor(len(asked)) as threads:
        jobs = [threads.submit(queue.until(FAR), asked[0])]
        until = time.monotonic() + 20
        while not model.calls:
            assert time.monotonic() < until
            time.sleep(0.005)
        jobs += [threads.submit(queue.until(FAR), tiles) for tiles in asked[1:]]
        while queue._arriving.qsize() < len(asked) - 1:
            assert time.monotonic() < until
            time.sleep(0.005)
        model.leave.set()
        return jobs


@pytest.fixture
def model():
    return Slow()


@pytest.fixture
def queue(model):
    queue = WindowQueue(model, 4)
    yield queue
    model.leave.set()
    queue.close()
    assert not queue.is_alive


def test_requests_share_a_call(queue, model):
    """What waits while the model is busy goes into one call, filled up to a power of two."""
    jobs = ask_all(queue, model, [windows(1), windows(2), windows(3, 2)])
    for job, wanted in zip(jobs, (windows(1), windows(2), windows(3, 2)), strict=True):
        np.testing.assert_array_equal(job.result(), 2.0 * wanted)
    assert [call.shape[0] for call in model.calls] == [1, 4]
    assert sorted(model.calls[1][:3, 0, 0, 0]) == [2, 3, 3]


def test_a_call_has_one_type_and_no_more_than_a_batch(queue, model):
    asked = [windows(1), windows(2, 3), windows(3, 3), windows(4.5, 1, np.float32), windows(5)]
    jobs = ask_all(queue, model, asked)
    for job, wanted in zip(jobs, asked, strict=True):
        np.testing.assert_array_equal(job.result(), 2.0 * wanted)
    assert max(len(call) for call in model.calls) == 4
    assert [call.dtype for call in model.calls].count(np.float32) == 1


def test_one_request_pays_for_its_own_windows_alone(queue, model):
    jobs = ask_all(queue, model, [windows(1), windows(13), windows(3)])
    np.testing.assert_array_equal(jobs[2].result(), 2.0 * windows(3))
    with pytest.raises(ValueError, match="thirteen"):
        jobs[1].result()


def test_windows_that_do_not_fit_in_memory(queue, model, monkeypatch):
    """Their request fails, and the thread goes on."""
    model.leave.set()

    class Full:
        repeat, ceil = np.repeat, np.ceil

        @staticmethod
        def concatenate(*_):
            raise MemoryError("no room")

    monkeypatch.setattr(window_queue, "np", Full)
    with pytest.raises(MemoryError, match="no room"):
        queue.until(time.monotonic() + 5)(windows(1))
    monkeypatch.undo()
    np.testing.assert_array_equal(queue.until(FAR)(windows(3)), 2.0 * windows(3))


def test_time_is_over(queue, model):
    """A request gives up at its deadline; what it asked for is not computed any more."""
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(queue.until(FAR), windows(1))
        while not model.calls:
            time.sleep(0.005)
        with pytest.raises(OutOfTimeError):
            queue.until(time.monotonic() + 0.05)(windows(7))
        model.leave.set()
        first.result()
    np.testing.assert_array_equal(queue.until(FAR)(windows(3)), 2.0 * windows(3))
    assert not any((call == 7).any() for call in model.calls)


def test_programs_are_compiled_for_few_numbers_of_windows(queue, model):
    model.leave.set()
    queue.compile(4, 2, np.uint8)
    assert [call.shape for call in model.calls] == [(1, 4, 4, 2), (2, 4, 4, 2), (4, 4, 4, 2)]
