"""Files that cannot be read: their error, and the choice to stop at one or to skip it (`data.corrupt`)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from spectralmoe_jax.config.fields import choices_of
from spectralmoe_jax.config.schema import DataConfig
from spectralmoe_jax.errors import UserError, choose

log = logging.getLogger(__name__)
T = TypeVar("T")
S = TypeVar("S")


class UnreadableFile(UserError):
    """A file that is truncated, empty or not what its name says; `data.corrupt=skip` leaves it out."""


def unreadable(path: Path, reason: str) -> UnreadableFile:
    """Return the error for an image file that cannot be read completely."""
    return UnreadableFile(
        f"{path}: truncated or not a readable image ({reason}): restore the file or remove it from the folder"
    )


def check_corrupt(corrupt: str) -> None:
    """Raise UserError unless `corrupt` is a value of `config.data.corrupt`."""
    choose("config.data.corrupt", corrupt, choices_of(DataConfig)["corrupt"])


def map_files(function: Callable[[S], T], files: Iterable[S], corrupt: str) -> list[T | None]:
    """Apply a function to each file in threads.

    Other errors than an unreadable file, such as a missing band or an unknown label, are raised with `skip`
    too: they mean that the configuration is wrong, not the file.

    Args:
      function: takes one element of `files`.
      files: paths, or whatever describes a file.
      corrupt: `stop` raises the error of an unreadable file; `skip` logs it.

    Returns:
      Results in the order of the files; None for a skipped file.

    Raises:
      UserError: the error of the first file that is not skipped.
    """

    def attempt(file: S) -> T | UnreadableFile:
        """Apply the function to one file, and return the error of an unreadable one."""
        try:
            return function(file)
        except UnreadableFile as problem:
            if corrupt == "stop":
                raise
            return problem

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(attempt, files))
    for problem in results:
        if isinstance(problem, UnreadableFile):
            log.warning("skipped: %s", problem)
    return [None if isinstance(result, UnreadableFile) else result for result in results]
