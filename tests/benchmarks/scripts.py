"""Scripts of `benchmarks/`, imported as where they run: their folder is on the path."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@contextmanager
def imported(name: str) -> Iterator[ModuleType]:
    """Yield a script as a module; afterwards it is forgotten, with those that it imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module(name)
    for script in FOLDER.glob("*.py"):
        sys.modules.pop(script.stem, None)
