"""Prepared tiles as a source: bands and classes by name, one decoding per tile, damaged shards."""

import json
import pickle
import shutil
import sys
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from rich.console import Console
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.loader import train_batches
from data_pipelines.prepare.prepare import prepare
from data_pipelines.readers import prepared as prepared_module
from data_pipelines.readers.prepared import PreparedTiles
from data_pipelines.readers.prepared_files import Layout, PreparedRecord
from data_pipelines.records import Window, split_holdout
from data_pipelines.tiles.tile_index import TileIndex
from data_pipelines.transforms import Augment
from spectralmoe_jax.config.schema import AugmentConfig
from spectralmoe_jax.errors import UserError
from tests.prepare import tiny_dataset


@pytest.fixture(scope="session")
def root(undisturbed):
    return undisturbed[2]


@pytest.fixture
def damaged(root, tmp_path):
    shutil.copytree(root, tmp_path / "out")
    return tmp_path / "out"


def test_compressed_tiles_are_the_same(root, tmp_path):
    tiny_dataset.write_source(tmp_path / "source")
    prepare(
        tiny_dataset.TINY,
        tmp_path / "source",
        tmp_path / "out",
        workers=0,
        compress=True,
        console=Console(quiet=True),
    )
    plain, small = PreparedTiles(root), PreparedTiles(tmp_path / "out")
    assert [record.name for record in plain.records] == [record.name for record in small.records]
    for one, other in zip(plain.records, small.records, strict=True):
        np.testing.assert_array_equal(plain.read_image(one), small.read_image(other))
        np.testing.assert_array_equal(plain.read_label(one), small.read_label(other))
    with pytest.raises(UserError, match="or with other options: remove it"):
        prepare(
            tiny_dataset.TINY, tmp_path / "source", tmp_path / "out", workers=0, console=Console(quiet=True)
        )


def test_windows_are_parts_of_tiles(root):
    source = PreparedTiles(root)
    record = source.records[0]
    whole, label = source.read_image(record), source.read_label(record)
    window = Window(3, 5, 7, 9)
    np.testing.assert_array_equal(source.read_image(record, window), whole[3:10, 5:14])
    np.testing.assert_array_equal(source.read_label(record, window), label[3:10, 5:14])
    for array in (whole, label, source.read_image(record, window)):
        assert not array.flags.writeable
    assert (record.height, record.width) == label.shape == whole.shape[:2]


def test_bands_come_by_name(root):
    stored = PreparedTiles(root)
    chosen = PreparedTiles(root, bands=("Blue", "nir"))
    record = stored.records[5]
    assert stored.bands == ("nir", "red", "green", "blue")
    np.testing.assert_array_equal(chosen.read_image(record), stored.read_image(record)[..., [3, 0]])
    with pytest.raises(
        UserError, match=r"1\.0\.0: no band 'swir', it has nir, red, green, blue: correct config\.bands"
    ):
        PreparedTiles(root, bands=("red", "swir"))


def test_classes_must_be_those_of_the_configuration(root):
    PreparedTiles(root, classes=["meadow", "wood", "pond"])
    for wrong in (("wood", "meadow", "pond"), ("meadow", "wood")):
        with pytest.raises(
            UserError, match=r"its classes are meadow, wood, pond; set config\.classes\.names"
        ):
            PreparedTiles(root, classes=wrong)


def test_splits_are_named(root):
    assert {record.split for record in PreparedTiles(root, splits=["test"]).records} == {"test"}
    with pytest.raises(UserError, match="no split 'val', there are train, test: correct"):
        PreparedTiles(root, splits=["val"])
    with pytest.raises(UserError, match="no split named"):
        PreparedTiles(root, splits=[])


def test_holdout_and_description(root):
    source = PreparedTiles(root, splits=["train"])
    train, held = split_holdout(source.records, 0.2, 0)
    assert {record.domain for record in held} == {record.domain for record in train} == {"north", "süd ost"}
    images = [{record.image_name for record in part if record.domain == "north"} for part in (train, held)]
    assert images[0] | images[1] == {"north/a", "north/b", "north/c"}
    assert not images[0] & images[1]  # tiles of one image stay together
    labelled = source.class_pixels.sum() / (17 * 256)
    assert source.describe() == f"train: 17 tiles of 2 domains, 0.0 Mpx, {labelled:.1%} labelled"
    assert source.class_pixels.shape == (17, 3)


def test_a_tile_is_decoded_once_for_label_and_image(root, monkeypatch):
    decoded = []
    decode = prepared_module.Layout.decode
    monkeypatch.setattr(
        prepared_module.Layout, "decode", lambda self, *record: decoded.append(0) or decode(self, *record)
    )
    source = PreparedTiles(root)
    for record in source.records[:3]:
        source.read_label(record)
        source.read_image(record)
        source.read_image(record, Window(0, 0, 4, 4))
    assert len(decoded) == 3


def test_threads_and_pickles_read_the_same(root):
    source = PreparedTiles(root)
    expected = [(source.read_label(r).tobytes(), source.read_image(r).tobytes()) for r in source.records]
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(4) as pool:
        read = lambda record: (copy.read_label(record).tobytes(), copy.read_image(record).tobytes())
        assert list(pool.map(read, source.records * 5)) == expected * 5


def test_batches_are_independent_of_workers(root):
    tiles = TileIndex(PreparedTiles(root, splits=["train"]), 16)
    batches = [
        list(
            islice(
                train_batches(
                    tiles, Augment(8, AugmentConfig(flip=0.5)), batch_size=4, seed=1, workers=workers
                ),
                6,
            )
        )
        for workers in (0, 2)
    ]
    for one, other in zip(*batches, strict=True):
        assert one["image"].tobytes() == other["image"].tobytes()
        assert one["label"].tobytes() == other["label"].tobytes()


def test_a_folder_is_found_from_any_level(root):
    folder = root / "tiny" / "1.0.0"
    for place in (root, root / "tiny", folder):
        assert PreparedTiles(place).folder == folder
    assert PreparedTiles(root, dataset="tiny").folder == folder
    for place in (root, root / "tiny", folder):
        with pytest.raises(
            UserError, match="no prepared tiles here, run `spectralmoe prepare whu_ohs --source"
        ):
            PreparedTiles(place, dataset="whu_ohs")


def test_the_newest_version_and_the_only_benchmark(damaged):
    shutil.copytree(damaged / "tiny/1.0.0", damaged / "tiny/1.10.0")
    shutil.copytree(damaged / "tiny/1.0.0", damaged / "tiny/1.2.0")
    assert PreparedTiles(damaged).folder.name == "1.10.0"
    shutil.copytree(damaged / "tiny/1.0.0", damaged / "other/1.0.0")
    facts = damaged / "other/1.0.0/statistics.json"
    facts.write_text(facts.read_text().replace('"tiny"', '"other"'))
    assert PreparedTiles(damaged, dataset="other").folder == facts.parent
    with pytest.raises(UserError, match="several data sets are here, give the folder of one: other, tiny"):
        PreparedTiles(damaged)


def test_folders_that_are_not_prepared(tmp_path):
    with pytest.raises(UserError, match="nowhere: no prepared tiles here, run `spectralmoe prepare NAME"):
        PreparedTiles(tmp_path / "nowhere")


def test_damaged_shards_are_named(damaged):
    folder = damaged / "tiny/1.0.0"
    shard = folder / "tiny-test.array_record-00001-of-00002"
    source = PreparedTiles(damaged, splits=["test"])
    whole = shard.read_bytes()
    last = source.records[-1]

    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        UserError, match=r"tiny-test.array_record-00001-of-00002: damaged .* holds 0 readable tiles, not 3"
    ):
        source.read_image(last)
    shard.unlink()
    with pytest.raises(UserError, match=r"tiny-test.array_record-00001-of-00002: missing, restore it"):
        PreparedTiles(damaged).read_label(last)
    flipped = bytearray(whole)
    source.read_image(source.records[0])  # another shard still reads
    flipped[600] ^= 255
    shard.write_bytes(bytes(flipped))
    with pytest.raises(
        UserError, match=r"00001-of-00002: record \d is damaged .*hash mismatch.*prepare it again"
    ):
        list(map(source.read_image, source.records))


def test_threads_begin_to_decode_one_after_the_other(monkeypatch):
    """The stand-in of TensorFlow Datasets imports its parts at first use: the real one then hangs."""
    inside, seen = [], []

    class Parts(types.ModuleType):
        @property
        def tf_example_pb2(self):
            inside.append(threading.get_ident())
            time.sleep(0.05)
            seen.append(len(inside))
            inside.pop()
            return types.SimpleNamespace(Example=types.SimpleNamespace(FromString=lambda encoded: int("x")))

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.ModuleType("tensorflow_datasets"))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets.proto", Parts("tensorflow_datasets.proto"))
    layout = Layout({}, {}, np.dtype(np.uint8), bands=3, classes=2)

    def decode():
        with pytest.raises(ValueError, match="invalid literal"):
            layout.decode(b"", PreparedRecord("d", "d/x_00000_00000", 8, 8, "d/x", "train", 0, 64))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(decode) for _ in range(4)]:
            done.result()
    assert seen == [1] * 4


def rewrite(shard: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Write a shard anew with other records."""
    reader = ArrayRecordReader(str(shard))
    records = change(reader.read_all())
    reader.close()
    writer = ArrayRecordWriter(str(shard), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def with_label(encoded: bytes, value: int) -> bytes:
    example = tf_example_pb2.Example.FromString(encoded)
    stored = example.features.feature["label/value"].bytes_list.value
    stored[0] = bytes([value]) * len(stored[0])
    return example.SerializeToString()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda records: records[::-1],
            "it holds the tile north/a_00032_00032 of north, not north/a_0",
        ),
        (lambda records: [records[1], records[0], *records[2:]], "it holds the tile north/a_"),
        (lambda records: records[:-1], r"it holds \d+ readable tiles, not \d+"),
        (lambda records: [*records, records[0]], r"it holds \d+ readable tiles, not \d+"),
        (lambda records: [with_label(each, 3) for each in records], "values that are none of the 3 classes"),
        (lambda records: [with_label(each, 0) for each in records], "it has 256 labelled pixels, index.npz"),
    ],
    ids=["reversed", "swapped", "one less", "one more", "class of its own", "other label"],
)
def test_records_of_other_tiles_are_noticed(damaged, change, expected):
    """Whole shards with sound checksums, whose tiles are not those of the index."""
    rewrite(damaged / "tiny/1.0.0/tiny-train.array_record-00000-of-00003", change)
    source = PreparedTiles(damaged)
    with pytest.raises(UserError, match=rf"00000-of-00003: .*{expected}"):
        source.read_label(source.records[0])


def test_shards_without_tiles_are_refused(damaged):
    """A list of a million empty shards takes no time."""
    path = damaged / "tiny/1.0.0/dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"] += ["0"] * 1_000_000
    path.write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"dataset_info.json: damaged, .* states a shard without tiles"):
        PreparedTiles(damaged)
