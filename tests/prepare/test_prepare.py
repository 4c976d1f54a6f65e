"""Preparing a benchmark: exact output, errors that name the file, and the summary."""

import hashlib
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_pipelines.prepare import plan, progress
from data_pipelines.prepare import prepare as run
from data_pipelines.prepare.contact_sheet import choose_tiles
from data_pipelines.prepare.prepare import check, prepare
from data_pipelines.prepare.statistics import Histograms
from data_pipelines.readers.prepared import PreparedTiles
from data_pipelines.sheet import display_bands
from spectralmoe_jax.cli.main import main
from spectralmoe_jax.errors import UserError
from tests.prepare import tiny_dataset
from tests.prepare.tiny_dataset import assert_same, contents, folders

QUIET = Console(quiet=True)


def test_tensorflow_datasets_reads_the_exact_tiles(undisturbed):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(undisturbed[2] / "tiny" / "1.0.0")
    expected = tiny_dataset.tiles(undisturbed[1])
    shards = {name: list(split.shard_lengths) for name, split in builder.info.splits.items()}
    assert shards == {"train": [9, 5, 3], "test": [9, 3]}
    for split, tiles in expected.items():
        source = builder.as_data_source(split=split)
        assert len(source) == len(tiles)
        for example, (domain, name, row, col, image, label) in zip(source, tiles, strict=True):
            assert example["image"].dtype == np.int16
            np.testing.assert_array_equal(example["image"], image)
            np.testing.assert_array_equal(example["label"], label)
            place = example["domain"].decode(), example["name"].decode(), example["row"], example["col"]
            assert place == (domain, name, row, col)


def test_prepared_tiles_are_exact(undisturbed):
    source = PreparedTiles(undisturbed[2], splits=("test", "train"))
    expected = tiny_dataset.tiles(undisturbed[1])
    rows = [*expected["test"], *expected["train"]]
    assert len(source.records) == len(rows) == len({record.name for record in source.records})
    for record, counts, (domain, _, _, _, image, label) in zip(
        source.records, source.class_pixels, rows, strict=True
    ):
        assert record.domain == domain
        assert counts.tolist() == [int((label == k).sum()) for k in range(3)]
        read = source.read_image(record)
        assert read.dtype == np.int16
        np.testing.assert_array_equal(read, image)
        np.testing.assert_array_equal(source.read_label(record), label)


def test_statistics_equal_numpy(undisturbed):
    facts = json.loads((undisturbed[2] / "tiny/1.0.0/statistics.json").read_text())
    cut = tiny_dataset.tiles(undisturbed[1])
    assert list(facts["splits"]) == ["train", "test"]
    for split, tiles in cut.items():
        images = np.stack([tile[4] for tile in tiles])
        labels = np.stack([tile[5] for tile in tiles])
        pixels = images[(images != 0).any(axis=-1)].astype(np.float64)
        numbers = facts["splits"][split]
        assert (numbers["tiles"], numbers["pixels"]) == (len(tiles), labels.size)
        assert numbers["images"] == {"train": 4, "test": 2}[split]
        assert numbers["valid_pixels"] == len(pixels) < labels.size
        assert numbers["labelled_pixels"] == np.count_nonzero(labels != 255)
        for band, name in enumerate(tiny_dataset.TINY.bands):
            found = numbers["bands"][name]
            np.testing.assert_allclose(found["mean"], pixels[:, band].mean(), rtol=1e-12)
            np.testing.assert_allclose(found["std"], pixels[:, band].std(), rtol=1e-12)
            assert (found["min"], found["max"]) == (pixels[:, band].min(), pixels[:, band].max())
            percentiles = np.percentile(pixels[:, band], [1, 2, 25, 50, 75, 98, 99])
            np.testing.assert_allclose(list(found["percentiles"].values()), percentiles, rtol=1e-12)
        for label, name in enumerate(tiny_dataset.TINY.classes):
            count = np.count_nonzero(labels == label)
            share = count / np.count_nonzero(labels != 255)
            assert numbers["classes"][name] == {"pixels": count, "share": pytest.approx(share)}
    assert facts["source_bands"] == facts["splits"]["train"]["bands"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_histograms_are_exact_for_every_type(dtype):
    limits = np.iinfo(dtype)
    rng = np.random.default_rng(3)
    image = rng.integers(limits.min, limits.max, (9, 11, 2), dtype, endpoint=True)
    image[0, 0], image[0, 1] = (limits.min, 7), (7, limits.max)
    image[1] = 0
    first, both = Histograms(2, dtype), Histograms(2, dtype)
    assert first.add(image[:5]) == 44
    both.merge(first.sparse())
    both.add(image[5:])
    pixels = image[[0, *range(2, 9)]].reshape(-1, 2).astype(np.float64)
    for band, numbers in enumerate(both.summary("ab").values()):
        assert numbers["mean"] == pytest.approx(pixels[:, band].mean(), rel=1e-12)
        assert numbers["std"] == pytest.approx(pixels[:, band].std(), rel=1e-12)
        for percent, value in numbers["percentiles"].items():
            assert value == pytest.approx(np.percentile(pixels[:, band], int(percent)), rel=1e-12)
    assert Histograms(1, dtype).summary("a")["a"]["mean"] is None


def test_missing_files_are_listed_and_stop_the_command(tmp_path, capsys):
    tiny_dataset.write_source(tmp_path / "source")
    (tmp_path / "source/train/north/b_label.tif").unlink()
    arguments = (tiny_dataset.TINY, tmp_path / "source", tmp_path / "out")
    with pytest.raises(
        UserError, match=r"source: files of Tiny are missing; download: nowhere; or add --partial"
    ):
        prepare(*arguments, workers=0)
    assert not (tmp_path / "out").exists()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"missing: {tmp_path}/source/train/north/b_label.tif is not there",
        "missing: split train: 3 of 4 published images are here",
    ]
    assert len(check(*arguments[:2])) == 2
    assert capsys.readouterr().out.splitlines() == [
        "train: 3 images of 2 domains", "test: 2 images of 1 domain", *lines, "download: nowhere.",
    ]  # fmt: skip
    prepare(*arguments, workers=0, partial=True)
    assert len(PreparedTiles(tmp_path / "out", splits=["train"]).records) == 16


def test_the_check_option(undisturbed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "get_dataset", {"tiny": tiny_dataset.TINY}.__getitem__)
    arguments = ["prepare", "tiny", "--source", str(undisturbed[0]), "--check"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "nothing is missing"
    tiny_dataset.write_source(tmp_path)
    (tmp_path / "test/west/e.tif").unlink()
    arguments[3] = str(tmp_path)
    assert main(arguments) == 1
    assert "missing: split test: 1 of 2 published images are here" in capsys.readouterr().out
    assert main(arguments[:-1]) == 2
    assert capsys.readouterr() == ("", "error: spectralmoe prepare: --out is required, except with --check\n")


def test_an_unknown_benchmark_suggests_the_nearest(tmp_path, capsys):
    assert main(["prepare", "lovda", "--source", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "error: data set 'lovda': no such data set; did you mean loveda?" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_preparation_resumes_after_a_truncated_image_is_replaced(undisturbed, tmp_path, workers):
    tiny_dataset.write_source(tmp_path / "source")
    broken = tmp_path / "source/test/west/e.tif"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-200])
    with pytest.raises(UserError, match=r"test/west/e\.tif: truncated"):
        prepare(tiny_dataset.TINY, tmp_path / "source", tmp_path / "out", workers=workers, console=QUIET)
    working = tmp_path / "out/tiny/1.0.0.incomplete"
    assert len(list((working / "notes").iterdir())) >= 3  # what was finished stays
    assert not list((working / "partial").iterdir())
    with pytest.raises(UserError, match=r"1\.0\.0\.incomplete: preparing is not finished"):
        PreparedTiles(tmp_path / "out")
    broken.write_bytes(whole)
    prepare(tiny_dataset.TINY, tmp_path / "source", tmp_path / "out", workers=workers, console=QUIET)
    assert_same(tmp_path / "out", undisturbed)


def test_an_unknown_label_is_named(tmp_path):
    tiny_dataset.write_source(tmp_path / "source")
    wrong = replace(tiny_dataset.TINY, classes=("meadow", "wood"), palette=tiny_dataset.TINY.palette[:2])
    with pytest.raises(UserError, match=r"a_label\.tif: class 2 is none of the 2 classes"):
        prepare(wrong, tmp_path / "source", tmp_path / "out", workers=0, console=QUIET)


def test_a_changed_source_is_noticed(undisturbed, tmp_path):
    tiny_dataset.write_source(tmp_path / "source")
    arguments = (tiny_dataset.TINY, tmp_path / "source", tmp_path / "out")
    broken, cut = tmp_path / "source/test/west/e.tif", tmp_path / "source/train/north/a.tif"
    last, first = broken.read_bytes(), cut.read_bytes()
    broken.write_bytes(last[:-200])
    with pytest.raises(UserError, match="truncated"):
        prepare(*arguments, workers=0, console=QUIET)
    cut.write_bytes(first + b"more")
    label = tmp_path / "source/train/north/b_label.tif"
    label.rename(label.with_suffix(".away"))
    message = (
        r"changed since they were cut: 2 gone .train/north/b.tif, .*1 of another size .train/north/a.tif"
    )
    with pytest.raises(UserError, match=message):
        prepare(*arguments, workers=0, partial=True, console=QUIET)
    label.with_suffix(".away").rename(label)
    cut.write_bytes(first)
    broken.write_bytes(last)  # not cut yet: it may change
    prepare(*arguments, workers=0, console=QUIET)
    assert_same(tmp_path / "out", undisturbed)
    cut.write_bytes(first + b"more")
    with pytest.raises(UserError, match=r"1\.0\.0: was prepared from other files"):
        prepare(*arguments, workers=0, console=QUIET)
    assert_same(tmp_path / "out", undisturbed)


def test_already_prepared(undisturbed, capsys):
    before = contents(undisturbed[2])
    (undisturbed[2] / "tiny/1.0.0.incomplete/notes").mkdir(parents=True)  # killed after the last step but one
    prepare(tiny_dataset.TINY, undisturbed[0], undisturbed[2])
    assert "was prepared already" in capsys.readouterr().out
    assert contents(undisturbed[2]) == before
    assert folders(undisturbed[2]) == ["tiny", "tiny/1.0.0"]


def test_prints_the_output_folder_and_the_lines_to_paste(undisturbed, tmp_path, capsys):
    folder = prepare(tiny_dataset.TINY, undisturbed[0], tmp_path, workers=0)
    lines = capsys.readouterr().out.splitlines()
    assert folder == tmp_path / "tiny/1.0.0"
    assert f"tiles: {folder}" in lines
    numbers = json.loads((folder / "statistics.json").read_text())["source_bands"]
    scope: dict = {}
    for key, number in (("pixel_mean", "mean"), ("pixel_std", "std")):
        (line,) = (line for line in lines if line.startswith(f"config.model.{key} = "))
        exec(line.removeprefix("config.model."), scope)
        assert scope[key] == pytest.approx([band[number] for band in numbers.values()], rel=1e-5)
    assert len(lines) == len(set(lines))


def test_progress_on_a_terminal_and_elsewhere(undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    for terminal in (False, True):
        written = io.StringIO()
        console = Console(file=written, force_terminal=terminal, width=200)
        prepare(tiny_dataset.TINY, undisturbed[0], tmp_path / str(terminal), workers=0, console=console)
        text = written.getvalue()
        if not terminal:  # a live line may be redrawn less often than tiles are finished
            assert re.search(r"^1/6 images  9/29 tiles  [\d.]+ tiles/s  left 0:00:0\d$", text, re.MULTILINE)
        assert re.search(r"\b6/6 images  29/29 tiles", text)
        assert ("\x1b[" in text) == terminal


def test_exported_by_the_package():
    import spectralmoe_jax

    assert spectralmoe_jax.prepare is prepare


def test_a_full_disk_is_reported(tmp_path):
    from data_pipelines.prepare.cut import _Shard

    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "shard").symlink_to("/dev/full")

    def write() -> None:
        with _Shard(tmp_path / "shard", "group_size:1") as shard:
            for _ in range(50):
                shard.write(os.urandom(100_000))

    with pytest.raises(OSError, match="No space left"):
        write()


def test_bad_folders(undisturbed, tmp_path):
    source = undisturbed[0]
    with pytest.raises(UserError, match="is in the --source folder"):
        prepare(tiny_dataset.TINY, source, source, console=QUIET)
    with pytest.raises(UserError, match="is in the --source folder"):
        prepare(tiny_dataset.TINY, source, source / "train/..", console=QUIET)
    with pytest.raises(UserError, match="no such folder"):
        prepare(tiny_dataset.TINY, tmp_path / "nowhere", tmp_path / "out", console=QUIET)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no file of Tiny is where it should be; download: nowhere"):
        prepare(tiny_dataset.TINY, tmp_path / "empty", tmp_path / "out", console=QUIET)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"file/tiny.*: cannot be written"):
        prepare(tiny_dataset.TINY, source, tmp_path / "file", console=QUIET)
    with pytest.raises(UserError, match="--workers = -1: must be at least 0"):
        prepare(tiny_dataset.TINY, source, tmp_path / "out", workers=-1, console=QUIET)
    assert not (tmp_path / "out").exists()


def test_pieces_respect_their_limits_and_the_order_of_files(undisturbed, monkeypatch):
    pairs, _ = plan.list_downloads(tiny_dataset.TINY, undisturbed[0])
    names = [(pair.split, pair.domain, pair.name) for pair in pairs]
    assert names == sorted(names, key=lambda name: (name[0] != "train", *name[1:]))
    tile = 16 * 16 * (4 * 2 + 1)  # bytes
    for most_tiles, most_bytes, expected in (
        (200, 1 << 29, [[9, 1, 4, 3], [9, 3]]),
        (5, 1 << 29, [[9], [1, 4], [3], [9], [3]]),
        (200, 7 * tile, [[9], [1, 4], [3], [9], [3]]),
        (200, 12 * tile, [[9, 1], [4, 3], [9, 3]]),
    ):
        monkeypatch.setattr(plan, "PIECE_TILES", most_tiles)
        monkeypatch.setattr(plan, "PIECE_BYTES", most_bytes)
        made = plan.make_plan(tiny_dataset.TINY, undisturbed[0], pairs)
        assert [pair for piece in made.pieces for pair in piece.pairs] == list(pairs)
        assert [[len(tiny_dataset.cells(pair)) for pair in piece.pairs] for piece in made.pieces] == expected
        assert [piece.tiles for piece in made.pieces] == [sum(counts) for counts in expected]
        assert (made.tiles, made.images, made.size) == (29, 6, 29 * tile)


def test_two_files_with_one_name(tmp_path):
    tiny_dataset.write_source(tmp_path / "source")
    twice = replace(
        tiny_dataset.TINY,
        find=lambda root: tiny_dataset.find(root)._replace(pairs=tiny_dataset.find(root).pairs * 2),
    )
    with pytest.raises(
        UserError, match=r"a\.tif: a stands for .*a\.tif already, in the split train: remove one"
    ):
        prepare(twice, tmp_path / "source", tmp_path / "out", workers=0, console=QUIET)


def test_the_sheet_shows_every_class_and_domain():
    shares = np.zeros((200, 5))
    shares[:, 0] = 1
    shares[130, :] = (0.9, 0, 0, 0, 0.1)
    shares[7, :] = (0.5, 0, 0.5, 0, 0)
    shares[60, :] = (0.5, 0.5, 0, 0, 0)
    chosen = choose_tiles(shares, ["x"] * 200, 4)
    assert {7, 60, 130} < set(chosen)
    assert chosen == sorted(set(chosen))
    assert len(choose_tiles(shares, ["x"] * 100 + ["y"] * 60 + ["z"] * 40, 3)) == 3
    domains = ["x"] * 100 + ["y"] * 60 + ["z"] * 40
    assert {domains[number] for number in choose_tiles(shares, domains, 3)} == {"x", "y", "z"}
    assert choose_tiles(shares[:2], ["x", "x"], 8) == [0, 1]


def test_the_sheet_has_the_colours_of_classes_and_of_no_label(undisturbed):
    from PIL import Image

    with Image.open(undisturbed[2] / "tiny/1.0.0/contact_sheet.png") as picture:
        assert "Software" not in picture.info
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    assert {*tiny_dataset.TINY.palette, (226, 226, 226), (192, 192, 192)} <= colours


def test_bands_to_show():
    assert display_bands(("nir", "Red", "green", "blue")) == (1, 2, 3)
    assert display_bands(("B02", "B03", "B04", "B08"), "sentinel2") == (2, 1, 0)
    assert display_bands([f"band {number}" for number in range(1, 33)], "orbita_ohs") == (13, 6, 1)
    assert display_bands(("a", "b", "c", "d"), "sentinel2") == (0, 1, 2)
    assert display_bands(("a", "b")) == (0, 0, 0)


@pytest.fixture
def with_archive(tmp_path):
    """A source folder with the archive that it was unpacked from, and its benchmark."""
    tiny_dataset.write_source(tmp_path / "source")
    whole = np.random.default_rng(0).bytes(9 << 20)
    (tmp_path / "source/all.zip").write_bytes(whole)
    return replace(
        tiny_dataset.TINY, checksums={"all.zip": hashlib.md5(whole).hexdigest(), "gone.zip": "0" * 32}
    )


def test_a_complete_archive_is_checked_and_reported(with_archive, tmp_path):
    told = io.StringIO()
    console = Console(file=told, width=200)
    prepare(with_archive, tmp_path / "source", tmp_path / "out", workers=0, console=console)
    check(with_archive, tmp_path / "source", console=console)
    assert told.getvalue().count("checking the md5 of all.zip, 0.01 GB") == 2


@pytest.mark.parametrize("what", ["truncated", "one bit"])
def test_a_damaged_archive_is_named_before_anything_is_cut(with_archive, tmp_path, what):
    archive = tmp_path / "source/all.zip"
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-1] if what == "truncated" else whole[:-1] + bytes([whole[-1] ^ 1]))
    message = r"all\.zip: its md5 is \w{32}, published is \w{32}: download and unpack it again"
    with pytest.raises(UserError, match=message):
        prepare(with_archive, tmp_path / "source", tmp_path / "out", workers=0, console=QUIET)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=message):
        check(with_archive, tmp_path / "source", console=QUIET)
