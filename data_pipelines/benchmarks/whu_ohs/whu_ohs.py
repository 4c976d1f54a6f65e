"""TensorFlow-Datasets builder of WHU-OHS."""

from data_pipelines.benchmarks.builder import BenchmarkBuilder
from data_pipelines.benchmarks.whu_ohs.facts import BENCHMARK as FACTS


class WhuOhs(BenchmarkBuilder):
    """WHU-OHS: see `facts` beside this file."""

    BENCHMARK = FACTS
    MANUAL_DOWNLOAD_INSTRUCTIONS = FACTS.download
