"""Serve a folder with range requests, as object stores do; every third request fails: range_server.py FOLDER.

Prints its port. The path /requests tells how many requests were answered with ranges.
"""

import contextlib
import functools
import http.server
import re
import subprocess
import sys


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files, whole or in ranges."""

    protocol_version = "HTTP/1.1"
    requests = 0
    ranges = 0

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        if self.path == "/requests":
            self.send(200, str(type(self).ranges).encode(), body=True)
            return
        type(self).requests += 1
        if type(self).requests % 3 == 0:
            self.send(503, b"", body)
            return
        try:
            with open(self.translate_path(self.path), "rb") as file:
                data = file.read()
        except OSError:
            self.send(404, b"", body)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.send(200, data, body)
            return
        type(self).ranges += 1
        start, stop = int(asked[1]), min(int(asked[2] or len(data)), len(data) - 1)
        about = {"Content-Range": f"bytes {start}-{stop}/{len(data)}"}
        self.send(206, data[start : stop + 1], body, about)

    def send(self, status, data, body, headers=()):
        self.send_response(status)
        for name, value in {
            "Accept-Ranges": "bytes",
            "Content-Length": str(len(data)),
            **dict(headers),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(folder):
    """Serve a folder in a process of its own, as GDAL keeps Python's lock while it waits for some answers."""
    command = [sys.executable, __file__, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    handler = functools.partial(Handler, directory=sys.argv[1])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as found:
        print(found.server_port, flush=True)
        found.serve_forever()
