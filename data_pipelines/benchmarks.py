"""Former name of `data_pipelines.datasets`, for configuration files that import it."""

from data_pipelines.datasets import BENCHMARKS, get_benchmark

__all__ = ["BENCHMARKS", "get_benchmark"]
