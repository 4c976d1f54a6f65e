"""Words of strangers where the processes of a run meet: none counts, and none ends the meeting."""

import contextlib
import re
import socket
import threading
import time

import numpy as np
import pytest

from spectralmoe_jax.parallel.distributed import rendezvous
from tests.fuzzing.outcome import try_all

PIECES = (
    b"spectralmoe", b"Spectralmoe", b" ", b"  ", b"\t", b"0", b"1", b"2", b"3", b"-1", b"+1", b"1e0", b"0x1",
    b"01", b"\xd9\xa1", b"9" * 400, b"\n", b"\r\n", b"\x00", b"\xff\xfe", b"go",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01", b"SSH-2.0-x\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"a" * 3000,
)  # fmt: skip
GREETING = re.compile(rb"spectralmoe 0*1 0*2\r?\n")


def words(count, seed):
    random = np.random.default_rng(seed)
    for _ in range(count):
        said = b"".join(PIECES[place] for place in random.integers(len(PIECES), size=random.integers(0, 7)))
        if not GREETING.fullmatch(said):  # the words of process 1
            yield repr(said)[:60], said


@pytest.mark.parametrize(("seed", "count"), [(0, 80), pytest.param(1, 600, marks=pytest.mark.slow)])
def test_words_of_strangers(seed, count, record_property):
    """One meeting hears them all, and then the process that it waits for."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ended = []

    def process_zero():
        try:
            rendezvous(f"127.0.0.1:{port}", 2, 0, 120)
            ended.append("met")
        except BaseException as error:
            ended.append(repr(error))

    thread = threading.Thread(target=process_zero, daemon=True)
    thread.start()
    kept = contextlib.ExitStack()

    def say(said):
        until = time.monotonic() + 10
        while True:
            try:
                stranger = socket.create_connection(("127.0.0.1", port), 5)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < until
                assert thread.is_alive(), ended
                time.sleep(0.02)
        kept.enter_context(stranger)
        with contextlib.suppress(OSError):  # shown out before the end
            stranger.sendall(said)
        return thread.is_alive()

    with kept:
        try_all(words(count, seed), say, lambda said, goes_on: goes_on and not ended, record_property,
                "words at the meeting's port")  # fmt: skip
        rendezvous(f"127.0.0.1:{port}", 2, 1, 20)
        thread.join(10)
    assert ended == ["met"]
