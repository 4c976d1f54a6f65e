"""A benchmark small enough to prepare many times, in the form of a published one."""

import os
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning

from data_pipelines.datasets.dataset import Dataset, Listing, Pair
from data_pipelines.prepare import plan
from data_pipelines.prepare import prepare as run
from data_pipelines.records import Window
from spectralmoe_jax.cli.main import main

SHAPES = {"a": (40, 48), "b": (16, 16), "c": (30, 20), "d": (33, 16), "e": (16, 40)}
IMAGES = {
    ("train", "north"): ("a", "b", "c"),
    ("train", "süd ost"): ("d",),
    ("test", "west"): ("a", "e"),
}


def write_source(root: Path, seed: int = 0) -> dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray]]:
    """Writes `<split>/<domain>/<name>.tif` and `<name>_label.tif`; returns what was written.

    Pixels (H, W, 4) int16, some of them negative; labels 0, 1, 2 or 255; a strip of each image holds nothing.
    """
    rng = np.random.default_rng(seed)
    written = {}
    for (split, domain), names in IMAGES.items():
        for name in names:
            height, width = SHAPES[name]
            image = rng.integers(-300, 9000, (height, width, 4)).astype(np.int16)
            label = rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width), p=(0.6, 0.3, 0.02, 0.08))
            image[:3], label[:3] = 0, 255
            (root / split / domain).mkdir(parents=True, exist_ok=True)
            _write(root / split / domain / f"{name}.tif", image)
            _write(root / split / domain / f"{name}_label.tif", label[..., None])
            written[split, domain, name] = image, label
    return written


def find(root: Path) -> Listing:
    pairs, missing = [], []
    for split, domain in IMAGES:
        for image in sorted((root / split / domain).glob("?.tif")):
            label = image.with_name(f"{image.stem}_label.tif")
            if label.is_file():
                pairs.append(Pair(split, domain, image.stem, image, label))
            else:
                missing.append(f"{label} is not there")
    return Listing(tuple(reversed(pairs)), tuple(missing))  # the order is not prepare's to rely on


def cells(pair: Pair) -> tuple[Window, ...]:
    height, width = SHAPES[pair.name]
    return tuple(Window(row, col, 16, 16) for row in range(0, height, 16) for col in range(0, width, 16))


def read_tile(pair: Pair, cell: Window) -> tuple[np.ndarray, np.ndarray]:
    from data_pipelines.readers.raster_file import read_mask, read_pixels

    time.sleep(float(os.environ.get("TINY_SECONDS_A_TILE", 0)))
    if os.environ.get("TINY_KILLED_AT") == pair.name:
        os.kill(os.getpid(), signal.SIGKILL)
    height, width = SHAPES[pair.name]
    inside = Window(*cell[:2], min(16, height - cell.row), min(16, width - cell.col))
    edge = ((0, 16 - inside.height), (0, 16 - inside.width))
    pixels = np.pad(read_pixels(pair.image, inside)[0], (*edge, (0, 0)))
    return pixels.astype(np.int16), np.pad(
        read_mask(pair.label, inside)[0][..., 0], edge, constant_values=255
    )


TINY = Dataset(
    name="tiny",
    title="Tiny",
    citation="none",
    licence="CC0 1.0",
    homepage="example.org",
    download="nowhere.",
    classes=("meadow", "wood", "pond"),
    palette=((150, 200, 80), (20, 90, 40), (60, 120, 220)),
    bands=("nir", "red", "green", "blue"),
    sensors={"north": "gaofen2", "süd ost": "gaofen2", "west": "planetscope"},
    splits=("train", "test"),
    source=("train",),
    target=("test",),
    tile=16,
    dtype=np.int16,
    find=find,
    cells=cells,
    read_tile=read_tile,
    counts={"train": 4, "test": 2},
)


def tiles(written) -> dict[str, list[tuple[str, str, int, int, np.ndarray, np.ndarray]]]:
    """(domain, name, row, col, image, label) of every tile of each split, cut with numpy alone."""
    cut = {"train": [], "test": []}
    for (split, domain, name), (image, label) in sorted(written.items()):
        height, width = label.shape
        for row in range(0, height, 16):
            for col in range(0, width, 16):
                pixels = np.zeros((16, 16, 4), np.int16)
                ids = np.full((16, 16), 255, np.uint8)
                part = image[row : row + 16, col : col + 16]
                pixels[: len(part), : part.shape[1]] = part
                ids[: len(part), : part.shape[1]] = label[row : row + 16, col : col + 16]
                cut[split].append((domain, name, row, col, pixels, ids))
    return cut


def small_pieces() -> None:
    """Makes pieces so small that the tiny benchmark has several."""
    plan.PIECE_TILES = 5


def prepare_and_die(source: str, out: str, workers: int, steps: int, after: bool) -> None:
    """Prepares, and kills this process around its `steps`-th renaming."""
    small_pieces()
    rename, done = os.replace, [0]

    def replace(*paths) -> None:
        done[0] += 1
        if done[0] == steps and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        rename(*paths)
        if done[0] == steps:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace
    run.prepare(TINY, source, out, workers=workers)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def folders(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_dir())


def assert_same(out: Path, undisturbed) -> None:
    expected = contents(undisturbed[2])
    found = contents(out)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert folders(out) == folders(undisturbed[2]) == ["tiny", "tiny/1.0.0"]


def _write(path: Path, pixels: np.ndarray) -> None:
    height, width, count = pixels.shape
    shape = {"height": height, "width": width, "count": count, "dtype": pixels.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", compress="deflate", **shape) as dataset:
            dataset.write(np.moveaxis(pixels, -1, 0))


def command_line(*argv: str) -> int:
    """`spectralmoe` with the tiny benchmark under its name."""
    small_pieces()
    run.get_dataset = {"tiny": TINY}.__getitem__
    return main(argv)


if __name__ == "__main__":
    status = command_line(*sys.argv[1:])
    assert not {"tensorflow", "jax"} & sys.modules.keys()
    sys.exit(status)
