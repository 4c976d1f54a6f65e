"""TensorFlow-Datasets builder of ISPRS Potsdam to Vaihingen."""

from data_pipelines.benchmarks.builder import BenchmarkBuilder
from data_pipelines.benchmarks.potsdam_vaihingen.facts import BENCHMARK as FACTS


class PotsdamVaihingen(BenchmarkBuilder):
    """ISPRS Potsdam to Vaihingen: see `facts` beside this file."""

    BENCHMARK = FACTS
    MANUAL_DOWNLOAD_INSTRUCTIONS = FACTS.download
