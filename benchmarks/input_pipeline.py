"""Tiles per second of the input pipeline, compared with a PyTorch DataLoader on the same files.

  python benchmarks/input_pipeline.py                  # three cases, in one process and with 2 workers
  python benchmarks/input_pipeline.py --case flip      # one of them
  python benchmarks/input_pipeline.py --setting "2 threads"  # one way to prepare batches
  python benchmarks/input_pipeline.py --memory         # also memory over 10,000 tiles

The script writes GeoTIFFs of 512 x 512 pixels, smooth textures with noise. The DataLoader does the same as
ours: it reads them through
rasterio and transforms them with OpenCV as the published PyTorch training does: the whole tile is resized,
then cropped by the rule on the share of one class, flipped, and distorted in float32. Its workers are
processes. Ours are processes (`data.workers`) or threads of the training's own process (`data.threads`); "one
process" compares our default, 2 threads, with a DataLoader without workers.

No side keeps decoded data: GDAL's cache of blocks, which serves files that stay open, is limited to a few
megabytes for all sides, workers included, a hundredth of the files. The files themselves are in the system's
page cache. Ratios are medians of rounds in which all sides take turns. PyTorch is optional.

"ratio" compares ours with the column before it. "by CPU" is the same ratio in processor time of a tile (user
and system, the script and its workers); the last column gives these times in milliseconds, in the order of
the sides. Where workers keep all cores busy the two ratios agree; on a shared machine the second is steadier.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import rasterio
from rich.console import Console
from rich.table import Table

from data_pipelines.loader import train_batches
from data_pipelines.readers.image_files import GeoTiffTiles
from data_pipelines.readers.label_codes import ValueCode
from data_pipelines.readers.labels import RasterLabels
from data_pipelines.tiles.tile_index import TileIndex
from data_pipelines.transforms import Augment
from spectralmoe_jax.config.schema import AugmentConfig
from spectralmoe_jax.host_memory import keep_freed_memory

SIDE, CLASSES, BATCH = 512, 6, 8
CACHE_MB = "6"  # holds the blocks of all bands that are read at once, and a few tiles of 4 bands
_AHEAD = 6  # batches that either side may have ready, for each worker

COLUMNS = (
    "case",
    "workers",
    "ours",
    "DataLoader",
    "ratio",
    "by CPU",
    "read",
    "ratio",
    "by CPU",
    "CPU ms per tile",
)


class Setting(NamedTuple):
    """Workers of each side: our processes, our threads in each, and the processes of the other sides."""

    name: str
    workers: int
    threads: int
    theirs: int


SETTINGS = (
    Setting("one process", 0, 2, 0),
    Setting("2 processes", 2, 2, 2),
    Setting("2 threads", 0, 2, 2),
)


class Measured(NamedTuple):
    """Tiles per second, and seconds of processor time per tile."""

    rate: float
    seconds: float


@dataclass(frozen=True)
class Case:
    """Files and their augmentation, the same on both sides."""

    name: str
    bands: tuple[str, ...]
    dtype: type
    files: int
    augment: Augment


CASES = (
    Case(
        "published, 4 bands uint8", ("nir", "red", "green", "blue"), np.uint8, 128,
        Augment(SIDE, AugmentConfig(scale=(0.6, 1.2), flip=0.5), photometric_bands=(1, 2, 3)),
    ),
    Case(
        "flip, 32 bands int16", tuple(f"b{n}" for n in range(32)), np.int16, 24,
        Augment(SIDE, AugmentConfig(scale=(1.0, 1.0), max_class_share=1.0, flip=0.5)),
    ),
    Case(
        "photometric, RGB uint8", ("red", "green", "blue"), np.uint8, 128,
        Augment(SIDE, AugmentConfig(scale=(0.5, 2.0), flip=0.5), photometric_bands=(0, 1, 2)),
    ),
)  # fmt: skip


def main() -> None:
    """Run the chosen cases and settings, and print a table."""
    os.environ["GDAL_CACHEMAX"] = CACHE_MB  # before GDAL is first used, here and in the workers
    keep_freed_memory(one_heap=True)  # as training does; equal for all sides in this process
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--case", help="run the cases whose names contain this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="duration of each measurement")
    parser.add_argument("--setting", choices=[each.name for each in SETTINGS], help="default: all")
    parser.add_argument("--memory", action="store_true", help="also measure memory over 10,000 tiles")
    arguments = parser.parse_args()
    chosen = [case for case in CASES if not arguments.case or arguments.case in case.name]
    console = Console(width=120)
    console.print(
        f"{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f} at the start, batches of {BATCH}"
    )
    table = Table(box=None, pad_edge=False, title="tiles per second", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("case", "workers") else "right")
    with tempfile.TemporaryDirectory() as folder:
        for case in chosen:
            root = write_files(case, Path(folder) / case.name.replace(" ", "_"))
            for setting in SETTINGS:
                if arguments.setting in (None, setting.name):
                    row = compare(case, root, setting, arguments)
                    console.print(f"{case.name}, {setting.name}: {', '.join(row)}", style="dim")
                    table.add_row(case.name, setting.name, *row)
        console.print(table)
        if arguments.memory:
            print_memory(console, chosen[-1], Path(folder) / chosen[-1].name.replace(" ", "_"))


def compare(case: Case, root: Path, setting: Setting, arguments: argparse.Namespace) -> list[str]:
    """Measure one row of the table: medians over the rounds of rates, processor times and their ratios."""
    sides: dict[str, Callable[[], Measured]] = {
        "ours": lambda: measure(ours(case, root, setting), setting.workers, arguments.seconds),
        "theirs": lambda: measure(theirs(case, root, setting.theirs), setting.theirs, arguments.seconds),
        "read": lambda: measure_reading(root, setting.theirs, arguments.seconds),
    }
    try:
        import torch  # noqa: F401
    except ImportError:
        del sides["theirs"]
    rounds = [{side: take() for side, take in sides.items()} for _ in range(arguments.rounds)]

    def median(value: Callable[[dict[str, Measured]], float]) -> float:
        return statistics.median(value(found) for found in rounds)

    row = [f"{median(lambda found: found['ours'].rate):.1f}"]
    for side in ("theirs", "read"):
        if side not in sides:
            row += ["-", "-", "-"]
            continue
        row += [
            f"{median(lambda found: found[side].rate):.1f}",
            f"{median(lambda found: found['ours'].rate / found[side].rate):.2f}",
            f"{median(lambda found: found[side].seconds / found['ours'].seconds):.2f}",
        ]
    return [*row, " / ".join(f"{1000 * median(lambda found: found[side].seconds):.1f}" for side in sides)]


def write_files(case: Case, root: Path) -> Path:
    """Write images and index masks, about twice as large decoded as on disk."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / "x" / part).mkdir(parents=True)
    for number in range(case.files):
        fields = np.stack([_smooth(rng, 24) for _ in range(4)])  # (4, H, W), -1 .. 1
        weights = rng.normal(size=(len(case.bands), 4))
        scale, middle = (40, 110) if case.dtype == np.uint8 else (900, 2500)
        bands = middle + scale * (
            np.tensordot(weights, fields, 1) + 0.1 * rng.normal(size=(len(weights), SIDE, SIDE))
        )
        limits = (0, 255) if case.dtype == np.uint8 else (0, 10000)
        _write(root / f"x/images/{number:03d}.tif", np.clip(bands, *limits).astype(case.dtype))
        label = np.digitize(_smooth(rng, 60), np.linspace(-0.6, 0.6, CLASSES - 1)).astype(np.uint8)
        _write(root / f"x/masks/{number:03d}.tif", label[None])
    return root


def _smooth(rng: np.random.Generator, width: int) -> np.ndarray:
    field = cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE)), (0, 0), width / 3)
    return field / np.abs(field).max()


def _write(path: Path, bands: np.ndarray) -> None:
    profile = {"driver": "GTiff", "compress": "deflate", "predictor": 2, "tiled": True, "interleave": "pixel"}
    shape = {"count": len(bands), "height": SIDE, "width": SIDE, "dtype": bands.dtype}
    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(5e5, 5e6, 10, 10)}
    with rasterio.open(path, "w", **profile, **shape, **place) as file:
        file.write(bands)


def ours(case: Case, root: Path, setting: Setting) -> Iterator[dict[str, np.ndarray]]:
    """Make batches with this project's loader."""
    source = GeoTiffTiles(
        root,
        bands=case.bands,
        file_bands=case.bands,
        labels=RasterLabels(ValueCode(range(CLASSES))),
        classes=CLASSES,
        cache_bytes=0,
    )
    return train_batches(
        TileIndex(source, SIDE),
        case.augment,
        batch_size=BATCH,
        seed=0,
        workers=setting.workers,
        threads=setting.threads,
    )


def theirs(case: Case, root: Path, workers: int) -> Iterator[dict[str, np.ndarray]]:
    """Make batches with PyTorch's DataLoader."""
    from torch.utils.data import DataLoader, RandomSampler

    files = Files(sorted((root / "x/images").glob("*.tif")), case.augment)
    sampler = RandomSampler(files, replacement=True, num_samples=1 << 30)
    # OpenCV's threads do not survive a fork: workers forked from this process hang in cv2.resize.
    more = {"prefetch_factor": 2, "multiprocessing_context": "spawn"} if workers else {}
    return iter(
        DataLoader(files, BATCH, sampler=sampler, num_workers=workers, worker_init_fn=_one_thread, **more)
    )


def _one_thread(_number: int) -> None:
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


class Files:
    """A map-style dataset for the DataLoader."""

    def __init__(self, paths: list[Path], augment: Augment):
        self.paths, self.augment = paths, augment

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(np.random.randint(1 << 31))
        with rasterio.open(self.paths[index]) as file:
            image = np.ascontiguousarray(np.moveaxis(file.read(), 0, -1))
        with rasterio.open(str(self.paths[index]).replace("/images/", "/masks/")) as file:
            label = file.read(1)
        image, label = published_crop(image, label, self.augment, rng)
        if rng.random() < self.augment.settings.flip:
            image, label = image[:, ::-1], label[:, ::-1]
        if self.augment.photometric_bands is not None:
            chosen = list(self.augment.photometric_bands)
            image = image.copy()
            image[..., chosen] = published_distortion(image[..., chosen], rng)
        return {"image": np.ascontiguousarray(image), "label": np.ascontiguousarray(label)}


def published_crop(
    image: np.ndarray, label: np.ndarray, augment: Augment, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Resize the whole tile by its shortest edge, crop where no class is too frequent, and pad."""
    low, high = augment.settings.scale
    if low != high:
        side = int(SIDE * (low + 0.1 * rng.integers(round((high - low) / 0.1) + 1)) + 1e-6)
        image = cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, (side, side), interpolation=cv2.INTER_NEAREST)
    for _ in range(10):
        top, left = (int(rng.integers(max(length - SIDE, 0) + 1)) for length in label.shape)
        part = label[top : top + SIDE, left : left + SIDE]
        counts = np.unique(part[part != 255], return_counts=True)[1]
        if augment.settings.max_class_share == 1 or (
            len(counts) > 1 and counts.max() / counts.sum() < augment.settings.max_class_share
        ):
            break
    image, label = image[top : top + SIDE, left : left + SIDE], part
    missing = [(0, SIDE - length) for length in label.shape]
    if any(after for _, after in missing):
        image = np.pad(image, [*missing, (0, 0)])
        label = np.pad(label, missing, constant_values=255)
    return image, label


def published_distortion(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue in float32, clipped to 8 bits after each."""

    def convert(values: np.ndarray, factor: float = 1.0, summand: float = 0.0) -> np.ndarray:
        return np.clip(values.astype(np.float32) * factor + summand, 0, 255).astype(np.uint8)

    contrast_first = rng.integers(2)
    if rng.integers(2):
        rgb = convert(rgb, summand=rng.uniform(-32, 32))
    if contrast_first and rng.integers(2):
        rgb = convert(rgb, rng.uniform(0.5, 1.5))
    if rng.integers(2):
        hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = convert(hsv[..., 1], rng.uniform(0.5, 1.5))
        rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if rng.integers(2):
        hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + rng.integers(-18, 18)) % 180
        rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if not contrast_first and rng.integers(2):
        rgb = convert(rgb, rng.uniform(0.5, 1.5))
    return rgb


def measure(batches: Iterator[dict[str, np.ndarray]], workers: int, seconds: float) -> Measured:
    """Measure once the batches made while the workers started are used up."""
    for _ in range(_AHEAD * max(1, workers)):
        next(batches)
    count, spent, began = 0, _processor_seconds(), time.perf_counter()
    while time.perf_counter() - began < seconds:
        count += len(next(batches)["label"])
    found = Measured(count / (time.perf_counter() - began), (_processor_seconds() - spent) / count)
    if hasattr(batches, "close"):
        batches.close()
    elif hasattr(batches, "_shutdown_workers"):
        with contextlib.suppress(RuntimeError):  # its workers sometimes abort when stopped
            batches._shutdown_workers()
    return found


def measure_reading(root: Path, workers: int, seconds: float) -> Measured:
    """Measure reading and decoding only, with 2 threads or that many processes."""
    paths = sorted((root / "x/images").glob("*.tif"))
    if workers:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            found = pool.starmap(_read_for, [(paths, number, seconds) for number in range(workers)])
    else:
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(_read_for, [paths] * 2, range(2), [seconds] * 2))
    return Measured(sum(each.rate for each in found), statistics.mean(each.seconds for each in found))


def _read_for(paths: list[Path], first: int, seconds: float) -> Measured:
    count, spent, began = 0, time.thread_time(), time.perf_counter()
    while time.perf_counter() - began < seconds:
        path = paths[(first * 7 + count) % len(paths)]
        for file in (path, str(path).replace("/images/", "/masks/")):
            with rasterio.open(file) as dataset:
                dataset.read()
        count += 1
    return Measured(count / (time.perf_counter() - began), (time.thread_time() - spent) / count)


def print_memory(console: Console, case: Case, root: Path) -> None:
    """Print the memory of this process and its workers, in MB, every 1,000 of 10,000 tiles."""
    batches = ours(case, root, SETTINGS[1])
    seen = []
    for number in range(10_000 // BATCH + 1):
        next(batches)
        if number % (1000 // BATCH) == 0:
            seen.append(_memory())
    batches.close()
    console.print(
        f"memory over 10,000 tiles, {case.name}, 2 workers, MB: " + " ".join(f"{mb:.0f}" for mb in seen)
    )


def _memory() -> float:
    """Return the proportional set size of this process and its descendants, in MB (Linux)."""
    total = 0
    for process in _processes():
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def _processor_seconds() -> float:
    """Return user and system time so far of this process and its descendants (Linux)."""
    ticks = 0
    for process in _processes():
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _processes() -> set[int]:
    """Return this process and its descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {os.getpid()}
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    return found


if __name__ == "__main__":
    main()
