"""`spectralmoe data`: content, statistics and times of a configuration's training batches, with a picture."""

from __future__ import annotations

import dataclasses
import pickle
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipelines.loader import Batch, Mixture
from data_pipelines.records import IGNORE, NoImagesError, Record, Source, Window
from data_pipelines.sensors import find_sensor, names_in_files, stored_reflectance
from data_pipelines.sheet import QUIET, Sheet, chequers, coloured, display_bands, short, stretched
from data_pipelines.splits import (
    SPLITS,
    Splits,
    absent_classes,
    open_splits,
    training_batches,
    training_elements,
)
from data_pipelines.transforms import normalise
from spectralmoe_jax.config.schema import RunConfig
from spectralmoe_jax.errors import UserError, bad_value
from spectralmoe_jax.escapes import plain

_TIMED_TILES = 24
_TIMED_SECONDS = 2.0
_MADE_AHEAD = 6  # batches that the loader may hold

_TEXT_COLUMNS = ("split", "domain", "class", "band", "stage")
_THERMAL = 3.0  # um, beyond which bands measure heat
# plausible means: correction of the atmosphere may overshoot, snow and glint are bright
_REFLECTANCES = (-0.1, 1.5)
_LISTED = 16  # largest number of domains of a split, and of bands, to print

# lengths in inches
_CELL, _GAP, _LEFT, _TOP, _SPACE, _LEGEND, _ROW = 1.55, 0.06, 0.25, 0.85, 0.25, 3.0, 0.235


@dataclass(frozen=True)
class Inspection:
    """Batches that were drawn, and their measurements.

    Attributes:
      batches: the first training batches.
      contents: number of images and megapixels by (split, domain).
      shares: share of each class in the labelled pixels of the batches, (classes,).
      labelled: share of labelled pixels in the batches.
      raw: mean and standard deviation of each band over the batches, as stored, (bands, 2); pixels that are
        zero in every band are left out.
      normalised: the same as the model sees them, (bands, 2).
      stages: milliseconds for one tile by stage, of one thread that has not decoded any file yet; the
        system's file cache is left as it is.
      opening: seconds to open the data.
      first: seconds until the first batch.
      rate: tiles a second of the loader as configured, after the first batch.
      absent: classes without a labelled pixel in the source.
      missing: why there are no images of the target, or "".
    """

    batches: Sequence[Batch]
    contents: dict[tuple[str, str], tuple[int, float]]
    shares: np.ndarray
    labelled: float
    raw: np.ndarray
    normalised: np.ndarray
    stages: dict[str, float]
    opening: float
    first: float
    rate: float
    absent: tuple[str, ...] = ()
    missing: str = ""


def inspect_batches(config: RunConfig, batches: int) -> Inspection:
    """Draw the first batches of a training, and time every stage.

    Raises:
      UserError: as training would, or fewer than one batch.
    """
    began = time.perf_counter()
    splits, missing = _open(config)
    opening = time.perf_counter() - began
    drawn, first, rate = _draw(config, splits, batches)
    images = np.concatenate([batch["image"] for batch in drawn])
    labels = np.concatenate([batch["label"] for batch in drawn])
    classes = len(config.classes.names)
    counts = np.bincount(labels.ravel(), minlength=IGNORE + 1)[:classes]
    pixels = images.reshape(-1, images.shape[-1])
    pixels = pixels[pixels.any(axis=1)]
    mean, std = config.model.statistics(
        names_in_files(config.bands, config.sensor), stored_reflectance(config.sensor)
    )
    return Inspection(
        batches=drawn,
        contents=_contents(splits),
        shares=counts / max(counts.sum(), 1),
        labelled=float(counts.sum() / labels.size),
        raw=_moments(pixels),
        normalised=_moments(normalise(pixels, mean, std)),
        stages=_stages(config, pickle.loads(pickle.dumps(splits))),  # without what is decoded already
        opening=opening,
        first=first,
        rate=rate,
        absent=absent_classes(config, splits),
        missing=missing,
    )


def _open(config: RunConfig) -> tuple[Splits, str]:
    """Open the images; a target without images, which no batch comes from, is a remark instead of an error.

    Returns:
      The images, and what is missing, or "".
    """
    try:
        return open_splits(config), ""
    except NoImagesError as problem:
        alone = open_splits(config, only="train")
        return dataclasses.replace(
            alone, target=cast("Source[Any]", _Empty())
        ), f"config.data.target: {problem}"


class _Empty:
    """A source without images."""

    records: tuple[Record, ...] = ()


def _draw(config: RunConfig, splits: Splits, count: int) -> tuple[list[Batch], float, float]:
    """Draw batches; returns them, the seconds until the first one, and tiles a second from then on."""
    began = time.perf_counter()
    stream = training_batches(config, splits, 0)
    try:
        drawn = [next(stream)]
        at_first = time.perf_counter()
        drawn += [next(stream) for _ in range(count - 1)]
        rate = _rate(stream, config.train.batch_size, config.data.workers)
    finally:
        stream.close()
    return drawn, at_first - began, rate


def _rate(stream: Iterator[Batch], batch_size: int, workers: int) -> float:
    """Measure tiles a second, once the batches that were made ahead are used up."""
    for _ in range(_MADE_AHEAD * max(1, workers)):
        next(stream)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < _TIMED_SECONDS:
        next(stream)
        count += 1
    return count * batch_size / (time.perf_counter() - began)


def _contents(splits: Splits) -> dict[tuple[str, str], tuple[int, float]]:
    found: dict[tuple[str, str], tuple[int, float]] = {}
    groups = {"train": splits.train, "holdout": splits.holdout, "target": splits.target.records}
    for split in SPLITS:
        for record in groups.get(split, ()):
            images, size = found.get((split, record.domain), (0, 0.0))
            found[split, record.domain] = images + 1, size + record.height * record.width / 1e6
    return found


def _moments(pixels: np.ndarray) -> np.ndarray:
    """Return mean and standard deviation of each column, (columns, 2)."""
    if not len(pixels):
        return np.full((pixels.shape[1], 2), np.nan)
    return np.stack([pixels.mean(axis=0, dtype=np.float64), pixels.std(axis=0, dtype=np.float64)], axis=1)


def _stages(config: RunConfig, splits: Splits) -> dict[str, float]:
    """Measure milliseconds for one tile by stage, in this thread."""
    clock = _Clock()
    elements, augment = training_elements(config, splits, wrap=lambda source: _Timed(source, clock))
    parts = elements.sources if isinstance(elements, Mixture) else (elements,)
    examples = []
    began = time.perf_counter()
    for number in range(_TIMED_TILES):
        rng = np.random.default_rng((config.seed, number))
        part = parts[number % len(parts)]
        examples.append(augment(part[int(rng.integers(len(part)))], rng))
    whole = time.perf_counter() - began
    with clock.measuring("batch"):
        for key in examples[0]:
            np.stack([example[key] for example in examples])
    seconds = clock.seconds
    reading = seconds.get("read labels", 0) + seconds.get("read images", 0)
    stages = {"read labels": seconds.get("read labels", 0), "read images": seconds.get("read images", 0)}
    stages |= {"transform": whole - reading, "batch": seconds["batch"]}
    return {name: 1000 * value / _TIMED_TILES for name, value in stages.items()}


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measuring(self, stage: str) -> Iterator[None]:
        """Add the time spent in the context to a stage."""
        began = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0) + time.perf_counter() - began


class _Timed:
    """A source that counts the time spent in it."""

    def __init__(self, source: Source[Any], clock: _Clock):
        self._source, self._clock = source, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def read_image(self, record: Record, window: Window | None = None) -> np.ndarray:
        """Read and time pixels."""
        with self._clock.measuring("read images"):
            return self._source.read_image(record, window)

    def read_label(self, record: Record, window: Window | None = None) -> np.ndarray:
        """Read and time labels."""
        with self._clock.measuring("read labels"):
            return self._source.read_label(record, window)


def show(config: RunConfig, batches: int, output: Path) -> Inspection:
    """Print contents, classes, bands and times of a configuration's data, and draw some batches.

    Raises:
      UserError: as training would, fewer than one batch, or no folder to write the picture to.
    """
    if batches < 1:
        raise bad_value("--batches", batches, "must be at least 1")
    if output.suffix.lower() != ".png":
        raise UserError(f"--output {output}: the picture is a PNG, give a name that ends in .png")
    if not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: no such folder {output.absolute().parent}, make it first")
    found = inspect_batches(config, batches)
    console = Console(highlight=False, soft_wrap=True)
    for table in (
        _contents_table(found),
        _classes_table(config, found),
        _bands_table(config, found),
        _times_table(config, found),
    ):
        console.print(table)
    for remark in remarks(config, found):
        console.print(plain(remark))
    draw(config, found, output)
    tiles = sum(len(batch["label"]) for batch in found.batches)
    console.print(plain(f"{output}: {tiles} tiles as training sees them"))
    return found


def remarks(config: RunConfig, found: Inspection) -> list[str]:
    """List what looks wrong, in one line each: unfit statistics, missing classes, too few labels."""
    lines, wrong = [], []
    published = config.model.pixel_statistics is not None
    is_reflectance = config.model.visual.kind == "galileo"
    keys = "pixel_statistics" if published else "pixel_mean and config.model.pixel_std"
    keys = "visual.stored_as" if is_reflectance else keys
    # published ones are of many places, and some map four deviations to one; reflectance varies by 0.05 or so
    smallest = 0.01 if published or is_reflectance else 0.1
    for name, (mean, std) in zip(config.bands, found.normalised, strict=True):
        if abs(mean) > 2 or not smallest < std < 10:
            wrong.append(f"{name} (mean {mean:.2f}, std {std:.2f})")
    if wrong:
        lines.append(
            f"after normalisation {len(wrong)} bands are far from mean 0 and std 1, such as "
            f"{', '.join(wrong[:3])}: check config.model.{keys}"
        )
    lines += _storage_remarks(config, found)
    if found.missing:
        lines.append(f"nothing to evaluate on: {found.missing}")
    if found.absent:
        lines.append(f"no labelled pixel in config.data.source: {', '.join(found.absent)}")
    absent = [name for name, share in zip(config.classes.names, found.shares, strict=True) if not share]
    if absent:
        lines.append(f"not in these batches: {', '.join(absent)}")
    if found.labelled < 0.05:
        lines.append(f"only {found.labelled:.1%} of the pixels are labelled")
    return lines


def _storage_remarks(config: RunConfig, found: Inspection) -> list[str]:
    """List values that do not fit how files of `config.sensor` commonly store them."""
    if config.sensor is None:
        return []
    sensor, dtype = find_sensor(config.sensor), found.batches[0]["image"].dtype
    if sensor.dtype is not None and dtype != sensor.dtype:
        return [
            f"pixels are {dtype}, files of {sensor.name} commonly {sensor.dtype}: right if they were made "
            "so, as reflectance or a picture; else check config.sensor"
        ]
    if sensor.scale is None:
        return []
    odd = []
    for name, (mean, _) in zip(config.bands, found.raw, strict=True):
        band, reflectance = sensor.named(name), sensor.scale * mean + sensor.offset
        reflects = band is not None and band.centre < _THERMAL
        if reflects and not _REFLECTANCES[0] <= reflectance <= _REFLECTANCES[1]:
            odd.append(f"{name} {reflectance:.3g}")
    if not odd:
        return []
    return [
        f"{len(odd)} bands have a mean that is no reflectance as files of {sensor.name} store it "
        f"({', '.join(odd[:3])}): check config.sensor and how the files were made"
    ]


def _contents_table(found: Inspection) -> Table:
    table = _table("images", "split", "domain", "images", "Mpx")
    for split in dict.fromkeys(split for split, _ in found.contents):
        domains = {domain: content for (own, domain), content in found.contents.items() if own == split}
        if len(domains) > _LISTED:
            numbers, sizes = zip(*domains.values(), strict=True)
            domains = {f"{len(domains)} domains": (sum(numbers), sum(sizes))}
        for domain, (images, size) in domains.items():
            table.add_row(plain(split), plain(domain), f"{images:,}", f"{size:,.2f}")
    return table


def _classes_table(config: RunConfig, found: Inspection) -> Table:
    table = _table(f"classes in these batches, {found.labelled:.1%} labelled", "class", "share of labelled")
    for name, share in zip(config.classes.names, found.shares, strict=True):
        table.add_row(plain(name), f"{share:.2%}")
    return table


def _bands_table(config: RunConfig, found: Inspection) -> Table:
    step = -(-len(config.bands) // _LISTED)
    title = "bands in these batches" + (f", every {step}th of {len(config.bands)}" if step > 1 else "")
    table = _table(title, "band", "mean", "std", "mean, normalised", "std, normalised")
    rows = list(zip(config.bands, found.raw, found.normalised, strict=True))
    for name, raw, normalised in rows[::step]:
        table.add_row(
            plain(name), *(f"{value:,.4g}" for value in raw), *(f"{value:.2f}" for value in normalised)
        )
    return table


def _times_table(config: RunConfig, found: Inspection) -> Table:
    table = _table("time", "stage", "")
    table.add_row("open the data", f"{found.opening:.2f} s")
    table.add_row("until the first batch", f"{found.first:.2f} s")
    for stage, milliseconds in found.stages.items():
        decoded = ", decoded anew" if stage.startswith("read") else ""
        table.add_row(f"{stage}, one thread{decoded}", f"{milliseconds:.2f} ms a tile")
    workers = config.data.workers
    table.add_row(f"loader with {workers} workers", f"{found.rate:,.1f} tiles/s")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in _TEXT_COLUMNS else "right", no_wrap=True)
    return table


def draw(config: RunConfig, found: Inspection, path: Path) -> None:
    """Write a PNG with a row of images and the row of their masks for each batch.

    All images share one stretch, from the 2nd to the 98th percentile of each band.
    """
    per_row = min(8, max(len(batch["label"]) for batch in found.batches))
    images = np.concatenate([batch["image"] for batch in found.batches])
    labels = np.concatenate([batch["label"] for batch in found.batches])
    rows = -(-len(images) // per_row)
    grid = _LEFT + per_row * (_CELL + _GAP)
    block = 2 * _CELL + _GAP + _SPACE
    height = _TOP + max(rows * block, _ROW * (len(config.classes.names) + 3)) + 0.1
    sheet = Sheet(grid + 0.3 + _LEGEND, height, cell=_CELL)
    channels = display_bands(config.bands, config.sensor)
    shown = ", ".join(config.bands[channel] for channel in channels)
    sheet.text(_LEFT, 0.3, f"{config.name}: what training sees", size=17, weight="bold")
    sheet.text(
        _LEFT,
        0.6,
        f"Images above, masks below. Red, green, blue show {shown}, all stretched alike.",
        color=QUIET,
    )
    limits = np.percentile(images[..., list(channels)].reshape(-1, 3), (2, 98), axis=0)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        row, column = divmod(number, per_row)
        left, top = _LEFT + column * (_CELL + _GAP), _TOP + row * block
        sheet.picture(left, top, stretched(image[..., list(channels)], limits))
        sheet.picture(left, top + _CELL + _GAP, coloured(label, config.classes.colours))
    _draw_legend(sheet, config, found, left=grid + 0.3)
    sheet.save(path)


def _draw_legend(sheet: Sheet, config: RunConfig, found: Inspection, left: float) -> None:
    sheet.text(left, _TOP + 0.12, "share of labelled pixels", size=10, weight="bold")
    row = _TOP + 0.12 + _ROW
    for name, colour, share in zip(config.classes.names, config.classes.colours, found.shares, strict=True):
        sheet.swatch(left, row, np.array(colour, np.uint8))
        sheet.text(left + 0.34, row, short(name, 26), size=9.5)
        sheet.text(left + _LEGEND - 0.2, row, f"{share:.2%}" if share else "-", size=9.5, ha="right")
        row += _ROW
    sheet.swatch(left, row, chequers(8, 12, 4))
    sheet.text(left + 0.34, row, "no label, of all pixels", size=9.5, color=QUIET)
    sheet.text(left + _LEGEND - 0.2, row, f"{1 - found.labelled:.2%}", size=9.5, ha="right", color=QUIET)
