"""What happens with files that cannot be read while a source is opened: stop, or skip and count."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from data_pipelines.readers.raster_file import UnreadableFile
from spectralmoe_jax.config.fields import choices_of
from spectralmoe_jax.config.schema import DataConfig
from spectralmoe_jax.errors import choose

log = logging.getLogger(__name__)
T = TypeVar("T")
S = TypeVar("S")


def check_corrupt(corrupt: str) -> None:
    """Raise a UserError unless this is a value of `config.data.corrupt`."""
    choose("config.data.corrupt", corrupt, choices_of(DataConfig)["corrupt"])


def over_files(work: Callable[[S], T], files: Iterable[S], corrupt: str) -> list[T | None]:
    """`work` of each file, in threads, in order.

    With `skip` it is None for one that is truncated or no readable image, which is logged, in the order of
    the files. What else is wrong, such as a band that is missing or an unknown label, is raised either way:
    it says that the configuration is wrong, not the file.

    Raises:
      UserError: the first file that is wrong, or with `skip`, that cannot be skipped.
    """

    def attempt(file: S) -> T | UnreadableFile:
        try:
            return work(file)
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
