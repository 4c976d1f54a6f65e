"""Shipped configurations and grids, importable by name from anywhere.

In an installation the files lie in this folder. In a checkout they are the top-level folder `configs`, which
this package then covers too.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configs import common as common

_HERE = Path(__file__).resolve().parent

if not (_HERE / "common.py").exists():
    __path__.append(str(_HERE.parents[1] / "configs"))
