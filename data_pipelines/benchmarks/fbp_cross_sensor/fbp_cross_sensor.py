"""TensorFlow-Datasets builder of Five-Billion-Pixels, cross-sensor."""

from data_pipelines.benchmarks.builder import BenchmarkBuilder
from data_pipelines.benchmarks.fbp_cross_sensor.facts import BENCHMARK as FACTS


class FbpCrossSensor(BenchmarkBuilder):
    """Five-Billion-Pixels, cross-sensor: see `facts` beside this file."""

    BENCHMARK = FACTS
    MANUAL_DOWNLOAD_INSTRUCTIONS = FACTS.download
