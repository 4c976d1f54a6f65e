"""TensorFlow-Datasets builder of LoveDA."""

from data_pipelines.benchmarks.builder import BenchmarkBuilder
from data_pipelines.benchmarks.loveda.facts import BENCHMARK as FACTS


class Loveda(BenchmarkBuilder):
    """LoveDA: see `facts` beside this file."""

    BENCHMARK = FACTS
    MANUAL_DOWNLOAD_INSTRUCTIONS = FACTS.download
