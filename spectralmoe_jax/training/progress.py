"""Telling people how far training is: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class ProgressReport:
    """Reports steps, loss, images per second and the time left.

    Args:
      start: step the run starts from.
      steps: step it ends at.
      batch_size: images per step.
      console: where to write; standard output by default.
      silent: write nothing, as on all hosts but the first.
    """

    def __init__(
        self, start: int, steps: int, batch_size: int, console: Console | None = None, silent: bool = False
    ):
        self._console = console or Console(highlight=False, soft_wrap=True, quiet=silent)
        self._steps, self._batch_size = steps, batch_size
        self._at, self._since = start, time.monotonic()
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.description}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=silent or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("compiling", total=steps, completed=start)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the live line; writes nothing elsewhere."""
        self._bar.update(self._task, completed=step)

    def report(self, step: int, metrics: Mapping[str, float]) -> float:
        """Shows a step's loss; returns images per second since the last report or pause."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        rate = (step - self._at) / seconds
        text = f"loss {metrics['loss']:.4f}  {rate * self._batch_size:.1f} images/s"
        self._bar.update(self._task, completed=step, description=text)
        if not self._console.is_terminal:
            left = int((self._steps - step) / rate) if rate else 0
            minutes, clock = divmod(left, 60)
            hours, minutes = divmod(minutes, 60)
            self.say(f"step {step}/{self._steps}  {text}  left {hours}:{minutes:02d}:{clock:02d}")
        self.resume(step)
        return rate * self._batch_size

    def resume(self, step: int) -> None:
        """Starts the clock again, so that an evaluation does not count as training time."""
        self._at, self._since = step, time.monotonic()

    def say(self, line: str) -> None:
        """Writes one line, above the live one on a terminal."""
        self._console.print(line, markup=False)
