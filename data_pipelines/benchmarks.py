"""Former name of `data_pipelines.datasets`, for copies of older configurations."""

from data_pipelines.datasets import DATASETS as BENCHMARKS
from data_pipelines.datasets import get_dataset as get_benchmark

__all__ = ["BENCHMARKS", "get_benchmark"]
