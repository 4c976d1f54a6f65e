"""Map one large scene from a local file and from a server: speed, memory, and equality of the maps.

The scene has 13 bands of 16 bits in compressed tiles, the model is that of configs/sentinel2_landcover.py
with random weights, patches of 16 pixels and the linear head. The server is a process on this machine that
answers range requests. Each map is made in a process of its own, whose largest memory is printed.

  python benchmarks/large_scene.py --workdir runs/large_scene
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.inference.model import Model
from spectralmoe_jax.models.build import make_segmenter, segmenter_config

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "sentinel2_landcover.py"
_BLOCK = 512


class Ranges(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, by range requests."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """Tell the size of a file."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """Send a range of a file."""
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = Path(self.translate_path(self.path))
        size = path.stat().st_size if path.is_file() else -1
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = (int(asked[1]), min(int(asked[2] or size - 1), size - 1)) if asked else (0, size - 1)
        self.send_response(404 if size < 0 else 206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(max(stop - start + 1, 0)))
        if asked and size >= 0:
            self.send_header("Content-Range", f"bytes {start}-{stop}/{size}")
        self.end_headers()
        if body and size >= 0:
            with path.open("rb") as file:
                file.seek(start)
                self.wfile.write(file.read(stop - start + 1))

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def serve(folder: str) -> None:
    """Serve a folder on a free port, which is printed, until the process is ended."""
    handler = functools.partial(Ranges, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


def write_scene(path: Path, side: int, bands: tuple[str, ...]) -> None:
    """Write a scene of smooth hills and some noise, block row by block row."""
    profile = {
        "driver": "GTiff", "height": side, "width": side, "count": len(bands), "dtype": "uint16",
        "crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 10, 10), "nodata": 0, "tiled": True,
        "blockxsize": _BLOCK, "blockysize": _BLOCK, "compress": "deflate", "zlevel": 1, "predictor": 2,
        "interleave": "band", "bigtiff": "yes",
    }  # fmt: skip
    rng = np.random.default_rng(0)
    columns = np.arange(side) / 700
    with rasterio.open(path, "w", **profile) as sink:
        sink.descriptions = bands
        for first in range(0, side, _BLOCK):
            rows = np.arange(first, min(first + _BLOCK, side))[:, None] / 900
            for band in range(len(bands)):
                hills = 1500 + 800 * np.sin(rows + band) * np.cos(columns * (1 + band / 13))
                noisy = (hills + rng.integers(0, 64, hills.shape)).astype(np.uint16)
                sink.write(noisy, band + 1, window=Window(0, first, side, len(rows)))


def map_scene(scene: str, output: Path, window: int) -> dict[str, Any]:
    """Map a scene in this process; return seconds and the largest memory in GB."""
    config = load_config(str(CONFIG)).replaced({
        "evaluate.window": window, "evaluate.overlap": 16, "model.head": {"kind": "linear"},
        "model.visual.patch_size": 16, "model.remat": "none",
    })  # fmt: skip
    model = Model(make_segmenter(segmenter_config(config), 0), config)
    model.predict(np.ones((window, window, len(config.bands)), np.float32))
    began = time.monotonic()
    done = model.map(scene, output)
    seconds = time.monotonic() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # kilobytes on Linux
    return {"seconds": seconds, "megapixels": done["pixels"] / 1e6, "gigabytes": memory}


def main() -> None:
    """Write the scene, map it both ways, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--side", type=int, default=10_980)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--map", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(str(given.workdir))
        return
    if given.map:
        print(json.dumps(map_scene(given.map[0], Path(given.map[1]), given.window)))
        return
    given.workdir.mkdir(parents=True, exist_ok=True)
    scene = given.workdir / f"scene_{given.side}.tif"
    if not scene.exists():
        write_scene(scene, given.side, tuple(load_config(str(CONFIG)).bands))
    print(f"{scene}: {given.side} x {given.side} pixels, {scene.stat().st_size / 1e9:.2f} GB")
    this = [sys.executable, __file__, "--workdir", str(given.workdir), "--window", str(given.window)]
    with subprocess.Popen([*this, "--serve"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        try:
            places = {"file": str(scene), "server": f"http://127.0.0.1:{port}/{scene.name}"}
            for name, place in places.items():
                output = str(given.workdir / f"map_{name}.tif")
                run = subprocess.run([*this, "--map", place, output], stdout=subprocess.PIPE, check=True)
                found = json.loads(run.stdout.splitlines()[-1])
                speed = found["megapixels"] / found["seconds"]
                print(
                    f"{name:<8}{found['seconds']:8.1f} s {speed:7.3f} Mpixel/s {found['gigabytes']:6.2f} GB"
                )
        finally:
            server.kill()
    maps = [rasterio.open(given.workdir / f"map_{name}.tif").read(1) for name in places]
    print("maps are equal" if np.array_equal(*maps) else "maps DIFFER")


if __name__ == "__main__":
    main()
