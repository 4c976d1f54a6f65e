"""Published data sets: their files, label rules, metadata and TensorFlow Datasets builders."""

import difflib
import importlib

from data_pipelines.datasets.dataset import Dataset, Listing, Pair
from spectralmoe_jax.errors import UserError

_PLACES = {  # module and its attribute, in the order of the publication
    "whu_ohs": "whu_ohs:DATASET",
    "fbp_cross_sensor": "five_billion_pixels:CROSS_SENSOR",
    "fbp_cross_geospatial": "five_billion_pixels:CROSS_GEOSPATIAL",
    "flair": "flair:DATASET",
    "loveda": "loveda:DATASET",
    "potsdam_vaihingen": "potsdam_vaihingen:DATASET",
    "open_earth_map": "open_earth_map:DATASET",
}
DATASETS = tuple(_PLACES)
"""Names of all data sets, in the order of the publication."""

__all__ = ["DATASETS", "Dataset", "Listing", "Pair", "get_dataset"]


def get_dataset(name: str) -> Dataset:
    """Return a published data set; reads none of its files and does not import TensorFlow Datasets.

    Raises:
      UserError: there is no data set of this name; the message has the nearest names.
    """
    if name not in _PLACES:
        near = difflib.get_close_matches(name, DATASETS, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"data set {name!r}: no such data set; {hint}there are {', '.join(DATASETS)}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
