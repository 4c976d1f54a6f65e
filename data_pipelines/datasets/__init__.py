"""The published benchmarks: facts, files and label rules, and their TensorFlow-Datasets builders."""

import difflib
import importlib

from data_pipelines.datasets.dataset import Benchmark, Listing, Pair
from spectralmoe_jax.errors import UserError

BENCHMARKS = (
    "whu_ohs",
    "fbp_cross_sensor",
    "fbp_cross_geospatial",
    "flair",
    "loveda",
    "potsdam_vaihingen",
    "open_earth_map",
)
"""Names of all benchmarks, in the order of the publication."""

__all__ = ["BENCHMARKS", "Benchmark", "Listing", "Pair", "get_benchmark"]


def get_benchmark(name: str) -> Benchmark:
    """The benchmark of a name; reads no file of it and imports no TensorFlow Datasets.

    Raises UserError naming the nearest names for one that is not known.
    """
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(name, BENCHMARKS, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"benchmark {name!r}: no such benchmark; {hint}there are {', '.join(BENCHMARKS)}")
    return importlib.import_module(f"{__name__}.{name}").BENCHMARK
