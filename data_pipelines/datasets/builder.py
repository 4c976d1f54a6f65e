"""TensorFlow Datasets builders of the published data sets; TensorFlow itself is not needed.

    builder = builder_class("loveda")(data_dir="data")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir="DOWNLOADS"))
    builder.as_data_source("val_urban")[0]["image"]  # (h, w, C)

DOWNLOADS is the download folder. `spectralmoe prepare` writes the same examples faster, in several processes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_info import DatasetIdentity
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from data_pipelines.datasets import downloaded_files as files
from data_pipelines.datasets import get_dataset
from data_pipelines.datasets.dataset import VERSION, Dataset, Pair
from data_pipelines.records import Window
from spectralmoe_jax.errors import UserError

log = logging.getLogger(__name__)


def features(dataset: Dataset) -> tfds.features.FeaturesDict:
    """Return the fields that a tile is stored as.

    `image` (h, w, C) in the data set's type and `label` (h, w) uint8 are raw bytes: zlib would make tiles
    about a third smaller and ten to twenty times slower to decode. `name` and `domain` are those of the
    image; `row` and `col` are the position in the image of the tile's upper left pixel.
    """
    raw = tfds.features.Encoding.BYTES
    pixels, channels = np.dtype(dataset.dtype), len(dataset.bands)
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


def example(pair: Pair, cell: Window, image: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Return the fields of `features` for the tile `cell` of a pair: `image` (h, w, C) and `label` (h, w)."""
    return {
        "image": image,
        "label": label,
        "name": pair.name,
        "domain": pair.domain,
        "row": cell.row,
        "col": cell.col,
    }


class Encoder:
    """Encodes tiles as TensorFlow Datasets reads them, with the same bytes in every process.

    The fields of a record are sorted by name: the order in TensorFlow Datasets' own serialisation differs
    between processes.
    """

    def __init__(self, dataset: Dataset):
        self._features = features(dataset)
        self._serializer = ExampleSerializer(self._features.get_serialized_info())

    def __call__(self, pair: Pair, cell: Window, image: np.ndarray, label: np.ndarray) -> bytes:
        """Return the bytes of a tile; arguments as for `example`."""
        encoded = self._features.encode_example(example(pair, cell, image, label))
        return self._serializer.get_tf_example(encoded).SerializeToString(deterministic=True)


def dataset_info(dataset: Dataset, builder: Any) -> tfds.core.DatasetInfo:
    """Return the metadata of a data set for TensorFlow Datasets; `builder` is a builder or its identity."""
    return tfds.core.DatasetInfo(
        builder=builder,
        description=f"{dataset.title}. Classes: {', '.join(dataset.classes)}.",
        features=features(dataset),
        homepage=dataset.homepage,
        citation=dataset.citation,
        license=dataset.licence,
        disable_shuffling=True,
    )


def write_description(
    dataset: Dataset, version: str, shards: Mapping[str, tuple[list[int], int]], folder: Path
) -> None:
    """Write dataset_info.json, features.json and LICENSE as a builder would.

    Args:
      dataset: the data set.
      version: version of the tiles.
      shards: for each split the number of tiles in each shard, and the bytes of all of them.
      folder: folder of the shards.
    """
    identity = DatasetIdentity(
        name=dataset.name,
        version=tfds.core.Version(version),
        data_dir=str(folder),
        module_name=f"data_pipelines.datasets.{dataset.name}",
    )
    info = dataset_info(dataset, identity)
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    info.set_splits(
        tfds.core.splits.SplitDict(
            [tfds.core.SplitInfo(name, lengths, size) for name, (lengths, size) in shards.items()]
        )
    )
    info.write_to_directory(folder)


class DatasetBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builds a data set from the download folder, which TensorFlow Datasets calls `manual_dir`."""

    DATASET: ClassVar[Dataset]
    VERSION = tfds.core.Version(VERSION)
    RELEASE_NOTES: ClassVar[dict[str, str]] = {str(VERSION): "Tiles of the published files."}

    def __init__(self, *, file_format: Any = "array_record", **keywords: Any):
        super().__init__(file_format=file_format, **keywords)

    def _info(self) -> tfds.core.DatasetInfo:
        return dataset_info(self.DATASET, self)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        root = Path(dl_manager.manual_dir)
        files.check_archives(root, self.DATASET.checksums)
        pairs, missing = self.DATASET.find(root)
        if not pairs:
            raise UserError(
                f"{root}: no image of {self.DATASET.title} ({'; '.join(missing)}): download "
                f"{self.DATASET.download}"
            )
        for line in missing:
            log.warning("%s: %s", root, line)
        by_split = {split: [p for p in pairs if p.split == split] for split in self.DATASET.splits}
        return {split: self._generate_examples(members) for split, members in by_split.items() if members}

    def _generate_examples(self, pairs: Sequence[Pair]) -> Iterator[tuple[str, dict[str, Any]]]:
        for pair in pairs:
            for cell in self.DATASET.cells(pair):
                tile = example(pair, cell, *self.DATASET.read_tile(pair, cell))
                yield f"{pair.domain}/{pair.name}/{cell.row}/{cell.col}", tile


@functools.cache
def builder_class(name: str) -> type[DatasetBuilder]:
    """Return the builder class of a data set, such as `Loveda` for "loveda".

    Raises:
      UserError: there is no such data set.
    """
    dataset = get_dataset(name)
    members = {
        "__doc__": f"{dataset.title}: see `data_pipelines.datasets.get_dataset({name!r})`.",
        "__module__": __name__,
        "DATASET": dataset,
        "MANUAL_DOWNLOAD_INSTRUCTIONS": dataset.download,
    }
    return type("".join(word.capitalize() for word in name.split("_")), (DatasetBuilder,), members)
