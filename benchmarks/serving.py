"""Load test of `spectralmoe serve`: a bounded number of requests from a few clients on this machine.

Starts the server on a free port of the loopback interface, posts one image again and again, each client one
request at a time over a connection that it keeps, and asks the server to end with SIGTERM while the last
requests are waiting. Prints how many answers were lost, their latencies and the throughput.

  python benchmarks/serving.py runs/quickstart SCENE.tif
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

MOST_REQUESTS, MOST_CLIENTS = 10_000, 64
START_SECONDS = 600  # to load and compile the model


class Answer(NamedTuple):
    """Status of an answer, or 0 without one; the seconds that it took; its size in bytes."""

    status: int
    seconds: float
    size: int


class Client:
    """One client, whose connection is made anew when the server closes it."""

    def __init__(self, port: int, path: str, timeout: float):
        self.path = path
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)

    def post(self, image: bytes) -> Answer:
        """Post an image and read the whole answer; a request without an answer is lost, not repeated."""
        began = time.perf_counter()
        try:
            self.connection.request("POST", self.path, image, {"Content-Type": "application/octet-stream"})
            response = self.connection.getresponse()
            size = len(response.read())
        except (OSError, http.client.HTTPException):
            self.connection.close()
            return Answer(0, time.perf_counter() - began, 0)
        return Answer(response.status, time.perf_counter() - began, size)


def start(run: str, timeout: float, queue: int, said: Any) -> tuple[subprocess.Popen[str], int]:
    """Start a server and wait until it accepts connections; returns its process and port."""
    limits = ["--queue", str(queue), "--timeout", str(timeout)]
    command = [sys.executable, "-m", "spectralmoe_jax", "serve", run, "--port", "0", *limits]
    process = subprocess.Popen(command, stdout=said, stderr=said, text=True)
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        found = re.search(r"http://127\.0\.0\.1:(\d+)/docs", Path(said.name).read_text())
        if found:
            return process, int(found[1])
        time.sleep(0.1)
    process.kill()
    raise SystemExit(f"the server did not start:\n{Path(said.name).read_text()[-2000:]}")


def load(port: int, path: str, image: bytes, requests: int, clients: int, timeout: float) -> list[Answer]:
    """Post an image `requests` times from `clients` threads, each as soon as its last answer is there."""
    shares = [requests // clients + (number < requests % clients) for number in range(clients)]

    def run(share: int) -> list[Answer]:
        """Post one client's share."""
        client = Client(port, path, timeout)
        with contextlib.closing(client.connection):
            return [client.post(image) for _ in range(share)]

    with ThreadPoolExecutor(clients) as threads:
        return [answer for answers in threads.map(run, shares) for answer in answers]


def drain(process: subprocess.Popen[str], port: int, path: str, image: bytes, clients: int) -> list[Answer]:
    """Post from every client at once, and send SIGTERM as soon as all requests have been sent."""

    def sent() -> Client:
        """Send one request, and leave its answer."""
        client = Client(port, path, 600)
        client.connection.request("POST", path, image, {"Content-Type": "application/octet-stream"})
        return client

    waiting = [sent() for _ in range(clients)]
    probe = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    probe.request("GET", "/healthz")  # answered after those before it have been accepted
    probe.getresponse().read()
    process.send_signal(signal.SIGTERM)
    answers = []
    for client in waiting:
        with contextlib.closing(client.connection), contextlib.suppress(OSError, http.client.HTTPException):
            response = client.connection.getresponse()
            answers.append(Answer(response.status, 0.0, len(response.read())))
    return answers


def report(answers: list[Answer], seconds: float) -> None:
    """Print the figures of a load."""
    good = sorted(answer.seconds for answer in answers if answer.status == 200)
    refused = sum(answer.status == 429 for answer in answers)
    lost = len(answers) - len(good) - refused
    print(f"requests {len(answers)}, maps {len(good)}, refused with 429 {refused}, lost {lost}")
    if len(good) > 1:
        cuts = statistics.quantiles(good, n=100, method="inclusive")
        print(f"p50 {1e3 * cuts[49]:.0f} ms, p95 {1e3 * cuts[94]:.0f} ms, longest {1e3 * good[-1]:.0f} ms")
    print(f"{len(good) / seconds:.1f} maps/s in {seconds:.1f} s", flush=True)


def main() -> int:
    """Run the load test; status 1 if an answer was lost or the server did not end in order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or weight files")
    parser.add_argument("image", metavar="IMAGE", type=Path, help="GeoTIFF, PNG or JPEG to post")
    parser.add_argument("--requests", type=int, default=200, help=f"at most {MOST_REQUESTS}")
    parser.add_argument("--clients", type=int, default=8, help=f"at most {MOST_CLIENTS}")
    parser.add_argument("--queue", type=int, default=32, help="of the server")
    parser.add_argument("--format", choices=("tif", "png", "geojson"), default="tif", help="of the answers")
    parser.add_argument("--timeout", type=float, default=60, help="seconds for a request")
    arguments = parser.parse_args()
    if not 1 <= arguments.requests <= MOST_REQUESTS or not 1 <= arguments.clients <= MOST_CLIENTS:
        parser.error(f"give 1 to {MOST_REQUESTS} --requests and 1 to {MOST_CLIENTS} --clients")
    image, path = arguments.image.read_bytes(), f"/predict?format={arguments.format}"
    with tempfile.NamedTemporaryFile("w") as said:
        process, port = start(arguments.run, arguments.timeout, arguments.queue, said)
        try:
            load(port, path, image, arguments.clients, arguments.clients, arguments.timeout)  # warm up
            print(f"{len(image) / 1e6:.2f} MB an image, {arguments.clients} clients, {arguments.format}")
            began = time.perf_counter()
            wanted = (arguments.requests, arguments.clients, arguments.timeout)
            answers = load(port, path, image, *wanted)
            report(answers, time.perf_counter() - began)
            last = drain(process, port, path, image, arguments.clients)
            status = process.wait(120)
        finally:
            process.kill()
    drained = sum(answer.status == 200 for answer in last)
    print(f"SIGTERM with {arguments.clients} requests waiting: {drained} maps, exit status {status}")
    lost = any(answer.status not in (200, 429) for answer in answers)
    return int(lost or drained != min(arguments.clients, arguments.queue) or status != 0)


if __name__ == "__main__":
    sys.exit(main())
