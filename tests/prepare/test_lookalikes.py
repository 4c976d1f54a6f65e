"""Each of the seven benchmarks, from a look-alike in its published layout to exact tiles."""

import numpy as np
import pytest
from rich.console import Console

from data_pipelines.datasets import DATASETS, get_dataset
from data_pipelines.prepare.prepare import prepare
from data_pipelines.readers.prepared import PreparedTiles
from tests.datasets import lookalikes


@pytest.mark.parametrize("name", DATASETS)
def test_prepared_lookalikes_are_exact(name, tmp_path):
    from data_pipelines.datasets.builder import builder_class

    expected = {
        (tile.split, tile.domain, tile.name, tile.row, tile.col): tile
        for tile in lookalikes.write(name, tmp_path / "source")
    }
    folder = prepare(
        name, tmp_path / "source", tmp_path / "out", workers=0, partial=True, console=Console(quiet=True)
    )
    source = PreparedTiles(folder)
    rows = {(record.split, record.index): row for row, record in enumerate(source.records)}
    assert len(rows) == len(expected)

    builder = builder_class(name)(data_dir=tmp_path / "out")
    seen = set()
    for split in builder.info.splits:
        for index, example in enumerate(builder.as_data_source(split=split)):
            domain, image_name = example["domain"].decode(), example["name"].decode()
            key = split, domain, image_name, int(example["row"]), int(example["col"])
            tile = expected[key]
            seen.add(key)
            row = rows[split, index]
            record = source.records[row]
            assert record.domain == domain
            for image, label in (
                (example["image"], example["label"]),
                (source.read_image(record), source.read_label(record)),
            ):
                assert image.dtype == tile.image.dtype == get_dataset(name).dtype
                np.testing.assert_array_equal(image, tile.image)
                np.testing.assert_array_equal(label, tile.label)
            counts = np.bincount(tile.label.ravel(), minlength=256)
            np.testing.assert_array_equal(source.class_pixels[row], counts[: len(source.classes)])
    assert seen == expected.keys()
