"""A generated two-sensor benchmark, so that everything can be tried without any data."""

from data_pipelines.synthetic.source import (
    BANDS,
    CLASSES,
    DOMAINS,
    PALETTE,
    SOURCE,
    TARGET,
    SyntheticBenchmark,
    SyntheticScenes,
    open_domains,
)

__all__ = [
    "BANDS",
    "CLASSES",
    "DOMAINS",
    "PALETTE",
    "SOURCE",
    "TARGET",
    "SyntheticBenchmark",
    "SyntheticScenes",
    "open_domains",
]
