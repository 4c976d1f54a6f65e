"""Files of prepared tiles that are cut, changed or of another form: one line that names the file."""

import json
import os
import shutil
import sys

import numpy as np
import pytest

from data_pipelines.readers.prepared import PreparedTiles
from spectralmoe_jax.errors import UserError

SHARD = "tiny-test.array_record-00000-of-00002"


@pytest.fixture
def folder(undisturbed, tmp_path):
    shutil.copytree(undisturbed[2], tmp_path / "out")
    return tmp_path / "out/tiny/1.0.0"


def read_all(folder):
    source = PreparedTiles(folder)
    return [(source.read_image(tile), source.read_label(tile)) for tile in source.records]


def refusal(folder):
    with pytest.raises(UserError) as error:
        read_all(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def change(path, edit):
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("name", ["statistics.json", "dataset_info.json", "features.json", "index.npz"])
@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"[" * 200_000, b"\xff\xfe\x00", b'{"a": 1}'])
def test_other_content(name, content, folder):
    (folder / name).write_bytes(content)
    assert f"{folder / name}: " in refusal(folder)


STATISTICS = (
    ("splits", None), ("splits", []), ("splits", {"test": {}}), ("splits", {"test": {"tiles": -1}}),
    ("bands", 3), ("bands", []), ("bands", ["red", "red"]), ("bands", ["red", 3]), ("classes", None),
    ("classes", "abc"), ("classes", [str(n) for n in range(256)]), ("dtype", "O"),
    ("dtype", "float64"), ("dtype", 3), ("dtype", "<U9"), ("dtype", "uint16"), ("benchmark", None),
    ("bands", ["nir", "red", "green"]),
)  # fmt: skip


@pytest.mark.parametrize(("key", "value"), STATISTICS)
def test_statistics(key, value, folder):
    change(folder / "statistics.json", lambda document: document.update({key: value}))
    assert "statistics.json" in refusal(folder) or key in ("bands", "dtype", "classes")


INFO = (
    ("name", "../x"), ("name", 3), ("name", "other"), ("fileFormat", "tfrecord"), ("splits", []),
    ("splits", 3), ("splits", [3]), ("splits", [{"name": "test", "shardLengths": ["7"]}]),
)  # fmt: skip


@pytest.mark.parametrize(("key", "value"), INFO)
def test_description(key, value, folder):
    change(folder / "dataset_info.json", lambda document: document.update({key: value}))
    refusal(folder)


@pytest.mark.parametrize(
    "lengths", [None, [], ["x"], ["1000", "0"], ["-1", "8"], [[1]], [str(2**70)], ["9" * 5000], [1e308]]
)
def test_shard_lengths(lengths, folder):
    change(folder / "dataset_info.json", lambda document: document["splits"][1].update(shardLengths=lengths))
    assert "dataset_info.json" in refusal(folder)


@pytest.mark.parametrize("template", ["/etc/passwd", "../{DATASET}-{SPLIT}", 3, None])
def test_names_of_shards(template, folder):
    change(
        folder / "dataset_info.json", lambda document: document["splits"][1].update(filepathTemplate=template)
    )
    assert "dataset_info.json" in refusal(folder)


@pytest.mark.parametrize("name", ["../x", "/etc", "", "a\nb", 3, None, "a" * 300])
def test_names_of_splits(name, folder):
    change(folder / "dataset_info.json", lambda document: document["splits"][1].update(name=name))
    refusal(folder)


@pytest.mark.parametrize("name", ["payload_module.X", "os.system", "..", 3, None])
def test_no_class_is_imported(name, folder, tmp_path, monkeypatch):
    (tmp_path / "payload_module.py").write_text(f"open({str(tmp_path / 'witness')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)

    def edit(document):
        document["pythonClassName"] = name
        for feature in document["featuresDict"]["features"].values():
            feature["pythonClassName"] = name

    expected = read_all(folder)
    change(folder / "features.json", edit)
    for ours, theirs in zip(read_all(folder), expected, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
    assert "payload_module" not in sys.modules
    assert not (tmp_path / "witness").exists()


def index_with(folder, **changes):
    with np.load(folder / "index.npz") as index:
        arrays = dict(index)
    arrays |= {
        key.replace("__", "/"): change(arrays[key.replace("__", "/")]) for key, change in changes.items()
    }
    np.savez(folder / "index.npz", **{key: value for key, value in arrays.items() if value is not None})


@pytest.mark.parametrize(
    "change",
    [
        lambda column: None, lambda column: column[:-1], lambda column: column.astype(object),
        lambda column: column.astype(str), lambda column: column * 1.5, lambda column: -column,
        lambda column: column[:, None], lambda column: column + 2**40, lambda column: column * 0,
    ],
)  # fmt: skip
def test_columns_of_the_index(change, folder):
    index_with(folder, test__height=change)
    assert "index.npz" in refusal(folder)


def test_class_counts_of_the_index(folder):
    index_with(folder, test__class_pixels=lambda counts: counts + 1000)
    assert "more labelled pixels than pixels" in refusal(folder)


def test_a_tile_of_another_size_than_its_index_says(folder):
    index_with(folder, test__height=lambda heights: heights + 1)
    assert (
        f"{SHARD}: record 0 is damaged (its image is (16, 16, 4), 2048 bytes, not (17, 16, 4) int16)"
        in refusal(folder)
    )


def rewrite(path, edit):
    """Write a shard again, its first record changed."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    reader = ArrayRecordReader(str(path))
    records = reader.read(list(range(reader.num_records())))
    reader.close()
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in [edit(records[0]), *records[1:]]:
        writer.write(record)
    writer.close()


def example(record, **fields):
    from tensorflow_datasets.proto import tf_example_pb2

    found = tf_example_pb2.Example.FromString(record)
    for name, value in fields.items():
        name = name.replace("__", "/")
        found.features.feature.pop(name)
        if isinstance(value, bytes):
            found.features.feature[name].bytes_list.value.append(value)
        elif value is not None:
            found.features.feature[name].int64_list.value.extend(value)
    return found.SerializeToString()


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: b"x", lambda record: b"", lambda record: record[:100],
        lambda record: example(record, image__value=None), lambda record: example(record, label__value=b""),
        lambda record: example(record, image__value=[3]), lambda record: example(record, image__shape=None),
        lambda record: example(record, image__shape=[2**40, 2**40, 4]),
        lambda record: example(record, image__shape=[-1, 16, 4]),
        lambda record: example(record, image__value=bytes(4096)),
        lambda record: example(record, label__shape=[16, 17]),
    ],
)  # fmt: skip
def test_records_that_are_no_tiles(edit, folder):
    rewrite(folder / SHARD, edit)
    assert f"{folder / SHARD}: record 0 is damaged (" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"x", bytes(100_000), b"\xff" * 70_000])
def test_shards_of_other_content(content, folder):
    (folder / SHARD).write_bytes(content)
    assert SHARD in refusal(folder)


def test_folders_links_and_pipes_in_place_of_files(folder, tmp_path):
    (folder / SHARD).unlink()
    for make in (
        lambda: (folder / SHARD).symlink_to(SHARD),
        lambda: (folder / SHARD).symlink_to("/dev/zero"),
        lambda: os.mkfifo(folder / SHARD),
    ):
        make()
        assert f"{folder / SHARD}: missing" in refusal(folder)
        (folder / SHARD).unlink()
    (folder / "features.json").unlink()
    assert "features.json: damaged, it is missing" in refusal(folder)
    os.mkfifo(folder / "features.json")
    assert "features.json: damaged, it is missing" in refusal(folder)
