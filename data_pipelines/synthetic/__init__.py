"""A generated data set of two sensors, to try everything without any download."""

from data_pipelines.synthetic.source import (
    BANDS,
    CLASSES,
    DOMAINS,
    PALETTE,
    SOURCE,
    TARGET,
    SyntheticDataset,
    SyntheticScenes,
)

__all__ = [
    "BANDS",
    "CLASSES",
    "DOMAINS",
    "PALETTE",
    "SOURCE",
    "TARGET",
    "SyntheticDataset",
    "SyntheticScenes",
]
