"""TensorFlow-Datasets builder of OpenEarthMap."""

from data_pipelines.benchmarks.builder import BenchmarkBuilder
from data_pipelines.benchmarks.open_earth_map.facts import BENCHMARK as FACTS


class OpenEarthMap(BenchmarkBuilder):
    """OpenEarthMap: see `facts` beside this file."""

    BENCHMARK = FACTS
    MANUAL_DOWNLOAD_INSTRUCTIONS = FACTS.download
