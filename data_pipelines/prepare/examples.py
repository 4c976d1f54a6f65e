"""A tile as the bytes of one record, the same bytes in every process."""

from __future__ import annotations

from typing import Any

from data_pipelines.benchmarks.benchmark import Benchmark, Pair
from data_pipelines.sources.records import Window


class Encoder:
    """Encodes what `data_pipelines.benchmarks.builder.example` gives, as TensorFlow Datasets reads it.

    Its own serialisation puts a record's fields in an order that differs from process to process; here they
    are in the order of their names.
    """

    def __init__(self, benchmark: Benchmark):
        from tensorflow_datasets.core.example_serializer import ExampleSerializer

        from data_pipelines.benchmarks.builder import features

        self._features = features(benchmark)
        self._serializer = ExampleSerializer(self._features.get_serialized_info())

    def __call__(self, example: dict[str, Any]) -> bytes:
        encoded = self._features.encode_example(example)
        return self._serializer.get_tf_example(encoded).SerializeToString(deterministic=True)


def image_name(pair: Pair) -> str:
    """The name of an image, unique within its split."""
    return f"{pair.domain}/{pair.name}"


def tile_name(pair: Pair, cell: Window, cells: int) -> str:
    """The name of a tile, unique within its split; where an image is one tile, the image's."""
    name = image_name(pair)
    return name if cells == 1 else f"{name}_{cell.row:05d}_{cell.col:05d}"
