"""Progress of a preparation: a live line on a terminal, plain lines elsewhere, and a summary at the end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from data_pipelines.prepare.plan import Piece, Plan
from data_pipelines.readers.prepared_files import STATISTICS, damaged, read_statistics
from data_pipelines.sheet import counted
from spectralmoe_jax.config.load import load_config
from spectralmoe_jax.config.python_files import shipped_files
from spectralmoe_jax.errors import shown
from spectralmoe_jax.escapes import plain

_PLAIN_SECONDS = 15.0  # between lines that do not go to a terminal
_SHOWN = 20  # lines about missing files


class ProgressReport:
    """Reports to `console`, by default to standard output."""

    def __init__(self, console: Console | None):
        self._console = console or Console(highlight=False, soft_wrap=True)

    def say(self, line: str) -> None:
        """Write one line, above the live line on a terminal."""
        self._console.print(plain(line))

    def busy(self, what: str) -> AbstractContextManager[Any]:
        """Show on a terminal that work is going on."""
        return self._console.status(plain(what))

    def missing(self, lines: Sequence[str]) -> None:
        """List what is missing in a download folder."""
        for line in lines[:_SHOWN]:
            self.say(f"missing: {line}")
        if len(lines) > _SHOWN:
            self.say(f"missing: {counted(len(lines) - _SHOWN, 'line')} more")

    def space(self, folder: Path, size: int) -> None:
        """Warn if `size` bytes may not fit on the disk of a folder."""
        free = shutil.disk_usage(folder).free
        if free < size:
            self.say(f"{folder}: {free / 1e9:.1f} GB are free, up to {size / 1e9:.1f} GB will be written")

    @contextmanager
    def reading(self, what: str, size: int) -> Iterator[Callable[[int], None]]:
        """Announce the reading of `size` bytes; yield a function to call with the number just read."""
        self.say(f"{what}, {size / 1e9:.2f} GB")
        bar = Progress(
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        task = bar.add_task("", total=size)
        with bar:
            yield lambda done: bar.advance(task, done)

    @contextmanager
    def cutting(self, plan: Plan, todo: Sequence[Piece]) -> Iterator[Callable[[int, int], None]]:
        """Follow the pieces `todo` of a plan; yield a function to call with (tiles, images) just finished."""
        images = plan.images - sum(len(piece.pairs) for piece in todo)
        tiles = plan.tiles - sum(piece.tiles for piece in todo)
        count = _Count(plan, images, tiles)
        bar = Progress(
            BarColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        task = bar.add_task(str(count), total=plan.tiles, completed=tiles)
        said = time.monotonic()

        def advance(tiles: int, images: int) -> None:
            """Add finished tiles and images to the progress line."""
            nonlocal said
            count.add(tiles, images)
            bar.update(task, completed=count.tiles, description=str(count))
            if not self._console.is_terminal and time.monotonic() - said >= _PLAIN_SECONDS:
                said = time.monotonic()
                self.say(str(count))

        with bar:
            yield advance
        if todo:
            self.say(f"{counted(plan.tiles, 'tile')}, {count.rate:.1f} tiles/s")

    def result(self, folder: Path) -> None:
        """Report content and place of prepared tiles, and the lines for a configuration."""
        statistics = read_statistics(folder)
        try:
            self._describe(folder, statistics)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as problem:
            reason = f"its numbers are incomplete ({type(problem).__name__} {shown(problem)})"
            raise damaged(folder / STATISTICS, reason) from None

    def _describe(self, folder: Path, statistics: Mapping[str, Any]) -> None:
        for split, numbers in statistics["splits"].items():
            share = numbers["labelled_pixels"] / numbers["pixels"]
            tiles = counted(numbers["tiles"], "tile")
            self.say(f"{split}: {tiles}, {numbers['pixels'] / 1e6:.1f} Mpx, {share:.1%} labelled")
        bands = statistics["source_bands"].values()
        if all(band["mean"] is not None for band in bands):
            self.say(f"bands of {' + '.join(statistics['source_splits'])}, pixels with data:")
            for key, number in (("pixel_mean", "mean"), ("pixel_std", "std")):
                values = ", ".join(f"{band[number]:.6g}" for band in bands)
                line = f"config.model.{key} = ({values}{',' * (len(bands) == 1)})"
                self.say(line + _as_published(statistics["benchmark"], key))
        self.say(f"tiles: {folder}")
        self.say(f"check by eye: {folder / 'contact_sheet.png'}")


def _as_published(name: str, key: str) -> str:
    """Return a comment with the value in the shipped configuration of a data set; empty if there is none."""
    path = shipped_files("configs").get(f"{name}.py")
    if path is None:
        return ""
    values = getattr(load_config(str(path)).model, key)
    if len(set(values)) == 1:
        values = values[:1]
    return f"  # {path.name}: {', '.join(f'{value:g}' for value in values)}"


class _Count:
    """Numbers of finished images and tiles, and tiles a second; earlier calls do not count for the rate."""

    def __init__(self, plan: Plan, images: int, tiles: int):
        self._plan = plan
        self.images, self.tiles = images, tiles
        self._before, self._start = tiles, time.monotonic()

    def add(self, tiles: int, images: int) -> None:
        """Count finished tiles and images."""
        self.tiles += tiles
        self.images += images

    @property
    def rate(self) -> float:
        """Tiles a second."""
        return (self.tiles - self._before) / max(time.monotonic() - self._start, 1e-9)

    def __str__(self) -> str:
        line = f"{self.images:,}/{self._plan.images:,} images  {self.tiles:,}/{self._plan.tiles:,} tiles"
        if self.tiles == self._before:
            return line
        minutes, seconds = divmod(int((self._plan.tiles - self.tiles) / self.rate), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{line}  {self.rate:.1f} tiles/s  left {hours}:{minutes:02d}:{seconds:02d}"
