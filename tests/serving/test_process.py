"""`spectralmoe serve` as a process: many clients, bad bodies, and an end in order."""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest
import rasterio
from rasterio.io import MemoryFile

from tests.serving.images import OLD_RUN, file_of, pixels_of

pytestmark = pytest.mark.slow
pytest.importorskip("fastapi", reason="needs the extra `serve`")

SCENE = (OLD_RUN / "scene.tif").read_bytes()
NAMES = ("blue", "green", "red", "nir")


class Server(NamedTuple):
    """A process that serves, its port, and the folder of its temporary files."""

    process: subprocess.Popen
    port: int
    temporary: os.PathLike

    def ask(self, method, path, body=None, **headers):
        """The status and the body of an answer, through a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Content-Type": "image/tiff", **headers})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def accepts(self):
        """Whether a new connection is accepted."""
        with contextlib.suppress(ConnectionRefusedError):
            self.connect().close()
            return True
        return False

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@pytest.fixture
def server(tmp_path):
    shutil.unpack_archive(OLD_RUN / "runs.tar.xz", tmp_path)
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-m", "spectralmoe_jax", "serve", str(tmp_path / "run"), "--port", "0"]
    limits = ["--max-mb", "2", "--timeout", "10", "--queue", "16"]
    with (tmp_path / "said").open("w") as said:
        environment = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
        process = subprocess.Popen([*command, *limits], stdout=said, stderr=said, env=environment)
    try:
        until = time.monotonic() + 120
        while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/docs", (tmp_path / "said").read_text())):
            assert process.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        yield Server(process, int(found[1]), tmp_path / "temporary")
    finally:
        process.kill()
        process.wait()


def pixels(data):
    with MemoryFile(data) as file, file.open() as dataset:
        return dataset.read(1)


def test_many_clients(server):
    """40 requests from 8 clients: every answer is the map that an earlier version made."""
    with rasterio.open(OLD_RUN / "map.tif") as dataset:
        wanted = dataset.read(1)
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: server.ask("POST", "/predict", SCENE), range(40)))
    assert [status for status, _ in answers] == [200] * 40
    for _, data in answers:
        np.testing.assert_array_equal(pixels(data), wanted)
    assert list(server.temporary.iterdir()) == []


def test_bad_bodies(server):
    """Malformed, oversized and slow: an answer of the kind 4xx each, and others are served meanwhile."""
    with server.connect() as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nII*")
        slow.settimeout(0.5)
        answer, until = b"", time.monotonic() + 60
        while not answer:
            assert time.monotonic() < until
            status, data = server.ask("POST", "/predict", SCENE)
            assert status == 200
            slow.sendall(b"\0")
            with contextlib.suppress(TimeoutError):
                answer = slow.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408 ")
    for body in (b"nonsense", SCENE[:2000], SCENE[:-500]):
        status, data = server.ask("POST", "/predict", body)
        assert status == 422
        assert "\n" not in json.loads(data)["detail"]
    # of any size: the answer is read although the client sends everything first
    for size in (2_000_001, 30_000_000):
        assert server.ask("POST", "/predict", bytes(size))[0] == 413
    assert server.ask("POST", "/predict?format=jpg", bytes(30_000_000))[0] == 422
    pieces = (bytes(100_000) for _ in range(100))  # sent in chunks
    assert server.ask("POST", "/predict", pieces)[0] == 413
    with server.connect() as malformed:
        malformed.sendall(b"no request at all\r\n\r\n")
        assert malformed.recv(4096).startswith(b"HTTP/1.1 400 ")
    with server.connect() as gone:  # in the middle of its body
        gone.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nII*")
    assert server.ask("GET", "/healthz")[0] == 200
    until = time.monotonic() + 8  # below --timeout: it is noticed that the client has gone
    while list(server.temporary.iterdir()):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_sigterm_drains(server, tmp_path):
    """Requests that are waiting get their maps, new connections are refused, and the status is 0."""
    image = file_of(tmp_path, pixels_of(330, 330, 4, np.uint16), descriptions=NAMES)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(image)}\r\n\r\n"
    waiting = [server.connect() for _ in range(6)]
    for connection in waiting:
        connection.sendall(head.encode() + image)
    assert server.ask("GET", "/healthz")[0] == 200  # those before it have been accepted
    server.process.send_signal(signal.SIGTERM)
    until = time.monotonic() + 30
    while server.accepts():
        assert time.monotonic() < until
        time.sleep(0.05)
    for connection in waiting:
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 200
        assert pixels(answer.read()).shape == (330, 330)
        connection.close()
    assert server.process.wait(60) == 0
    assert list(server.temporary.iterdir()) == []
