"""Where labelled images come from, and the index of windows drawn from them."""

from data_pipelines.sources.arrays import Arrays
from data_pipelines.sources.image_folder import ImageFolder
from data_pipelines.sources.records import IGNORE, Record, Source, Window, examples, split_holdout
from data_pipelines.sources.sampling import ClassBalancedIndex
from data_pipelines.sources.tiles import Tile, TileIndex

__all__ = [
    "IGNORE",
    "Arrays",
    "ClassBalancedIndex",
    "ImageFolder",
    "Record",
    "Source",
    "Tile",
    "TileIndex",
    "Window",
    "examples",
    "split_holdout",
]
