"""The processes of a run meet at a port, whatever strangers say there."""

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest

from spectralmoe_jax.errors import UserError
from spectralmoe_jax.parallel.distributed import bind_address, rendezvous


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def met(address, processes, process, time_limit):
    """What a thread that meets the others came to."""
    outcome: list[object] = []

    def run():
        try:
            rendezvous(address, processes, process, time_limit)
            outcome.append("met")
        except UserError as error:
            outcome.append(str(error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, outcome


def outcomes(meetings, limit=10):
    for thread, _ in meetings:
        thread.join(limit)
    return [outcome[0] for _, outcome in meetings]


def test_processes_meet_in_any_order_and_ignore_strangers():
    address = f"127.0.0.1:{free_port()}"
    meetings = [met(address, 3, process, 10) for process in (2, 0)]
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 1) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\r\n")
            break
        except OSError:
            time.sleep(0.05)
    meetings.append(met(address, 3, 1, 10))
    assert outcomes(meetings) == ["met"] * 3


def test_processes_name_the_one_that_is_missing():
    address = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    said = outcomes([met(address, 4, process, 1) for process in (0, 1, 3)])
    assert time.monotonic() - began < 4
    assert set(said) == {
        "process 2 of 4 did not report within 1 s: see that all were started, with the same count, "
        "and reach the coordinator"
    }


def test_processes_with_different_counts():
    address = f"127.0.0.1:{free_port()}"
    said = outcomes([met(address, 2, 0, 2), met(address, 3, 1, 2)])
    assert all(
        line.startswith("process 1 was started as one of 3 processes, process 0 as one of 2: see that")
        for line in said
    )


def test_a_port_in_use():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"^port {port} of the coordinator is taken on this host"):
            rendezvous(f"127.0.0.1:{port}", 2, 0, 1)


def connected(port, words=b""):
    """Returns a connection on which something was said, once somebody listens."""
    deadline = time.monotonic() + 5
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port), 1)
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    connection.sendall(words)
    return connection


STRANGERS = (
    b"", b"\n", b"spectralmoe", b"spectralmoe x 2\n", b"spectralmoe 7 2\n", b"spectralmoe 0 2\n",
    b"spectralmoe -1 2\n", b"spectralmoe 2 2\n", b"spectralmoe 1 2 3\n", b"spectralmoe 1 3\n",
    b"spectralmoe 1 " + b"9" * 5000 + b"\n", "spectralmoe \u0661 2\n".encode(), b"\xff" * 100_000,
    b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n", b"spectralmoe 1 2\nspectralmoe 1 2\n", b"spectralmoe 1_0 2\n",
)  # fmt: skip


@pytest.mark.parametrize("words", STRANGERS, ids=lambda words: repr(words[:20]))
def test_the_words_of_a_stranger_neither_count_nor_end_the_meeting(words):
    port = free_port()
    meeting = met(f"127.0.0.1:{port}", 2, 0, 10)
    with connected(port) as stranger:
        with contextlib.suppress(OSError):  # it was shown out
            stranger.sendall(words)
        time.sleep(0.05)
        assert meeting[0].is_alive()
        assert outcomes([meeting, met(f"127.0.0.1:{port}", 2, 1, 10)]) == ["met"] * 2


@pytest.mark.parametrize("words", [b"spectralmoe 1 2\n", b"spectralmoe x 2\n"])
def test_who_has_gone_is_not_counted(words):
    port = free_port()
    meeting = met(f"127.0.0.1:{port}", 2, 0, 0.6)
    connected(port, words).close()
    assert outcomes([meeting])[0].startswith("process 1 of 2 did not report within 0.6 s")


def test_a_stranger_that_repeats_the_words_of_a_process_does_not_take_its_place():
    port = free_port()
    meeting = met(f"127.0.0.1:{port}", 3, 0, 10)
    first = connected(port, b"spectralmoe 1 3\n")
    time.sleep(0.1)
    strangers = [connected(port, b"spectralmoe 1 3\n") for _ in range(5)]
    time.sleep(0.1)
    assert outcomes([met(f"127.0.0.1:{port}", 3, 2, 10), meeting]) == ["met"] * 2
    first.settimeout(5)
    assert first.recv(100) == b"go\n"
    for connection in (first, *strangers):
        connection.close()


def test_silent_and_slow_strangers_block_nobody():
    port = free_port()
    meeting = met(f"127.0.0.1:{port}", 2, 0, 20)
    strangers = [connected(port, b"spectral") for _ in range(300)]
    began = time.monotonic()
    assert outcomes([met(f"127.0.0.1:{port}", 2, 1, 20), meeting]) == ["met"] * 2
    assert time.monotonic() - began < 5  # the time that one silent visitor has
    for stranger in strangers:
        stranger.close()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n", b"\xff" * 5000, b"", b"\x1b[2J\n"])
def test_another_program_at_the_port_is_no_answer(answer):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve():
            while True:
                try:
                    visitor, _ = server.accept()
                except OSError:
                    return
                with visitor:
                    visitor.recv(100)
                    visitor.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        said = outcomes([met(f"127.0.0.1:{port}", 2, 1, 1)])[0]
    why = "another program answers there" if answer else "no answer"
    assert said.startswith(f"process 1 of 2 cannot reach process 0 at 127.0.0.1:{port} within 1 s ({why}): ")


def listening(port: int) -> set[str]:
    """The addresses that somebody listens at, as the system lists them in hexadecimal."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if Path(table).exists():
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == "0A" and local.endswith(f":{port:04X}"):
                    found.add(local.rpartition(":")[0])
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs the list of sockets of Linux")
@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", {"0100007F"}),
        ("localhost", {"0100007F", "00000000000000000000000001000000"}),
        ("192.0.2.1", {"0" * 8, "0" * 32}),  # not of this host: a forwarded port
        ("no-such-host.invalid", {"0" * 8, "0" * 32}),
    ],
)
def test_it_listens_at_the_address_that_is_given(host, expected):
    port = free_port()
    meeting = met(f"{host}:{port}", 2, 0, 0.8)
    deadline = time.monotonic() + 5
    while not (found := listening(port)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert found
    assert found <= expected
    assert outcomes([meeting])[0].startswith("process 1 of 2 did not report")
    assert bind_address(f"{host}:{port}") == (
        f"{host}:{port}" if host in ("127.0.0.1", "localhost") else None
    )


def test_a_message_lists_the_first_of_many_missing_processes():
    said = outcomes([met(f"127.0.0.1:{free_port()}", 10_000, 0, 0.2)])[0]
    assert said.startswith("process 1, 2, 3, 4, ")
    assert "20, ... of 10000 did not report" in said
