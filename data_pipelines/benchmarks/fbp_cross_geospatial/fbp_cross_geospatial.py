"""TensorFlow-Datasets builder of Five-Billion-Pixels, cross-geospatial."""

from data_pipelines.benchmarks.builder import BenchmarkBuilder
from data_pipelines.benchmarks.fbp_cross_geospatial.facts import BENCHMARK as FACTS


class FbpCrossGeospatial(BenchmarkBuilder):
    """Five-Billion-Pixels, cross-geospatial: see `facts` beside this file."""

    BENCHMARK = FACTS
    MANUAL_DOWNLOAD_INSTRUCTIONS = FACTS.download
