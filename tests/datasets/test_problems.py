"""Messages for benchmark files that are missing or differ from the published ones."""

import re
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from data_pipelines.datasets import DATASETS, get_dataset
from data_pipelines.datasets.builder import builder_class
from data_pipelines.datasets.tile_reader import ColourRule, IndexRule
from spectralmoe_jax.errors import UserError
from tests.datasets.lookalikes import write, write_png, write_tiff


def pair_of(benchmark, folder, name):
    (pair,) = (pair for pair in benchmark.find(folder).pairs if pair.name == name)
    return pair


@pytest.mark.parametrize("name", DATASETS)
def test_an_empty_folder_lists_missing_files(name, tmp_path):
    pairs, missing = get_dataset(name).find(tmp_path)
    assert not pairs
    assert missing
    assert all(str(tmp_path) in line for line in missing[:1])
    (tmp_path / "note.txt").write_text("nothing here")
    builder = builder_class(name)(data_dir=tmp_path / "out")
    with pytest.raises(UserError, match="no image of"):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path))


@pytest.mark.parametrize(
    ("name", "gone", "line"),
    [
        ("whu_ohs", "tr/label/O2_0001.tif", "images without label: O2_0001.tif not in"),
        ("fbp_cross_geospatial", "Annotation__index/*0564539*", "MSS2_24label.png not in"),
        ("flair", "flair_labels_train/D004_2021/Z10_AU/msk/*", "MSK_000826.tif not in"),
        ("loveda", "Val/Urban/masks_png/*", "images without label: 5.png, 6.png not in"),
        ("potsdam_vaihingen", "Potsdam/5_Labels_all/*6_7*", "top_potsdam_6_7_RGB.tif not in 5_Labels_all"),
        ("open_earth_map", "OpenEarthMap/*/aachen/labels/aachen_5.tif", "aachen_5.tif not in"),
        (
            "open_earth_map",
            "OpenEarthMap/*/aachen/images/aachen_5.tif",
            "images of the lists that are not there",
        ),
        ("open_earth_map", "OpenEarthMap/*/val.txt", "list "),
        ("loveda", "Train/Rural/images_png/*", "holds no *.png (split train_rural)"),
        ("fbp_cross_sensor", "C-megacities/Image__8bit_NirRGB/T50*", "split beijing: images not in"),
    ],
)
def test_missing_files_are_named(name, gone, line, tmp_path):
    tiles = write(name, tmp_path)
    lost = list(tmp_path.glob(gone))
    assert lost
    for path in lost:
        path.unlink()
    pairs, missing = get_dataset(name).find(tmp_path)
    assert any(line in text for text in missing), missing
    assert len({pair.image for pair in pairs}) < len({tile[:3] for tile in tiles})


def test_a_complete_loveda_misses_nothing(tmp_path):
    write("loveda", tmp_path)
    assert get_dataset("loveda").find(tmp_path).missing == ()


def test_a_truncated_archive_is_rejected(tmp_path):
    write("loveda", tmp_path / "source")
    (tmp_path / "source" / "Val.zip").write_bytes(b"half of it")
    builder = builder_class("loveda")(data_dir=tmp_path)
    with pytest.raises(UserError, match=r"Val.zip: its md5 is \w{32}, published is 84cae2577468ff0b"):
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / "source")
        )


def test_xbd_regions_without_images_are_accepted(tmp_path):
    write("open_earth_map", tmp_path)
    pairs, missing = get_dataset("open_earth_map").find(tmp_path)
    assert missing == ()
    assert "houston" not in {pair.domain for pair in pairs}


def test_a_label_outside_the_rule_names_file_and_value(tmp_path):
    write("loveda", tmp_path)
    mask = tmp_path / "Val/Urban/masks_png/6.png"
    stored = np.array(Image.open(mask))
    stored[5, 5:8] = 9
    write_png(mask, stored)
    benchmark = get_dataset("loveda")
    pair = pair_of(benchmark, tmp_path, "6")
    with pytest.raises(UserError, match=rf"{re.escape(str(mask))}: 3 pixels hold 9.*those are 0\.\.7"):
        benchmark.read_tile(pair, benchmark.cells(pair)[0])


def test_a_colour_outside_the_rule_names_file_and_colour(tmp_path):
    write("potsdam_vaihingen", tmp_path)
    mask = tmp_path / "Potsdam/5_Labels_all/top_potsdam_2_10_label.tif"
    colours = np.array(Image.open(mask))
    colours[0, 0] = (255, 128, 0)
    write_tiff(mask, colours)
    benchmark = get_dataset("potsdam_vaihingen")
    pair = pair_of(benchmark, tmp_path, "top_potsdam_2_10_RGB")
    with pytest.raises(UserError, match=rf"{re.escape(str(mask))}: 1 pixels have the colour \(255, 128, 0\)"):
        benchmark.read_tile(pair, benchmark.cells(pair)[0])


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((80, 80, 4), np.uint8), "4 bands of uint8, published are 5 of uint8"),
        (np.zeros((80, 80, 5), np.int16), "5 bands of int16, published are 5 of uint8"),
        (np.zeros((80, 81, 5), np.uint8), "80 x 80 pixels, its image .* has 80 x 81"),
    ],
)
def test_an_image_that_differs_from_the_published_one_is_rejected(pixels, words, tmp_path):
    write("flair", tmp_path)
    image = next(tmp_path.glob("flair_1_aerial_test/*/*/img/*.tif"))
    write_tiff(image, pixels)
    benchmark = get_dataset("flair")
    with pytest.raises(UserError, match=words) as problem:
        benchmark.cells(pair_of(benchmark, tmp_path, image.stem))
    assert str(image) in str(problem.value)


def test_coloured_masks_in_place_of_index_masks_are_rejected(tmp_path):
    path = tmp_path / "mask.png"
    write_png(path, np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="use the index masks"):
        IndexRule((1, 2)).read(path)
    write_png(path, np.zeros((4, 4), np.uint8))
    with pytest.raises(UserError, match="colours in three bands"):
        ColourRule(((255, 0, 0),)).read(path)


def test_labels_of_wide_types_are_read_and_checked(tmp_path):
    path = tmp_path / "mask.tif"
    write_tiff(path, np.array([[0, 1], [2, 1]], np.int16))
    np.testing.assert_array_equal(IndexRule((1, 2)).read(path), [[255, 0], [1, 0]])
    for value in (-1, 300, 255):
        write_tiff(path, np.array([[0, value]], np.int16))
        with pytest.raises(UserError, match=f"1 pixels hold {value}, "):
            IndexRule((1, 2)).read(path)


def test_a_city_mask_without_labels_is_rejected(tmp_path):
    write("fbp_cross_sensor", tmp_path)
    mask = next((tmp_path / "C-megacities" / "label_dense__color").glob("T50*"))
    write_tiff(mask, np.zeros((600, 530, 3), np.uint8))
    benchmark = get_dataset("fbp_cross_sensor")
    with pytest.raises(UserError, match="nothing is labelled in it"):
        benchmark.cells(pair_of(benchmark, tmp_path, "T50TMK_20210929T030539"))


@pytest.mark.parametrize("name", ["fbp_cross_geospatial", "open_earth_map", "whu_ohs"])
def test_the_users_split_decides(name, tmp_path):
    tiles = write(name, tmp_path)
    # A name of the split file is an image, a region or a scene; the last two are domains.
    unit = 2 if name == "fbp_cross_geospatial" else 1
    first, second, *others = sorted({tile[unit] for tile in tiles})
    (tmp_path / "split.txt").write_text(f"{first} target\n{second} source # as we want it\n")
    pairs = get_dataset(name).find(tmp_path).pairs
    splits = {pair[unit]: pair.split.partition("_")[0] for pair in pairs}
    assert (splits.pop(first), splits.pop(second)) == ("target", "source")
    assert splits.keys() == (
        {*others} if name == "whu_ohs" else set()
    )  # its others stay in the published splits
    assert not {"source", "target"} & {*splits.values()}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("O1 train", "'O1 train' is not understood"),
        ("O1", "'O1' is not understood"),
        ("O9 source", "there is no scene 'O9'"),
        ("O1 source\nO1 target", "O1 is named twice"),
    ],
)
def test_errors_in_a_split_file_are_explained(text, words, tmp_path):
    write("whu_ohs", tmp_path)
    (tmp_path / "split.txt").write_text(text)
    with pytest.raises(UserError, match=words) as problem:
        get_dataset("whu_ohs").find(tmp_path)
    assert str(tmp_path / "split.txt") in str(problem.value)


def test_eroded_masks_are_used_if_there_are_no_others(tmp_path):
    write("potsdam_vaihingen", tmp_path)
    whole = tmp_path / "Potsdam" / "5_Labels_all"
    eroded = tmp_path / "Potsdam" / "5_Labels_all_noBoundary"
    eroded.mkdir()
    for mask in whole.iterdir():
        shutil.copy(mask, eroded / mask.name.replace("_label", "_label_noBoundary"))
    find = get_dataset("potsdam_vaihingen").find
    folders = lambda: {pair.label.parent for pair in find(tmp_path).pairs if pair.split == "potsdam"}
    assert folders() == {whole}
    shutil.rmtree(whole)
    assert folders() == {eroded}
