"""TensorFlow-Datasets builders of the benchmarks, built and read without TensorFlow.

    builder = builder_class("loveda")(data_dir="data")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir="SOURCE"))
    builder.as_data_source("val_urban")[0]["image"]  # (h, w, C)

SOURCE is the folder of the downloaded files. `spectralmoe prepare` writes such a folder faster, in parallel,
of the same `example`s.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.datasets import downloaded_files as files
from data_pipelines.datasets import get_benchmark
from data_pipelines.datasets.dataset import Benchmark, Pair
from data_pipelines.records import Window
from spectralmoe_jax.errors import UserError

log = logging.getLogger(__name__)


def features(benchmark: Benchmark) -> tfds.features.FeaturesDict:
    """What a tile is stored as.

    image (h, w, C) in the benchmark's type and label (h, w) uint8, as raw bytes: zlib makes tiles
    about a third smaller and ten to twenty times slower to decode. name of the image, its domain, and row and
    col of the tile's upper left pixel in the image.
    """
    raw = tfds.features.Encoding.BYTES
    pixels, channels = np.dtype(benchmark.dtype), len(benchmark.bands)
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Tensor(shape=(None, None, channels), dtype=pixels, encoding=raw),
            "label": tfds.features.Tensor(shape=(None, None), dtype=np.uint8, encoding=raw),
            "name": tfds.features.Text(),
            "domain": tfds.features.Text(),
            "row": tfds.features.Scalar(np.int32),
            "col": tfds.features.Scalar(np.int32),
        }
    )


def example(benchmark: Benchmark, pair: Pair, cell: Window) -> dict[str, Any]:
    """The tile of `pair` at `cell`, as `features` describes it.

    Raises UserError for a file that cannot be read or holds a label outside the rule.
    """
    image, label = benchmark.read_tile(pair, cell)
    place = {"name": pair.name, "domain": pair.domain, "row": cell.row, "col": cell.col}
    return {"image": image, "label": label, **place}


def dataset_info(benchmark: Benchmark, builder: Any) -> tfds.core.DatasetInfo:
    """The benchmark's facts in the fields of TensorFlow Datasets; `builder` is one, or an identity."""
    return tfds.core.DatasetInfo(
        builder=builder,
        description=f"{benchmark.title}. Classes: {', '.join(benchmark.classes)}.",
        features=features(benchmark),
        homepage=benchmark.homepage,
        citation=benchmark.citation,
        license=benchmark.licence,
        disable_shuffling=True,
    )


class BenchmarkBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builds a benchmark from the folder that the user downloaded, `manual_dir` of TensorFlow Datasets."""

    BENCHMARK: ClassVar[Benchmark]
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "Tiles of the published files."}

    def __init__(self, *, file_format: Any = "array_record", **keywords: Any):
        super().__init__(file_format=file_format, **keywords)

    def _info(self) -> tfds.core.DatasetInfo:
        return dataset_info(self.BENCHMARK, self)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        root = Path(dl_manager.manual_dir)
        files.check_archives(root, self.BENCHMARK.checksums)
        pairs, missing = self.BENCHMARK.find(root)
        if not pairs:
            raise UserError(
                f"{root}: no image of {self.BENCHMARK.title} ({'; '.join(missing)}): download "
                f"{self.BENCHMARK.download}"
            )
        for line in missing:
            log.warning("%s: %s", root, line)
        by_split = {split: [p for p in pairs if p.split == split] for split in self.BENCHMARK.splits}
        return {split: self._generate_examples(members) for split, members in by_split.items() if members}

    def _generate_examples(self, pairs: Sequence[Pair]) -> Iterator[tuple[str, dict[str, Any]]]:
        for pair in pairs:
            for cell in self.BENCHMARK.cells(pair):
                yield f"{pair.domain}/{pair.name}/{cell.row}/{cell.col}", example(self.BENCHMARK, pair, cell)


@functools.cache
def builder_class(name: str) -> type[BenchmarkBuilder]:
    """Make the builder class of a data set, such as `Loveda` for "loveda".

    Raises:
      UserError: there is no such data set.
    """
    benchmark = get_benchmark(name)
    members = {
        "__doc__": f"{benchmark.title}: see `data_pipelines.datasets.{name}`.",
        "__module__": __name__,
        "BENCHMARK": benchmark,
        "MANUAL_DOWNLOAD_INSTRUCTIONS": benchmark.download,
    }
    return type("".join(word.capitalize() for word in name.split("_")), (BenchmarkBuilder,), members)
