"""TensorFlow-Datasets builder of FLAIR #1."""

from data_pipelines.benchmarks.builder import BenchmarkBuilder
from data_pipelines.benchmarks.flair.facts import BENCHMARK as FACTS


class Flair(BenchmarkBuilder):
    """FLAIR #1: see `facts` beside this file."""

    BENCHMARK = FACTS
    MANUAL_DOWNLOAD_INSTRUCTIONS = FACTS.download
